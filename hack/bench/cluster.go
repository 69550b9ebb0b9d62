package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/hack/servers"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// startCluster starts a Galera cluster for a MariaDB, a group of Group Replication for a MySQL.
func startCluster(ctx context.Context, mariadb bool) (name string, nodes []*mysqltest.Server, closeAll func() error, err error) {
	if mariadb {
		cluster, err := servers.StartGalera(ctx, 3)
		if err != nil {
			return "", nil, nil, err
		}
		return "Galera, three nodes", cluster.Nodes, cluster.Close, nil
	}
	group, err := servers.StartGroupReplication(ctx, 2)
	if err != nil {
		return "", nil, nil, err
	}
	return "Group Replication, two nodes", group.Nodes, group.Close, nil
}

// clusterPools makes the tables, and a pool for each node with as many connections as there are callers.
func clusterPools(ctx context.Context, nodes []*mysqltest.Server, callers int) (pools []*sql.DB, closePools func(), err error) {
	closePools = func() {
		for _, db := range pools {
			_ = db.Close() // nothing more is asked of it
		}
	}
	name, err := nodes[0].CreateDatabase(ctx)
	if err != nil {
		return nil, closePools, err
	}
	for i, node := range nodes {
		config := node.Config()
		config.DBName = name
		db, err := mysqllock.Open(config)
		if err != nil {
			return pools, closePools, err
		}
		pools = append(pools, db)
		db.SetMaxOpenConns(callers)
		db.SetMaxIdleConns(callers)
		// As durable as the server that is the floor.
		if _, err := db.ExecContext(ctx, `SET GLOBAL innodb_flush_log_at_trx_commit = 1`); err != nil {
			return pools, closePools, err
		}
		if i == 0 {
			if err := mysqllock.Migrate(ctx, db); err != nil {
				return pools, closePools, err
			}
			if _, err := db.ExecContext(ctx, workTable); err != nil {
				return pools, closePools, err
			}
		}
	}
	return pools, closePools, replicated(ctx, pools)
}

// replicated waits until every node has the table that was made last.
func replicated(ctx context.Context, pools []*sql.DB) error {
	for _, db := range pools {
		err := wait.Until(ctx, "a node gets what another one wrote", func(ctx context.Context) (bool, error) {
			_, err := db.ExecContext(ctx, `SELECT 1 FROM work`)
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func runCluster(ctx context.Context, b *bench, s *section) error {
	const most = 8
	name, nodes, closeNodes, err := startCluster(ctx, strings.HasPrefix(b.product, "MariaDB"))
	if err != nil {
		return err
	}
	defer func() { _ = closeNodes() }() // its data is worth nothing
	pools, closePools, err := clusterPools(ctx, nodes, most)
	defer closePools()
	if err != nil {
		return err
	}
	single, err := b.open(ctx, most, true)
	if err != nil {
		return err
	}
	defer func() { _ = single.Close() }() // nothing more is asked of it
	s.printf("Floor: the same on one server by itself, with the same innodb_flush_log_at_trx_commit = 1. All nodes share this machine,"+
		" and its processors: the ratios are an upper limit. %s.\n\n", name)
	var rows [][]string
	for _, callers := range []int{1, most} {
		kind := "cluster-" + strconv.Itoa(callers)
		alone, err := renewals(ctx, single, kind, callers)
		if err != nil {
			return err
		}
		first, err := renewals(ctx, pools[0], kind+"-first", callers)
		if err != nil {
			return err
		}
		var all []*mysqllock.Lock
		for caller := range callers {
			lock, err := lead(ctx, pools[caller%len(pools)], electionOf(kind+"-all", caller))
			if err != nil {
				return err
			}
			all = append(all, lock)
		}
		poll, err := polls(single, kind, callers)
		if err != nil {
			return err
		}
		clusterPoll, err := polls(pools[0], kind+"-first", callers)
		if err != nil {
			return err
		}
		for _, arms := range [][]arm{
			{
				{"renewals, one server", alone, b.processes},
				{"renewals at one node", first, b.processes},
				{"renewals at all nodes", func(ctx context.Context, caller int) error {
					return all[caller].Update(ctx, record())
				}, b.processes},
			},
			{{"polls, one server", poll, b.processes}, {"polls at one node", clusterPoll, b.processes}},
		} {
			c, err := b.compare(ctx, callers, arms)
			if err != nil {
				return err
			}
			for i, a := range arms {
				rows = append(rows, c.clusterRow(callers, i, a, "0"))
			}
		}
	}
	transacts, err := clusterTransacts(ctx, b, single, pools[0], most)
	if err != nil {
		return err
	}
	s.table([]string{"Callers", "", "p50", "p99", "throughput", "refused by certification, of 100"}, append(rows, transacts...))
	return nil
}

func (c *comparison) clusterRow(callers, i int, a arm, refused string) []string {
	return []string{strconv.Itoa(callers), a.name, c.ratio(i, p50).String(), c.ratio(i, p99).String(), c.ratio(i, (*sample).throughput).String(), refused}
}

// counter counts transactions, and those that certification refused.
type counter struct{ tries, refused atomic.Int64 }

// clusterTransacts are guarded transactions of one leader, whose guards are writes to one row in a cluster, and locking
// reads on one server.
func clusterTransacts(ctx context.Context, b *bench, single, node *sql.DB, most int) (rows [][]string, err error) {
	if _, err := single.ExecContext(ctx, workTable); err != nil {
		return nil, err
	}
	var arms []arm
	counts := make([]counter, 2)
	for i, db := range []*sql.DB{single, node} {
		for worker := range most {
			if _, err := db.ExecContext(ctx, `INSERT INTO work VALUES (?, 0)`, worker); err != nil {
				return nil, err
			}
		}
		lock, err := lead(ctx, db, oneElection)
		if err != nil {
			return nil, err
		}
		arms = append(arms, arm{[]string{"Transact, one server", "Transact at one node"}[i], func(ctx context.Context, worker int) error {
			for {
				counts[i].tries.Add(1)
				err := lock.Transact(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
					_, err := tx.ExecContext(ctx, work, worker)
					return err
				})
				var refused *mysql.MySQLError
				if !errors.As(err, &refused) || refused.Number != 1213 && refused.Number != 3101 {
					return err
				}
				counts[i].refused.Add(1)
			}
		}, b.processes})
	}
	for _, workers := range []int{1, most} {
		for i := range counts {
			counts[i].tries.Store(0)
			counts[i].refused.Store(0)
		}
		c, err := b.compare(ctx, workers, arms)
		if err != nil {
			return nil, err
		}
		for i, a := range arms {
			rows = append(rows, c.clusterRow(workers, i, a, fmt.Sprintf("%.1f", 100*float64(counts[i].refused.Load())/float64(counts[i].tries.Load()))))
		}
	}
	return rows, nil
}
