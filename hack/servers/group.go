package servers

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// Group is MySQL servers of one group of Group Replication, in the mode in which each takes writes. A node that was
// stopped or killed is not part of it any more.
type Group struct {
	Nodes []*mysqltest.Server
}

// StartGroupReplication starts a group and returns when all nodes are part of it. The program, that of
// MYSQLLOCK_TEST_SERVER, must be MySQL with the plugin group_replication. Close ends it; if this program ends without,
// the servers end all the same.
func StartGroupReplication(ctx context.Context, nodes int) (*Group, error) {
	g, err := startGroup(ctx, nodes)
	if err != nil {
		return nil, fmt.Errorf("start a group of Group Replication: %w", err)
	}
	return g, nil
}

func startGroup(ctx context.Context, n int) (_ *Group, err error) {
	nodes, err := start(ctx, n, func(i int) mysqltest.Options {
		return mysqltest.Options{Args: []string{
			"--server-id=" + strconv.Itoa(1+i), "--report-host=127.0.0.1", "--loose-gtid-mode=ON", "--loose-enforce-gtid-consistency=ON",
		}}
	})
	if err != nil {
		return nil, err
	}
	g := &Group{nodes}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	if nodes[0].MariaDB() {
		return nil, errors.New("the server is MariaDB, which has no Group Replication: set MYSQLLOCK_TEST_SERVER to what hack/servers/get.sh mysql-9 prints")
	}
	var seeds []string
	for range n {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		seeds = append(seeds, "127.0.0.1:"+strconv.Itoa(port))
	}
	password := rand.Text()
	for i, node := range nodes {
		if err := forget(ctx, node); err != nil {
			return nil, err
		}
		if err := execute(ctx, node,
			`INSTALL PLUGIN group_replication SONAME 'group_replication.so'`,
			`SET GLOBAL group_replication_group_name = 'aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa'`,
			`SET GLOBAL group_replication_single_primary_mode = OFF`,
			`SET GLOBAL group_replication_enforce_update_everywhere_checks = ON`,
			`SET GLOBAL group_replication_recovery_get_public_key = ON`,
			`SET GLOBAL group_replication_local_address = '`+seeds[i]+`'`,
			`SET GLOBAL group_replication_group_seeds = '`+strings.Join(seeds, ",")+`'`,
			fmt.Sprintf(`SET GLOBAL group_replication_bootstrap_group = %t`, i == 0),
			`START GROUP_REPLICATION USER = 'recovery', PASSWORD = '`+password+`'`,
			`SET GLOBAL group_replication_bootstrap_group = OFF`,
		); err != nil {
			return nil, err
		}
		if err := g.online(ctx, node, i+1); err != nil {
			return nil, err
		}
		if i > 0 {
			continue
		}
		// By this one the others get what came before they did.
		if err := execute(ctx, node, `CREATE USER 'recovery'@'127.0.0.1' IDENTIFIED BY '`+password+`'`,
			`GRANT REPLICATION SLAVE ON *.* TO 'recovery'@'127.0.0.1'`); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// online waits until a node sees that many nodes at work.
func (*Group) online(ctx context.Context, node *mysqltest.Server, size int) error {
	return wait.Until(ctx, "a node of the group is online", func(ctx context.Context) (bool, error) {
		var n int
		err := with(node, func(db *sql.DB) error {
			return db.QueryRowContext(ctx, `SELECT COUNT(*) FROM performance_schema.replication_group_members WHERE member_state = 'ONLINE'`).Scan(&n)
		})
		return n == size, err
	})
}

// Close ends all nodes and deletes everything of them.
func (g *Group) Close() error { return closeAll(g.Nodes) }
