//go:build galera

package galera

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// node is a server that begins alone and is restarted as part of a cluster.
type node struct {
	*mysqltest.Server
	options string // a file with further options, for the next start
}

func startNode(t *testing.T) node {
	t.Helper()
	program := os.Getenv("MYSQLLOCK_TEST_SERVER")
	if program == "" {
		program = "mariadbd"
	}
	dir := t.TempDir()
	n := node{options: filepath.Join(dir, "options")}
	script := filepath.Join(dir, "mariadbd")
	for path, text := range map[string]string{
		n.options: "",
		script:    fmt.Sprintf("#!/bin/sh\nexec %s \"$@\" $(cat %s)\n", program, n.options),
	} {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if n.Server, err = mysqltest.Start(t.Context(), mysqltest.Options{Binary: script}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// join restarts the node with Galera.
func (n node) join(t *testing.T, port int, more string) {
	t.Helper()
	library := os.Getenv("MYSQLLOCK_TEST_GALERA")
	if library == "" {
		library = "/usr/lib/galera/libgalera_smm.so"
	}
	if _, err := os.Stat(library); err != nil {
		t.Fatalf("%v: install Galera (Debian, Ubuntu: galera-4), or name its libgalera_smm.so by MYSQLLOCK_TEST_GALERA", err)
	}
	options := fmt.Sprintf("--wsrep-on=ON --wsrep-provider=%s --wsrep-cluster-name=mysqllock --wsrep-sst-method=skip"+
		" --binlog-format=ROW --innodb-autoinc-lock-mode=2 --wsrep-node-address=127.0.0.1:%d"+
		" --wsrep-provider-options=base_port=%d;gmcast.listen_addr=tcp://127.0.0.1:%d;gcache.size=128M %s", library, port, port, port, more)
	if err := os.WriteFile(n.options, []byte(options), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// startCluster starts two nodes. The second doesn't copy the first one's data,
// as both begin without any database: it is told that it has the first one's
// state, and everything that follows is replicated.
func startCluster(t *testing.T) (a, b node) {
	t.Helper()
	a, b = startNode(t), startNode(t)
	var datadir string
	if err := open(t, b.Server, "").QueryRowContext(t.Context(), `SELECT @@datadir`).Scan(&datadir); err != nil {
		t.Fatal(err)
	}
	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	first := freePort(t)
	a.join(t, first, "--wsrep-new-cluster --wsrep-cluster-address=gcomm://")
	onA, onB := open(t, a.Server, ""), open(t, b.Server, "")
	synchronised := func(db *sql.DB, size string) func() bool {
		return func() bool {
			return status(t, db, "wsrep_cluster_size") == size && status(t, db, "wsrep_local_state_comment") == "Synced"
		}
	}
	eventually(t, "the first node is a cluster", synchronised(onA, "1"))
	state := fmt.Sprintf("# GALERA saved state\nversion: 2.1\nuuid: %s\nseqno: %s\nsafe_to_bootstrap: 0\n",
		status(t, onA, "wsrep_cluster_state_uuid"), status(t, onA, "wsrep_last_committed"))
	if err := os.WriteFile(filepath.Join(datadir, "grastate.dat"), []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
	b.join(t, freePort(t), fmt.Sprintf("--wsrep-cluster-address=gcomm://127.0.0.1:%d", first))
	eventually(t, "the second node has joined", synchronised(onB, "2"))
	return a, b
}

func status(t *testing.T, db *sql.DB, variable string) (value string) {
	t.Helper()
	var name string
	if err := db.QueryRowContext(t.Context(), `SHOW STATUS LIKE '`+variable+`'`).Scan(&name, &value); err != nil {
		return err.Error()
	}
	return value
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port
}

func open(t *testing.T, server *mysqltest.Server, database string) *sql.DB {
	t.Helper()
	config := server.Config()
	config.DBName = database
	db, err := mysqllock.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func exec(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func number(t *testing.T, db *sql.DB, query string) (n int64) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		<-tick.C
	}
}

func record(identity string) resourcelock.LeaderElectionRecord {
	now := metav1.Now()
	return resourcelock.LeaderElectionRecord{HolderIdentity: identity, LeaseDurationSeconds: 15, AcquireTime: now, RenewTime: now}
}

// lockingReadSQL is the guard that holds on a single server.
const lockingReadSQL = `SELECT fencing_token FROM election_fences WHERE election_name = 'e' LOCK IN SHARE MODE`

// The leader works on node a, whose applier is behind; another candidate takes
// over on node b. A locking read on a still finds the old term and pins it, but
// on a alone: what is committed afterwards is a stale leader's write. The guard
// of this library is a write there, and the cluster refuses the commit.
func TestAStaleLeaderOnANodeThatIsBehindCommitsNothing(t *testing.T) {
	a, b := startCluster(t)
	const database = "elections"
	exec(t, open(t, a.Server, ""), "CREATE DATABASE "+database)
	onA, onB := open(t, a.Server, database), open(t, b.Server, database)
	exec(t, onA, `CREATE TABLE ledger (id INT AUTO_INCREMENT PRIMARY KEY, entry VARCHAR(40) NOT NULL) ENGINE=InnoDB`)
	exec(t, onA, `CREATE TABLE big (id INT PRIMARY KEY, v INT NOT NULL, pad VARCHAR(50) NOT NULL) ENGINE=InnoDB`)
	exec(t, onA, `INSERT INTO big SELECT seq, 0, REPEAT('x', 50) FROM seq_1_to_400000`)
	if err := mysqllock.Migrate(t.Context(), onA); err != nil {
		t.Fatal(err)
	}

	eventually(t, "node b has applied everything so far", func() bool {
		return number(t, open(t, b.Server, ""), `SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_NAME = 'election_fences'`) == 1
	})

	lock := func(db *sql.DB, identity string) *mysqllock.Lock {
		l, err := mysqllock.New(db, "e", resourcelock.ResourceLockConfig{Identity: identity}, mysqllock.WithOperationTimeout(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	insert := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO ledger (entry) VALUES ('stale')`)
		return err
	}
	transact := func(leader *mysqllock.Lock) error { return leader.Transact(t.Context(), onA, nil, insert) }
	guardFirst := func(leader *mysqllock.Lock) error {
		tx, err := onA.BeginTx(t.Context(), nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if err := errors.Join(leader.Guard(t.Context(), tx), insert(t.Context(), tx)); err != nil {
			return err
		}
		return tx.Commit()
	}
	lockingRead := func(*mysqllock.Lock) error {
		tx, err := onA.BeginTx(t.Context(), nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		var token int64
		if err := tx.QueryRowContext(t.Context(), lockingReadSQL).Scan(&token); err != nil {
			return err
		}
		if err := insert(t.Context(), tx); err != nil {
			return err
		}
		return tx.Commit()
	}

	for _, c := range []struct {
		name  string
		work  func(*mysqllock.Lock) error
		stale int64 // entries that are committed
	}{{"a locking read", lockingRead, 1}, {"Transact", transact, 0}, {"Guard first", guardFirst, 0}} {
		t.Run(c.name, func(t *testing.T) {
			exec(t, onA, `DELETE FROM ledger`)
			exec(t, onA, `DELETE FROM election_records`)
			eventually(t, "node b has applied everything", func() bool { return number(t, onB, `SELECT COUNT(*) FROM election_records`) == 0 })
			leader, successor := lock(onA, "leader"), lock(onB, "successor")
			if err := leader.Create(t.Context(), record("leader")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "node b sees the leader", func() bool {
				seen, _, err := successor.Get(t.Context())
				return err == nil && seen.HolderIdentity == "leader"
			})

			// Node a will be busy for seconds with applying this.
			exec(t, onB, `UPDATE big SET v = v + 1`)
			if err := successor.Update(t.Context(), record("successor")); err != nil {
				t.Fatal(err)
			}
			old, _ := leader.FencingToken()
			if number(t, onA, `SELECT fencing_token FROM election_fences`) != old {
				t.Fatal("node a has applied the takeover already, so that nothing is shown; make the table big larger")
			}
			err := c.work(leader)
			t.Logf("the stale leader's commit: %v", err)
			var server *mysql.MySQLError
			if refused := errors.Is(err, mysqllock.ErrNotLeader) || errors.As(err, &server) && server.Number == 1213; refused != (c.stale == 0) {
				t.Errorf("error %v", err)
			}
			token, _ := successor.FencingToken()
			eventually(t, "node a has applied the takeover", func() bool { return number(t, onA, `SELECT fencing_token FROM election_fences`) == token })
			if n := number(t, onB, `SELECT COUNT(*) FROM ledger`); n != c.stale {
				t.Errorf("%d stale entries, want %d", n, c.stale)
			}
		})
	}
}
