package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// patience is for what takes milliseconds, or some retries, on an idle machine.
const patience = 30 * time.Second

const retry = 200 * time.Millisecond

// program is one call of ElectLeader, with timings that a test can wait for.
type program struct {
	stop     context.CancelFunc
	returned chan struct{}
	err      error // once returned is closed

	led, lost atomic.Int64         // calls of becomeLeader and loseLeadership that began
	terms     chan context.Context // what becomeLeader was called with
}

// elect starts a candidate. work is what becomeLeader does, ending what loseLeadership does.
func elect(t testing.TB, db *sql.DB, election string, lease, renewDeadline time.Duration, work func(context.Context), ending func()) *program {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background()) // t.Context ends before the cleanup
	c := &program{stop: stop, returned: make(chan struct{}), terms: make(chan context.Context, 100)}
	go func() {
		defer close(c.returned)
		c.err = mysqllock.ElectLeaderWithTimings(ctx, db, election, lease, renewDeadline, retry, func(ctx context.Context) {
			c.led.Add(1)
			c.terms <- ctx
			work(ctx)
		}, func() {
			c.lost.Add(1)
			ending()
		})
	}()
	t.Cleanup(func() {
		stop()
		<-c.returned
	})
	return c
}

// electQuickly is elect in the election "e" with a lease of 4 s, and so with terms that end 3 s
// after the last renewal.
func electQuickly(t testing.TB, db *sql.DB, work func(context.Context), ending func()) *program {
	t.Helper()
	return elect(t, db, "e", 4*time.Second, 3*time.Second, work, ending)
}

func untilDone(ctx context.Context) { <-ctx.Done() }

func nothing() {}

// leads waits for the beginning of a term.
func (c *program) leads(t testing.TB) context.Context {
	t.Helper()
	select {
	case term := <-c.terms:
		return term
	case <-c.returned:
		t.Fatalf("returned without leading: %v", c.err)
	case <-time.After(patience):
		t.Fatal("does not lead")
	}
	return nil
}

// stops ends the candidate's context and waits for its return.
func (c *program) stops(t testing.TB) {
	t.Helper()
	c.stop()
	c.returns(t)
	if c.err != nil {
		t.Errorf("returned %v", c.err)
	}
}

func (c *program) returns(t testing.TB) {
	t.Helper()
	select {
	case <-c.returned:
	case <-time.After(patience):
		t.Fatal("does not return")
	}
}

// renewals waits until the row of the election "e", which is held, was written n times more. It may
// be called from a callback.
func renewals(t testing.TB, db *sql.DB, n int) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for last := ""; ; {
		var version, holder string
		err := db.QueryRow("SELECT version, leader_name FROM election_records WHERE election_name = 'e'").Scan(&version, &holder)
		switch {
		case err != nil:
			t.Errorf("waiting for renewals: %v", err)
			return
		case holder == "":
			t.Error("waiting for renewals: the election is released")
			return
		case version != last:
			last = version
			if n--; n < 0 {
				return
			}
		}
		select {
		case <-deadline:
			t.Errorf("waiting for renewals: %d did not come within %v", n+1, patience)
			return
		case <-tick.C:
		}
	}
}

func TestElectLeaderByTheEnvironment(t *testing.T) {
	config := newConfig(t)
	setEnvironment(t, config)
	db := open(t, config)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var calls []string
	err := mysqllock.ElectLeader(ctx, "e", func(ctx context.Context) {
		calls = append(calls, "become")
		e := getElection(t, db, "e")
		if host, _ := os.Hostname(); e.LeaseDuration != time.Minute || e.FencingToken == 0 || !strings.HasSuffix(e.Holder[:strings.LastIndex(e.Holder, "_")], fmt.Sprint("_", os.Getpid())) || host == "" {
			t.Errorf("%+v", e)
		}
		cancel()
		<-ctx.Done()
	}, func() { calls = append(calls, "lose") })
	if err != nil {
		t.Error(err)
	}
	if got := fmt.Sprint(calls); got != "[become lose]" {
		t.Error(got)
	}
	if got := holderOf(t, db, "e"); got != "" {
		t.Errorf("still held by %s", got)
	}
	if got := tableNames(t, db); got != "election_fences\nelection_records" {
		t.Errorf("tables: %s", got)
	}
}

// setEnvironment makes the environment that ConfigFromEnv reads: nothing but the given config, or
// nothing at all.
func setEnvironment(t testing.TB, config *mysql.Config) {
	t.Helper()
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, "MYSQL_") {
			continue
		}
		t.Setenv(name, value) // for the restoring
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
	if config == nil {
		return
	}
	host, port, err := net.SplitHostPort(config.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("MYSQL_USER", config.User)
	t.Setenv("MYSQL_PASSWORD", config.Passwd)
	t.Setenv("MYSQL_HOST", host)
	t.Setenv("MYSQL_PORT", port)
	t.Setenv("MYSQL_DBNAME", config.DBName)
}

func TestElectLeaderReturnsWhatPreventsTheStart(t *testing.T) {
	config := newConfig(t)
	restricted := newAccount(t, config, "SELECT ON {db}.*")
	change := func(f func(*mysql.Config)) *mysql.Config {
		c := config.Clone()
		f(c)
		return c
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name     string
		config   *mysql.Config
		ctx      context.Context
		election string
		prefix   string
		parts    []string
		is       error
	}{
		{
			name: "no configuration", prefix: "mysqllock: read the configuration from the environment: ",
			parts: []string{"MYSQL_USER", "MYSQL_PASSWORD", "MYSQL_HOST", "MYSQL_DBNAME"},
		},
		{
			name: "wrong password", config: change(func(c *mysql.Config) { c.Passwd = "hunter2" }),
			prefix: `mysqllock: migrate: Error 1045`, parts: []string{"; check the user and its password (MYSQL_USER, MYSQL_PASSWORD)"},
		},
		{
			name: "no such database", config: change(func(c *mysql.Config) { c.DBName = "mysqllock_is_not_there" }),
			prefix: `mysqllock: migrate: Error 1049`, parts: []string{"; create the database"},
		},
		{name: "tables can't be made", config: restricted, prefix: "mysqllock: migrate: Error 1142", parts: []string{"GRANT"}},
		{
			name: "an election without a name", config: config, election: " ",
			prefix: `mysqllock: new " ": election name " " begins or ends with a space; remove it`,
		},
		{name: "context ended", config: config, ctx: ended, prefix: `mysqllock: migrate: `, parts: []string{"context canceled"}, is: context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			setEnvironment(t, c.config)
			ctx, election := t.Context(), "e"
			if c.ctx != nil {
				ctx = c.ctx
			}
			if c.election != "" {
				election = c.election
			}
			err := mysqllock.ElectLeader(ctx, election, func(context.Context) { t.Error("becomeLeader was called") }, func() { t.Error("loseLeadership was called") })
			if err == nil || !strings.HasPrefix(err.Error(), c.prefix) {
				t.Fatalf("%v, not %q", err, c.prefix)
			}
			for _, part := range c.parts {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
			for _, secret := range []string{config.Addr, "127.0.0.1", "hunter2", config.Passwd, "pass word"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q shows %q", err, secret)
				}
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is not %v", err, c.is)
			}
		})
	}

	setEnvironment(t, config)
	for _, err := range []error{
		mysqllock.ElectLeader(t.Context(), "e", nil, nothing),
		mysqllock.ElectLeader(t.Context(), "e", untilDone, nil),
		mysqllock.ElectLeader(t.Context(), "e", nil, nil),
	} {
		if want := `mysqllock: elect leader "e": becomeLeader or loseLeadership is nil; give both, if need be empty functions`; err == nil || err.Error() != want {
			t.Errorf("%v, not %q", err, want)
		}
	}
	if got := tableNames(t, open(t, config)); got != "" {
		t.Errorf("tables: %s", got)
	}
}

func TestElectLeaderWaitsForAServerThatIsNotUpYet(t *testing.T) {
	config := newConfig(t)
	network := newProxy(t, config.Addr)
	network.Set(mysqltest.Network{Refuse: true})
	setEnvironment(t, network.config(config))
	ctx, cancel := context.WithCancel(t.Context())
	led, returned := make(chan struct{}), make(chan error, 1)
	go func() {
		returned <- mysqllock.ElectLeader(ctx, "e", func(context.Context) { close(led) }, func() {})
	}()
	select {
	case err := <-returned:
		t.Fatalf("ended at once: %v", err)
	case <-led:
		t.Fatal("leads without a server")
	case <-time.After(500 * time.Millisecond):
	}
	network.forward()
	<-led
	cancel()
	if err := <-returned; err != nil {
		t.Error(err)
	}
}

func TestElectLeaderEndsTheWorkOfALostTermAndLeadsAgain(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	c := electQuickly(t, db, untilDone, nothing)
	for n := int64(1); n <= 2; n++ {
		term := c.leads(t)
		if c.led.Load() != n || c.lost.Load() != n-1 {
			t.Fatalf("in term %d it led %d times and lost %d times", n, c.led.Load(), c.lost.Load())
		}
		// Somebody else holds the lease, and renews it until the term has ended.
		eventually(t, patience, "the term ends", func() bool {
			exec(t, db, "UPDATE election_records SET leader_name = 'thief', leader_uid = 'thief', version = version + 1, last_update = UTC_TIMESTAMP(6), lease_duration_seconds = 1")
			return term.Err() != nil
		})
		eventually(t, patience, "loseLeadership is called", func() bool { return c.lost.Load() == n })
		if c.led.Load() != n {
			t.Errorf("led %d times in term %d", c.led.Load(), n)
		}
		exec(t, db, "UPDATE election_records SET leader_name = 'thief', version = version + 1")
	}
	term := c.leads(t)
	c.stops(t)
	if term.Err() == nil || c.led.Load() != 3 || c.lost.Load() != 3 {
		t.Errorf("%v; led %d times, lost %d times", term.Err(), c.led.Load(), c.lost.Load())
	}
}

func TestElectLeaderSaysNothingOfALossToWhoNeverLed(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	hold(t, db, "e", "another") // a lease of 15 s
	var polls atomic.Int64
	c := electQuickly(t, hookedPoolOf(t, db, func(query string, _ []driver.NamedValue) error {
		if strings.HasPrefix(query, "SELECT @@autocommit") {
			polls.Add(1)
		}
		return nil
	}), untilDone, nothing)
	eventually(t, patience, "some polls", func() bool { return polls.Load() >= 3 })
	stopped := time.Now()
	c.stops(t)
	if took := time.Since(stopped); took > 5*time.Second {
		t.Errorf("returned only %v after its context had ended", took)
	}
	if c.led.Load() != 0 || c.lost.Load() != 0 {
		t.Errorf("led %d times, lost %d times", c.led.Load(), c.lost.Load())
	}
	if got := holderOf(t, db, "e"); got != "another" {
		t.Errorf("held by %q", got)
	}
}

// What hands the lease over too early is two leaders at work.
func TestElectLeaderKeepsTheLeaseUntilTheWorkHasEnded(t *testing.T) {
	t.Parallel()
	for _, last := range []string{"becomeLeader", "loseLeadership"} {
		t.Run(last+" returns last", func(t *testing.T) {
			t.Parallel()
			db, _ := newTables(t)
			// Each callback returns when its channel is closed.
			gates := map[string]chan struct{}{"becomeLeader": make(chan struct{}), "loseLeadership": make(chan struct{})}
			callback := func(name string) {
				<-gates[name]
				if holderOf(t, db, "e") == "" {
					t.Errorf("released before %s returned", name)
				}
			}
			first := "becomeLeader"
			if last == first {
				first = "loseLeadership"
			}
			c := electQuickly(t, db, func(ctx context.Context) {
				<-ctx.Done()
				callback("becomeLeader")
			}, func() { callback("loseLeadership") })
			openFirst, openLast := sync.OnceFunc(func() { close(gates[first]) }), sync.OnceFunc(func() { close(gates[last]) })
			defer openFirst()
			defer openLast()
			term := c.leads(t)
			renewals(t, db, 3)
			if c.lost.Load() != 0 {
				t.Error("loseLeadership was called during the term")
			}

			c.stop()
			<-term.Done()
			eventually(t, patience, "loseLeadership is called while becomeLeader runs", func() bool { return c.lost.Load() == 1 })
			openFirst()
			renewals(t, db, 25) // longer than a lease
			openLast()
			c.returns(t)
			if c.err != nil || c.led.Load() != 1 || c.lost.Load() != 1 {
				t.Errorf("%v; led %d times, lost %d times", c.err, c.led.Load(), c.lost.Load())
			}
			if got := holderOf(t, db, "e"); got != "" {
				t.Errorf("not released: %q", got)
			}
		})
	}
}

// An elector whose renewals fail for RenewDeadline releases the lease before it ends the context of
// the work. If the release comes through, the next leader begins while the work has not even been
// told to end.
func TestElectLeaderDoesNotReleaseALostTermUnderTheWork(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var failing atomic.Bool
	var refused atomic.Int64
	c := electQuickly(t, hookedPoolOf(t, db, func(query string, args []driver.NamedValue) error {
		// A renewal's first value is the holder; a release's is empty.
		if failing.Load() && strings.HasPrefix(query, "UPDATE") && args[0].Value != "" {
			refused.Add(1)
			return errors.New("injected: the renewal does not come through")
		}
		return nil
	}), func(ctx context.Context) {
		<-ctx.Done()
		if holderOf(t, db, "e") == "" {
			t.Error("released while becomeLeader runs")
		}
	}, func() {
		if holderOf(t, db, "e") == "" {
			t.Error("released while loseLeadership runs")
		}
	})
	c.leads(t)
	failing.Store(true)
	eventually(t, patience, "the term is lost", func() bool { return c.lost.Load() == 1 })
	if refused.Load() == 0 {
		t.Error("no renewal was refused")
	}
	failing.Store(false)
	c.leads(t)
	c.stops(t)
	if got := holderOf(t, db, "e"); got != "" {
		t.Errorf("not released: %q", got)
	}
}

// hookedPoolOf is hookedPool on the database of another pool.
func hookedPoolOf(t testing.TB, db *sql.DB, before func(string, []driver.NamedValue) error) *sql.DB {
	t.Helper()
	config := server.Config()
	config.DBName = table(t, db, "SELECT DATABASE()")
	return hookedPool(t, config, before)
}

// The style of v0: becomeLeader starts something and returns.
func TestElectLeaderGoesOnWithATermWhenBecomeLeaderReturns(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	c := electQuickly(t, db, func(context.Context) {}, nothing)
	term := c.leads(t)
	renewals(t, db, 25) // longer than a lease
	if term.Err() != nil || c.led.Load() != 1 || c.lost.Load() != 0 {
		t.Errorf("%v; led %d times, lost %d times", term.Err(), c.led.Load(), c.lost.Load())
	}
	c.stops(t)
	if term.Err() == nil || c.led.Load() != 1 || c.lost.Load() != 1 {
		t.Errorf("%v; led %d times, lost %d times", term.Err(), c.led.Load(), c.lost.Load())
	}
	if got := holderOf(t, db, "e"); got != "" {
		t.Errorf("not released: %q", got)
	}
}

func TestElectLeaderOfTheSecondCallerLeadsAsSoonAsTheFirstHasReturned(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	const lease = time.Minute
	var working atomic.Bool
	work := func(ctx context.Context) {
		if !working.CompareAndSwap(false, true) {
			t.Error("both lead")
		}
		<-ctx.Done()
		renewals(t, db, 3) // takes its time
	}
	ending := func() {
		renewals(t, db, 6)
		working.Store(false)
	}
	first := elect(t, db, "e", lease, 30*time.Second, work, ending)
	first.leads(t)
	second := elect(t, open(t, config), "e", lease, 30*time.Second, work, ending)
	renewals(t, db, 10)
	if second.led.Load() != 0 {
		t.Fatal("the second leads beside the first")
	}
	first.stops(t)
	released := time.Now()
	second.leads(t)
	if took := time.Since(released); took > lease/4 {
		t.Errorf("the second leads only %v after the release", took)
	}
	second.stops(t)
}

// A candidate that is told to stop while its takeover is on the way holds the lease if the server
// applies it: nobody led, and nobody could lead for a lease.
func TestElectLeaderReleasesATakeoverThatAStopMeets(t *testing.T) {
	t.Parallel()
	const election = "takeover-that-a-stop-meets" // to be told from other tests' statements
	db, config := newTables(t)
	released := newLock(t, db, election, "z")
	if err := released.Create(t.Context(), record("")); err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("SELECT * FROM election_records FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	c := elect(t, openDSN(t, config, "interpolateParams=true"), election, time.Minute, 30*time.Second, untilDone, nothing)
	eventually(t, patience, "a takeover waits for the row", func() bool { return waiting(t, db, "UPDATE%election_fences AS f", election) })
	c.stop()
	// Abandoned statements wait on.
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	c.returns(t)
	eventually(t, patience, "the takeovers are done", func() bool { return !waiting(t, db, "UPDATE", election) })
	if got := holderOf(t, db, election); got != "" {
		t.Errorf("held by %q, which has returned", got)
	}
	if c.err != nil || c.led.Load() != 0 || c.lost.Load() != 0 {
		t.Errorf("%v; led %d times, lost %d times", c.err, c.led.Load(), c.lost.Load())
	}
}

func TestElectLeaderSurvivesAnOutageLongerThanTheLease(t *testing.T) {
	t.Parallel()
	own, config := ownServer(t)
	const lease = 5 * time.Second
	db := open(t, config)
	c := elect(t, db, "e", lease, 2*time.Second, untilDone, nothing)
	term := c.leads(t)
	if err := own.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	eventually(t, patience, "the term ends", func() bool { return term.Err() != nil && c.lost.Load() == 1 })
	if took := time.Since(killed); took > lease {
		t.Errorf("led for %v after its last renewal, with a lease of %v", took, lease)
	}
	eventually(t, patience, "the lease is over", func() bool { return time.Since(killed) > lease })
	if err := own.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.leads(t)
	if c.led.Load() != 2 || c.lost.Load() != 1 {
		t.Errorf("led %d times, lost %d times", c.led.Load(), c.lost.Load())
	}
	renewals(t, db, 2)
	c.stops(t)
	if c.lost.Load() != 2 {
		t.Errorf("lost %d times", c.lost.Load())
	}
}

func TestElectLeaderTermsOfCandidatesThatComeAndGoNeverOverlap(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	var (
		working atomic.Int64 // terms from the call of becomeLeader to the end of both callbacks
		terms   atomic.Int64
		leaders [4]atomic.Int64
		all     sync.WaitGroup
	)
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	for i := range leaders {
		db := open(t, config)
		all.Add(1)
		go func() {
			defer all.Done()
			for ctx.Err() == nil {
				var callbacks atomic.Int64
				end := func() {
					// Work takes its time to end, in one callback or the other.
					for range rand.IntN(20) {
						if _, err := db.Exec("DO 0"); err != nil {
							t.Error(err)
						}
					}
					if callbacks.Add(-1) == 0 {
						working.Add(-1)
					}
				}
				life, cancel := context.WithTimeout(ctx, time.Duration(50+rand.IntN(500))*time.Millisecond)
				err := mysqllock.ElectLeaderWithTimings(life, db, "e", 6*time.Second, 4*time.Second, 50*time.Millisecond, func(ctx context.Context) {
					if n := working.Add(1); n != 1 {
						t.Errorf("%d at work", n)
					}
					callbacks.Store(2)
					leaders[i].Add(1)
					if terms.Add(1) >= 30 {
						stop()
					}
					if i%2 == 0 { // the style of v0 otherwise
						<-ctx.Done()
					}
					end()
				}, end)
				cancel()
				if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
					t.Error(err)
					return
				}
				if callbacks.Load() != 0 {
					t.Errorf("returned, and %d callbacks have not", callbacks.Load())
				}
			}
		}()
	}
	all.Wait()
	led := 0
	for i := range leaders {
		if leaders[i].Load() > 0 {
			led++
		}
	}
	t.Logf("%d terms of %d candidates", terms.Load(), led)
	if terms.Load() < 30 || led < 2 {
		t.Errorf("%d terms of %d candidates show nothing", terms.Load(), led)
	}
}
