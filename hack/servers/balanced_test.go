//go:build clusters

package servers

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// balancer sends new sessions to one server and leaves those that are there where they are, as TCP balancers do.
type balancer struct {
	target atomic.Pointer[mysqltest.Server]
}

func newBalancer(target *mysqltest.Server) *balancer {
	b := &balancer{}
	b.target.Store(target)
	return b
}

func (b *balancer) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, b.target.Load().Config().Addr)
}

// pools are the two kinds of pool that a lock may have.
var pools = []struct {
	name string
	open func(*testing.T, *mysql.Config) *sql.DB
}{
	{"a pool of Open", openConfig},
	{"a pool of one's own", func(t *testing.T, config *mysql.Config) *sql.DB {
		t.Helper()
		connector, err := mysql.NewConnector(config)
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(connector)
		t.Cleanup(func() { _ = db.Close() })
		return db
	}},
}

// The elector's timings, and in how much time a server's leaving may be noticed.
var (
	timings    = elector.Timings{LeaseDuration: 6 * time.Second, RenewDeadline: 4 * time.Second, RetryPeriod: 500 * time.Millisecond}
	fewRetries = 5 * timings.RetryPeriod
)

// runner is a candidate whose elector runs until stop, or until the test ends.
type runner struct {
	*mysqllock.Lock
	stop  func()
	began atomic.Int64 // terms
	ended atomic.Int64
	polls atomic.Bool // it has seen a leader
}

func (r *runner) leads() bool { return r.began.Load() > r.ended.Load() }

// run starts a candidate.
func run(t *testing.T, db *sql.DB, name, identity string) *runner {
	t.Helper()
	lock, err := mysqllock.New(db, name, resourcelock.ResourceLockConfig{Identity: identity}, timings.Option())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r := &runner{Lock: lock, stop: func() { cancel(); <-done }}
	e, err := timings.New(lock, leaderelection.LeaderCallbacks{
		OnStartedLeading: func(context.Context) { r.began.Add(1) },
		OnStoppedLeading: func() { r.ended.Store(r.began.Load()) },
		OnNewLeader:      func(string) { r.polls.Store(true) },
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	t.Cleanup(r.stop)
	return r
}

// testDeparture has a server stop to serve, in whose place another does: the leader goes on there, in sessions that the
// lock makes as soon as it is refused.
func testDeparture(t *testing.T, open func(*testing.T, *mysql.Config) *sql.DB, config *mysql.Config, name string, successor *mysqltest.Server, depart func() error) {
	leader := run(t, open(t, config), name, "leader")
	eventually(t, "the leader leads", leader.leads)
	standby := run(t, open(t, config), name, "standby")
	eventually(t, "the standby polls", standby.polls.Load)
	seen := openOn(t, successor, database)
	version := func() (version int64) {
		_ = seen.QueryRowContext(t.Context(), `SELECT version FROM election_records WHERE election_name = ?`, name).Scan(&version)
		return version
	}
	before := token(t, leader.Lock)
	if err := depart(); err != nil {
		t.Fatal(err)
	}
	departed, last, renewals := time.Now(), version(), 0
	eventually(t, "two renewals reach the other server", func() bool {
		if now := version(); now > last {
			last = now
			renewals++
		}
		return renewals == 2 || time.Since(departed) > 30*time.Second
	})
	t.Logf("renewed on the other server %v after the departure (leader leads: %t)", time.Since(departed).Round(time.Millisecond), leader.leads())
	if took := time.Since(departed); took > fewRetries {
		t.Errorf("nobody renewed for %v", took)
	}
	if now, held := leader.FencingToken(); !held || now != before || !leader.leads() || standby.began.Load() > 0 {
		t.Errorf("the leader's lease was lost: token %d (held: %t) after %d", now, held, before)
	}
}

// A node in maintenance refuses each statement and keeps its sessions. Those are of no use, however long they might live.
func TestGaleraNodeThatRefusesQueriesCostsNoLease(t *testing.T) {
	cluster, err := StartGalera(t.Context(), 3)
	closeAfter(t, cluster, err)
	used, other := cluster.Nodes[0], cluster.Nodes[1]
	exec(t, openOn(t, used, ""), "CREATE DATABASE "+database)
	if err := mysqllock.Migrate(t.Context(), openOn(t, used, database)); err != nil {
		t.Fatal(err)
	}
	password := rand.Text()
	exec(t, openOn(t, used, ""), `CREATE USER app@'127.0.0.1' IDENTIFIED BY '`+password+`'`)
	exec(t, openOn(t, used, ""), "GRANT ALL ON "+database+".* TO app@'127.0.0.1'")
	admin := openOn(t, used, "")
	admin.SetMaxOpenConns(1)
	reject := func(what string) error {
		_, err := admin.ExecContext(context.Background(), `SET GLOBAL wsrep_reject_queries = `+what)
		return err
	}
	for _, pool := range pools {
		t.Run(pool.name, func(t *testing.T) {
			b := newBalancer(used)
			config := used.Config()
			config.User, config.Passwd, config.DBName, config.DialFunc = "app", password, database, b.dial
			t.Cleanup(func() {
				if err := reject("NONE"); err != nil {
					t.Error(err)
				}
			})
			testDeparture(t, pool.open, config, pool.name, other, func() error {
				b.target.Store(other)
				return reject("ALL")
			})
		})
	}
}

// The former primary of a planned switch-over keeps its sessions and takes no writes in them.
func TestASwitchOverCostsNoLease(t *testing.T) {
	for _, pool := range pools {
		t.Run(pool.name, func(t *testing.T) {
			p := newPair(t)
			b := newBalancer(p.Primary)
			config := p.config.Clone()
			config.DialFunc = b.dial
			testDeparture(t, pool.open, config, "e", p.Replica, func() error {
				forget := `RESET REPLICA ALL`
				if p.Primary.MariaDB() {
					forget = `RESET SLAVE ALL`
				}
				err := errors.Join(
					execute(t.Context(), p.Primary, `SET GLOBAL read_only = 1`),
					p.CatchUp(t.Context()),
					execute(t.Context(), p.Replica, `STOP `+p.replica(), forget, `SET GLOBAL read_only = 0`),
				)
				b.target.Store(p.Replica)
				return err
			})
		})
	}
}
