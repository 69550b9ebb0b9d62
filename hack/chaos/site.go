package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/faults"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/hack/servers"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// What -servers can be.
const (
	single = "single"
	pair   = "pair"   // a primary and a replica, which is promoted now and then
	galera = "galera" // three nodes, and candidates at each
	given  = "given"  // what MYSQLLOCK_TEST_DSN names, which can't be crashed
)

// site is where the candidates' tables are.
type site struct {
	nodes   []node // those to which candidates connect
	pair    *servers.ReplicaPair
	cluster *servers.Galera

	database, password string // the candidates' own
	given              bool   // with the account that was given, too
}

// node is a server and its administrator's pool.
type node struct {
	server *mysqltest.Server
	admin  *sql.DB
}

// account is the candidates' own, which may do no more than they need: one that may do more could write to a server that
// is read-only.
const account = "chaos"

// open starts servers and makes the tables.
func (s *site) open(ctx context.Context, kind string) error {
	if err := s.start(ctx, kind); err != nil {
		return err
	}
	first := s.nodes[0].server
	var err error
	if s.given = kind == given; s.given {
		config, err := mysql.ParseDSN(os.Getenv("MYSQLLOCK_TEST_DSN"))
		if err != nil {
			return err
		}
		s.database = config.DBName
	}
	if s.database == "" {
		if s.database, err = first.CreateDatabase(ctx); err != nil {
			return err
		}
	}
	s.password = rand.Text()
	for i := range s.nodes {
		if err := s.connect(i); err != nil {
			return err
		}
	}
	admin := s.nodes[0].admin
	if err := mysqllock.Migrate(ctx, admin); err != nil {
		return err
	}
	statements := append([]string{`DROP TABLE IF EXISTS ledger`, `DROP TABLE IF EXISTS unfenced`}, tables...)
	if !s.given {
		statements = append(statements,
			"CREATE USER "+account+"@'%' IDENTIFIED BY '"+s.password+"'",
			"CREATE USER "+crowd+"@'%' IDENTIFIED BY '"+s.password+"'",
			"GRANT SELECT, INSERT, UPDATE ON "+s.database+".* TO "+account+"@'%'",
		)
	}
	for _, statement := range statements {
		if _, err := admin.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) start(ctx context.Context, kind string) (err error) {
	switch kind {
	case pair:
		if s.pair, err = servers.StartReplicaPair(ctx); err == nil {
			s.nodes = []node{{server: s.pair.Primary}}
		}
	case galera:
		if s.cluster, err = servers.StartGalera(ctx, 3); err == nil {
			for _, server := range s.cluster.Nodes {
				s.nodes = append(s.nodes, node{server: server})
			}
		}
	case given:
		if os.Getenv("MYSQLLOCK_TEST_DSN") == "" {
			return errors.New("-servers given is for the server that MYSQLLOCK_TEST_DSN names, and that is not set")
		}
		var server *mysqltest.Server
		if server, err = mysqltest.Shared(ctx); err == nil {
			s.nodes = []node{{server: server}}
		}
	default:
		var server *mysqltest.Server
		// So that a server that comes back has to read everything anew.
		server, err = mysqltest.Start(ctx, mysqltest.Options{Args: []string{"--innodb-buffer-pool-load-at-startup=0", "--innodb-buffer-pool-dump-at-shutdown=0"}})
		if err == nil {
			s.nodes = []node{{server: server}}
		}
	}
	return err
}

// connect opens the administrator's pool of a node.
func (s *site) connect(i int) (err error) {
	if s.nodes[i].admin != nil {
		_ = s.nodes[i].admin.Close() // of a server that is gone
	}
	config := s.nodes[i].server.Config()
	config.DBName = s.database
	// A frozen server must not freeze the nemesis.
	config.Timeout, config.ReadTimeout, config.WriteTimeout = 5*time.Second, time.Minute, time.Minute
	s.nodes[i].admin, err = mysqllock.Open(config)
	return err
}

func (s *site) close() error {
	var failed error
	for _, n := range s.nodes {
		if n.admin != nil {
			_ = n.admin.Close() // nothing to lose
		}
	}
	switch {
	case s.pair != nil:
		failed = s.pair.Close()
	case s.cluster != nil:
		failed = s.cluster.Close()
	case len(s.nodes) > 0:
		failed = s.nodes[0].server.Close()
	}
	return failed
}

// administrator is the configuration of whoever may do everything.
func (s *site) administrator() *mysql.Config {
	c := s.nodes[0].server.Config()
	c.DBName = s.database
	return c
}

// config is a candidate's, by way of a proxy.
func (s *site) config(proxy string) *mysql.Config {
	c := s.administrator()
	c.Addr = proxy
	if !s.given {
		c.User, c.Passwd = account, s.password
	}
	c.Timeout, c.ReadTimeout, c.WriteTimeout = 2*time.Second, 0, 0
	return c
}

func (s *site) String() string {
	names := make([]string, 0, len(s.nodes)+1)
	for _, n := range s.nodes {
		names = append(names, n.server.Version())
	}
	if s.pair != nil {
		names = append(names, s.pair.Replica.Version()+" (its replica)")
	}
	return strings.Join(names, ", ")
}

// node is the one that a fault of some duration hits: any, but the same in each run of a seed.
func (s *site) node(d time.Duration) node { return s.nodes[int(d)%len(s.nodes)] }

// whole waits until all servers work together again.
func (s *site) whole(ctx context.Context) error {
	if s.cluster == nil {
		return nil
	}
	return s.cluster.Synced(ctx)
}

// sessionsLeft waits until the servers have dropped the candidates' sessions.
func (s *site) sessionsLeft(ctx context.Context) (n int, err error) {
	if s.given {
		return 0, nil // others may have the same account
	}
	for end := trueTime().Add(10 * time.Second); trueTime().Before(end); wait.For(ctx, 100*time.Millisecond) {
		n, err = 0, nil
		for _, node := range s.nodes {
			ids, failed := faults.Sessions(ctx, node.admin, account)
			n, err = n+len(ids), errors.Join(err, failed)
		}
		if err == nil && n == 0 {
			break
		}
	}
	return n, err
}

// pairFaults are those of a primary and its replica.
var pairFaults = map[string]serverFault{
	"promotion of a replica that lacks the last commits": func(ctx context.Context, w *world, d time.Duration) error {
		always := context.WithoutCancel(ctx)
		from := trueTime()
		if err := w.site.pair.Hold(always); err != nil {
			return err
		}
		wait.For(ctx, d)
		err := w.promote(always)
		w.heard.add(event{Kind: lost, Duration: trueTime().Sub(from)})
		if err != nil {
			return err
		}
		return w.site.pair.AddReplica(always)
	},
	"promotion of a replica that has everything": func(ctx context.Context, w *world, _ time.Duration) error {
		always := context.WithoutCancel(ctx)
		if _, err := w.site.nodes[0].admin.ExecContext(always, `SET GLOBAL read_only = 1`); err != nil {
			return err
		}
		if err := errors.Join(w.site.pair.CatchUp(always), w.promote(always)); err != nil {
			return err
		}
		return w.site.pair.AddReplica(always)
	},
}

// promote ends the primary, makes the replica the primary, and leads everyone there.
func (w *world) promote(ctx context.Context) error {
	err := w.site.pair.Promote(ctx)
	if err != nil {
		return err
	}
	w.site.nodes[0].server = w.site.pair.Primary
	if err := w.site.connect(0); err != nil {
		return err
	}
	for _, s := range w.slots {
		s.proxy.Redirect(w.site.pair.Primary.Config().Addr)
	}
	return nil
}

// galeraFaults are those of a cluster.
var galeraFaults = map[string]serverFault{
	"node cut off from the others": func(ctx context.Context, w *world, d time.Duration) error {
		server := w.site.node(d).server
		always := context.WithoutCancel(ctx)
		if err := w.site.cluster.Isolate(always, server, true); err != nil {
			return err
		}
		wait.For(ctx, 2*w.timings.LeaseDuration+d) // it takes a while to notice
		if err := w.site.cluster.Isolate(always, server, false); err != nil {
			return fmt.Errorf("join again: %w", err)
		}
		return nil
	},
}
