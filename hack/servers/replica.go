package servers

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// ReplicaPair is a primary and its asynchronous replica, MariaDB or MySQL.
type ReplicaPair struct {
	Primary *mysqltest.Server
	Replica *mysqltest.Server // read-only for accounts without special rights; nil after Promote

	password string // of the account by which the replica reads
	id       int    // of the server last started
}

// StartReplicaPair starts both and returns when the replica replicates. The program is that of MYSQLLOCK_TEST_SERVER, or
// whichever package mysqltest finds. Close ends them; if this program ends without, the servers end all the same.
func StartReplicaPair(ctx context.Context) (*ReplicaPair, error) {
	p := &ReplicaPair{password: rand.Text()}
	err := p.start(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a primary and a replica: %w", err), p.Close())
	}
	return p, nil
}

func (p *ReplicaPair) start(ctx context.Context) error {
	nodes, err := start(ctx, 2, replicaOptions(1))
	if err != nil {
		return err
	}
	p.Primary, p.Replica, p.id = nodes[0], nodes[1], 2
	if err := forget(ctx, p.Primary); err != nil {
		return err
	}
	if err := execute(ctx, p.Primary, `CREATE USER 'replication'@'127.0.0.1' IDENTIFIED BY '`+p.password+`'`,
		`GRANT REPLICATION SLAVE ON *.* TO 'replication'@'127.0.0.1'`); err != nil {
		return err
	}
	return p.replicate(ctx)
}

// replicaOptions are those of servers with numbers from first on. Each writes all that it has ever seen to its binary
// log, so that a new server can begin with nothing.
func replicaOptions(first int) func(i int) mysqltest.Options {
	return func(i int) mysqltest.Options {
		return mysqltest.Options{Args: []string{
			fmt.Sprintf("--server-id=%d", first+i), "--log-bin=bin", "--log-slave-updates", "--binlog-format=ROW",
			"--loose-gtid-strict-mode=ON", "--loose-gtid-mode=ON", "--loose-enforce-gtid-consistency=ON", "--skip-slave-start",
		}}
	}
}

// forget empties a new server's binary log: its own administrator is not for others.
func forget(ctx context.Context, node *mysqltest.Server) error {
	if node.MariaDB() {
		return execute(ctx, node, `RESET MASTER`)
	}
	return execute(ctx, node, `RESET BINARY LOGS AND GTIDS`)
}

// replicate makes the replica one of the primary, and waits until it has all that the primary has.
func (p *ReplicaPair) replicate(ctx context.Context) error {
	if err := forget(ctx, p.Replica); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(p.Primary.Config().Addr)
	if err != nil {
		return err
	}
	change := `CHANGE REPLICATION SOURCE TO SOURCE_HOST='%s', SOURCE_PORT=%s, SOURCE_USER='replication', SOURCE_PASSWORD='%s',` +
		` SOURCE_CONNECT_RETRY=1, SOURCE_AUTO_POSITION=1, GET_SOURCE_PUBLIC_KEY=1`
	if p.Replica.MariaDB() {
		change = `CHANGE MASTER TO MASTER_HOST='%s', MASTER_PORT=%s, MASTER_USER='replication', MASTER_PASSWORD='%s',` +
			` MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos`
	}
	if err := execute(ctx, p.Replica, fmt.Sprintf(change, host, port, p.password), `SET GLOBAL read_only = 1`); err != nil {
		return err
	}
	return p.Resume(ctx)
}

// Hold stops the replication: what the primary commits from now on, the replica lacks.
func (p *ReplicaPair) Hold(ctx context.Context) error {
	return execute(ctx, p.Replica, `STOP `+p.replica())
}

// Resume lets the replication go on, and waits until the replica has all that the primary had at the call.
func (p *ReplicaPair) Resume(ctx context.Context) error {
	if err := execute(ctx, p.Replica, `START `+p.replica()); err != nil {
		return err
	}
	return p.CatchUp(ctx)
}

// CatchUp waits until the replica has all that the primary had at the call.
func (p *ReplicaPair) CatchUp(ctx context.Context) error {
	position, reached := `SELECT @@gtid_executed`, `SELECT GTID_SUBSET(?, @@gtid_executed)`
	if p.Primary.MariaDB() {
		position, reached = `SELECT @@gtid_binlog_pos`, `SELECT MASTER_GTID_WAIT(?, 0) = 0`
	}
	var gtids string
	if err := with(p.Primary, func(db *sql.DB) error { return db.QueryRowContext(ctx, position).Scan(&gtids) }); err != nil {
		return err
	}
	return wait.Until(ctx, "the replica has what the primary has", func(ctx context.Context) (ok bool, err error) {
		err = with(p.Replica, func(db *sql.DB) error { return db.QueryRowContext(ctx, reached, gtids).Scan(&ok) })
		return ok, err
	})
}

// Promote ends the primary, as a crash does, and makes the replica the primary, as it is: what it lacks is lost. There
// is no replica then.
func (p *ReplicaPair) Promote(ctx context.Context) error {
	if err := p.Primary.Close(); err != nil {
		return err
	}
	p.Primary, p.Replica = p.Replica, nil
	forget := `RESET REPLICA ALL`
	if p.Primary.MariaDB() {
		forget = `RESET SLAVE ALL`
	}
	return execute(ctx, p.Primary, `STOP `+p.replica(), forget, `SET GLOBAL read_only = 0`)
}

// AddReplica starts a server that replicates all the primary has ever had, in place of one that was promoted.
func (p *ReplicaPair) AddReplica(ctx context.Context) error {
	p.id++
	nodes, err := start(ctx, 1, replicaOptions(p.id))
	if err != nil {
		return err
	}
	p.Replica = nodes[0]
	return p.replicate(ctx)
}

// replica is what the family calls it in its statements.
func (p *ReplicaPair) replica() string {
	if p.Primary.MariaDB() {
		return "SLAVE"
	}
	return "REPLICA"
}

// Close ends both servers and deletes everything of them.
func (p *ReplicaPair) Close() error { return closeAll([]*mysqltest.Server{p.Primary, p.Replica}) }
