package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	"pgregory.net/rapid"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// collations are those of the list that the server knows.
func collations(t testing.TB) []string {
	t.Helper()
	db := openOne(t, server.Config(), "")
	var known []string
	for _, c := range []string{
		"utf8mb4_unicode_ci", "utf8mb4_general_ci", "utf8mb4_bin", "latin1_swedish_ci", "latin1_bin", "binary", "gbk_chinese_ci",
		"utf8mb4_unicode_520_nopad_ci", "utf8mb4_uca1400_ai_ci", // MariaDB's
		"utf8mb4_0900_ai_ci", "utf8mb4_0900_bin", // MySQL's
	} {
		_, err := db.ExecContext(t.Context(), `SET collation_connection = '`+c+`'`)
		switch {
		case err == nil:
			known = append(known, c)
		case !strings.Contains(err.Error(), "Unknown collation"):
			t.Fatal(err)
		}
	}
	if len(known) < 8 {
		t.Fatalf("the server knows only %v", known)
	}
	return known
}

// An application's DSN, or the server's init_connect, may give sessions a collation of any kind.
// What the lock compares is compared by its tables'.
func TestSessionOfAnyCollationWillDo(t *testing.T) {
	t.Parallel()
	for _, collation := range collations(t) {
		for _, parameters := range []string{"", "interpolateParams=true&"} {
			t.Run(parameters+collation, func(t *testing.T) {
				parameters += "collation_connection=" + url.QueryEscape("'"+collation+"'")
				elections := []string{"e"}
				if strings.HasPrefix(collation, "utf8mb4") {
					elections = append(elections, "é選挙")
				}
				config := newConfig(t)
				exec(t, open(t, config), v0Table+"DEFAULT CHARACTER SET latin1")
				tryAll(t, openDSN(t, config, parameters), elections)
				outside := config.Clone()
				outside.DBName = ""
				tryAll(t, openDSN(t, outside, parameters), elections, mysqllock.WithDatabase(config.DBName), mysqllock.WithServerClock())
			})
		}
	}
}

// tryAll makes each kind of call.
func tryAll(t *testing.T, db *sql.DB, elections []string, opts ...mysqllock.Option) {
	t.Helper()
	for range 2 { // it makes the tables, and finds them current
		mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), db, opts...) })
	}
	found, err := mysqllock.Preflight(t.Context(), db, opts...)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f.Severity == mysqllock.SeverityError {
			t.Errorf("Preflight found %v", f)
		}
	}
	for _, election := range elections {
		for _, batch := range [][]mysqllock.Option{nil, {mysqllock.WithBatch(batchInCompany(t, db))}} {
			if batch != nil && len(opts) > 0 {
				continue // the company has no options
			}
			lock := newLock(t, db, election, "a", append(batch, opts...)...)
			mustSucceed(t, "a takeover", func() error { return tryTakeOver(t.Context(), lock) })
			mustSucceed(t, "Get", get(t.Context(), lock))
			mustSucceed(t, "a renewal", update(t.Context(), lock, record("a")))
			mustSucceed(t, "Transact", func() error { return lock.Transact(t.Context(), db, nil, nop) })
			if got := getElection(t, db, election, opts...); got.Name != election || got.Holder != "a" {
				t.Errorf("GetElection returned %+v", got)
			}
			mustSucceed(t, "a release", update(t.Context(), lock, recordFor("", 1)))
		}
	}
	if all, err := mysqllock.ListElections(t.Context(), db, opts...); err != nil || len(all) < len(elections) {
		t.Errorf("ListElections returned %v, %v", all, err)
	}
}

// Whatever the operation, it is done at once, in another session, and another session sees it.
func TestSessionThatIsUnfitIsDiscardedAndTheOperationDoneInAnother(t *testing.T) {
	admin, config := newTables(t)
	newLedger(t, config)
	other := otherDatabase(t)
	readOnly := fault{name: "READ ONLY", statements: []string{`SET SESSION TRANSACTION READ ONLY`}}
	for _, f := range append(slices.Clone(faults), readOnly) {
		for _, pool := range ownAndOpened {
			t.Run(f.name+", "+pool.name, func(t *testing.T) {
				db := newSharedPool(pool.open(t, config), 1)
				election := f.name + pool.name
				lock, rival := newLock(t, db.DB, election, "a"), newLock(t, admin, election, "b")
				logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
				ctx := klog.NewContext(t.Context(), logger)
				poll := func() error {
					_, _, err := lock.Get(ctx)
					if apierrors.IsNotFound(err) {
						return nil
					}
					return err
				}
				for i, step := range []struct {
					what, holder string // afterwards
					call         func() error
				}{
					{"poll", "", poll},
					{"Create", "a", create(ctx, lock, record("a"))},
					{"renewal", "a", update(ctx, lock, record("a"))},
					{"renewal", "a", update(ctx, lock, record("a"))},
					{"poll", "b", func() error { takeOver(t, rival); return poll() }},
					{"takeover", "a", update(ctx, lock, record("a"))},
					{"release", "", update(ctx, lock, recordFor("", 1))},
				} {
					if i == 0 && f.isUse {
						mustSucceed(t, "the first poll", poll)
					}
					if n := len(db.unfit); n == 0 || !f.isIn(t, admin, db.unfit[n-1]) { // as a poll may leave it
						db.spoil(t, f, other)
					}
					mustSucceed(t, step.what, step.call)
					holder := table(t, admin, `SELECT leader_name FROM election_records WHERE election_name = ?`, election)
					if holder != step.holder {
						t.Errorf("after the %s the election is held by %q, not by %q", step.what, holder, step.holder)
					}
					if step.what != "poll" {
						isGone := func() bool {
							return !slices.ContainsFunc(db.unfit, func(id int64) bool { return f.isIn(t, admin, id) })
						}
						eventually(t, 10*time.Second, "the session was given up by the "+step.what, isGone)
					}
				}
				lines := logger.GetSink().(ktesting.Underlier).GetBuffer().Data()
				// MySQL doesn't say what it rolled back, and the driver, with rejectReadOnly, not
				// why it gave a session up.
				silent := f.isUse || f.isTransaction && !server.MariaDB() || f.name == readOnly.name
				if n := len(lines); n > 1 || n == 0 && !silent {
					t.Errorf("logged %d times, want once: %v", n, lines)
				}
			})
		}
	}
}

// unfitConnector makes sessions that are all unfit.
type unfitConnector struct {
	driver.Connector
	statement string
	made      atomic.Int64
}

func (c *unfitConnector) Connect(ctx context.Context) (driver.Conn, error) {
	c.made.Add(1)
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	_, err = conn.(driver.ExecerContext).ExecContext(ctx, c.statement, nil)
	return conn, err
}

// As with init_connect: no other session is better, and nobody may try for ever.
func TestSessionsThatAreAllUnfitAreAnErrorAfterThree(t *testing.T) {
	admin, config := newTables(t)
	newLedger(t, config)
	leader := newLock(t, admin, "e", "leader")
	takeOver(t, leader)
	for statement, why := range map[string]string{
		`SET autocommit = 0`:                "autocommit",
		`LOCK TABLES ledger READ`:           "1100",
		`SET SESSION TRANSACTION READ ONLY`: "1792",
	} {
		t.Run(statement, func(t *testing.T) {
			connector := &unfitConnector{Connector: connectorOf(t, config, ""), statement: statement}
			db := sql.OpenDB(connector)
			t.Cleanup(func() { _ = db.Close() })
			lock := newLock(t, db, "e", "a")
			_ = get(t.Context(), lock)() // fails as well, unless it is a read-only session
			before := connector.made.Load()
			mustRefuse(t, admin, "Create", why, create(t.Context(), lock, record("a")))
			if n := connector.made.Load() - before; n > 3 {
				t.Errorf("%d sessions for one operation", n)
			}
		})
	}
}

// sharedPool is a lock's and an application's.
type sharedPool struct {
	*sql.DB
	size int

	mu    sync.Mutex // held by the application while it holds sessions
	unfit []int64    // ids of sessions
}

func newSharedPool(db *sql.DB, size int) *sharedPool {
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return &sharedPool{DB: db, size: size}
}

// take takes n sessions. The first is the one that a lock would have been given.
func (p *sharedPool) take(ctx context.Context, n int) (sessions []*sql.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for range n {
		session, err := p.Conn(ctx)
		if err != nil {
			return sessions, err
		}
		sessions = append(sessions, session)
	}
	return sessions, nil
}

// giveBack gives sessions back, of which the last is handed out next.
func giveBack(sessions ...*sql.Conn) {
	for _, session := range sessions {
		_ = session.Close()
	}
}

// spoil leaves an unfit session in the pool, which the lock's next operation gets.
func (p *sharedPool) spoil(t testing.TB, f fault, other string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	sessions, err := p.take(t.Context(), p.size)
	if err != nil {
		giveBack(sessions...)
		t.Fatal(err)
	}
	defer func() { giveBack(append(sessions[1:], sessions[0])...) }()
	p.unfit = append(p.unfit, f.spoil(t, sessions[0], other))
}

// rotate has the next operation get another session, so that an unfit one among fit ones is met now
// and then.
func (p *sharedPool) rotate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	sessions, _ := p.take(context.Background(), p.Stats().Idle)
	if len(sessions) > 1 {
		slices.Reverse(sessions[1:])
	}
	giveBack(sessions...)
}

// rotating is a lock whose pool's sessions take turns.
type rotating struct {
	*mysqllock.Lock
	pool *sharedPool
}

func (l rotating) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	defer l.pool.rotate()
	return l.Lock.Get(ctx)
}

func (l rotating) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	defer l.pool.rotate()
	return l.Lock.Create(ctx, record)
}

func (l rotating) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	defer l.pool.rotate()
	return l.Lock.Update(ctx, record)
}

// sharing is a case of TestSessionsOfASharedPoolAreUsedOnlyIfFit.
type sharing struct {
	fault
	open            func(testing.TB, *mysql.Config) *sql.DB
	size            int  // sessions of each pool
	leader, standby bool // whose pools are spoiled
}

func TestSessionsOfASharedPoolAreUsedOnlyIfFit(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	newLedger(t, a.config)
	other := otherDatabase(t)
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			var tests []test
			for _, pool := range ownAndOpened {
				for _, size := range []int{1, 4} {
					for _, of := range []string{"leader", "standby", "leader and standby"} {
						s := sharing{f, pool.open, size, of != "standby", of != "leader"}
						tests = append(tests, test{fmt.Sprintf("%s, %d sessions, of %s", pool.name, size, of), func(t *testing.T) {
							run := func(c *contest) hazardResult { return s.run(c, other) }
							t.Log(a.hold(t, true, hasty, run, unbroken))
						}})
					}
				}
			}
			together(t, tests...)
		})
	}
}

// start starts a candidate on that pool.
func (s sharing) start(c *contest, pool *sharedPool, identity string) (*candidate, *mysqllock.Lock) {
	w := c.lock(pool.DB, identity)
	lock := w.Interface.(*mysqllock.Lock)
	w.Interface = rotating{lock, pool}
	return c.run(w), lock
}

// run has a leader, whose lease nothing may cost, and then that leader die, for whom the standby
// must come.
func (s sharing) run(c *contest, other string) hazardResult {
	pools := map[bool]*sharedPool{
		true: newSharedPool(s.open(c, c.config), s.size), false: newSharedPool(s.open(c, c.config), s.size),
	} // by whether it is the leader's
	if s.leader && !s.isUse {
		pools[true].spoil(c, s.fault, other)
	}
	leader, leadersLock := s.start(c, pools[true], "leader")
	leader.mustLead(c, c.pace.takeoverWithin())
	token, _ := leadersLock.FencingToken()
	standby, standbysLock := s.start(c, pools[false], "standby")
	eventually(c, 20*time.Second, "the standby polls", func() bool { return standby.polls() > 1 })
	if s.end(c, pools) > 0 && s.size == 1 { // of others one has not had its turn yet
		c.Error("the leader leads in an unfit session")
		s.watch(c, pools, c.pace.lease)
	}
	if s.leader {
		pools[true].spoil(c, s.fault, other)
	}
	if s.standby {
		pools[false].spoil(c, s.fault, other)
	}
	since := time.Now()

	// A poll, after the jitter of a retry, in which the session is given up.
	retry := time.Duration((1+leaderelection.JitterFactor)*float64(c.pace.retry)) + c.pace.operationTimeout() + stall
	gone := s.watch(c, pools, c.pace.lease+retry*time.Duration(s.size))
	for isLeaders, took := range gone {
		limit := retry * time.Duration(s.size) // a session among fit ones waits for its turn
		if s.isTransaction && !isLeaders && !server.MariaDB() {
			// MySQL doesn't tell a poll of an open transaction. Fit sessions among others do, or
			// the takeover after a lease in which nothing changed.
			limit += c.pace.lease
		}
		if took > limit {
			c.Errorf("the unfit session (the leader's: %t) was given up after %v, want at most %v", isLeaders, took, limit)
		}
	}
	if s.end(c, pools) > 0 { // with whatever was done in them
		c.Error("unfit sessions are still in the pool")
		s.watch(c, pools, c.pace.lease+c.pace.retry)
	}
	if n := len(leader.led(time.Now())); n != 1 || !leader.leads() {
		c.Errorf("the leader had %d terms (leads now: %t)", n, leader.leads())
	}
	if now, held := leadersLock.FencingToken(); !held || now != token {
		c.Errorf("the leader's token is %d (held: %t), not %d", now, held, token)
	}
	longest := time.Duration(0)
	for _, u := range leader.renewals() {
		if u.returned.After(since) {
			longest = max(longest, u.returned.Sub(since))
			since = u.returned
		}
	}
	// Between them at most one that failed.
	if limit := 2*c.pace.retry + c.pace.operationTimeout() + stall; longest > limit {
		c.Errorf("no renewal for %v, want at most %v", longest, limit)
	}

	leader.stop()
	giveUp(c, pools[true])
	died := time.Now()
	standby.mustLead(c, c.pace.takeoverWithin())
	took := time.Since(died)
	if next, held := standbysLock.FencingToken(); !held || next <= token {
		c.Errorf("the successor's token is %d (held: %t) after %d", next, held, token)
	}
	standby.mustRenew(c, 2)
	o := overlapped(leader, standby)
	o.note = fmt.Sprintf("given up after %v, longest pause between renewals %v, takeover %v after the leader's death", gone, longest.Round(time.Millisecond), took.Round(time.Millisecond))
	return o
}

// watch returns how long it took until no session of a pool was unfit. It waits for some polls and
// renewals at least, and for that long at most.
func (s sharing) watch(c *contest, pools map[bool]*sharedPool, d time.Duration) map[bool]time.Duration {
	since := time.Now()
	gone := map[bool]time.Duration{}
	eventually(c, d+20*time.Second, "the time is over", func() bool {
		left := false
		for isLeaders, pool := range pools {
			isUnfit := func(id int64) bool { return s.isIn(c, c.db, id) }
			if slices.ContainsFunc(pool.unfit, isUnfit) {
				gone[isLeaders] = time.Since(since)
				left = true
			}
		}
		return time.Since(since) > d || !left && time.Since(since) > 5*c.pace.retry
	})
	return gone
}

// end ends the unfit sessions that are left, and returns how many.
func (s sharing) end(c *contest, pools map[bool]*sharedPool) (n int) {
	for _, pool := range pools {
		for _, id := range pool.unfit {
			if s.isIn(c, c.db, id) {
				n++
				_, _ = c.db.ExecContext(c.Context(), `KILL `+fmt.Sprint(id)) // unless it has just ended
			}
		}
	}
	return n
}

// giveUp closes a pool, as the end of a process does.
func giveUp(t testing.TB, pool *sharedPool) {
	t.Helper()
	if err := pool.Close(); err != nil {
		t.Error(err)
	}
}

// A transaction that nobody ends keeps its session, and the only one of a pool is then missing: an
// error that says so, in time, and a leader that steps down.
func TestSessionThatATransactionKeepsCostsTheLeaseInGoodOrder(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	var tests []test
	for _, pool := range ownAndOpened {
		for _, size := range []int{1, 4} {
			tests = append(tests, test{fmt.Sprintf("%s, %d sessions", pool.name, size), func(t *testing.T) {
				t.Log(a.hold(t, true, hasty, func(c *contest) hazardResult { return keptSession(c, pool.open(c, c.config), size) }, unbroken))
			}})
		}
	}
	together(t, tests...)
}

func keptSession(c *contest, db *sql.DB, size int) hazardResult {
	pool := newSharedPool(db, size)
	w := c.lock(pool.DB, "leader")
	lock := w.Interface
	leader := c.run(w)
	leader.mustLead(c, c.pace.takeoverWithin())
	standby := c.follow(1)[0]
	tx, err := pool.BeginTx(c.Context(), nil)
	if err != nil {
		c.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if size > 1 {
		leader.mustRenew(c, 5)
		leader.cancel()
	}
	standby.mustLead(c, c.pace.takeoverWithin())
	leader.mustEnd(c)
	if size == 1 {
		started := time.Now()
		_, _, err = lock.Get(c.Context())
		if took := time.Since(started); took > c.pace.operationTimeout()+stall || err == nil || !strings.Contains(err.Error(), "1 in use") {
			c.Errorf("after %v: error %v, want one that has the pool's statistics", took, err)
		}
	}
	return overlapped(leader, standby)
}

// A session's sql_select_limit cuts what has no limit of its own, without a word.
func TestSessionWithASelectLimitLosesNothing(t *testing.T) {
	for _, parameters := range []string{"sql_select_limit=1", "sql_select_limit=3&interpolateParams=true"} {
		t.Run(parameters, func(t *testing.T) {
			admin, config := newTables(t)
			const n = 8
			for i := range n {
				hold(t, admin, fmt.Sprint("e", i), "leader")
			}
			db := openDSN(t, newAccount(t, config, ordinary...), parameters)
			mustSucceed(t, "Migrate of current tables", func() error { return mysqllock.Migrate(t.Context(), db) })
			all, err := mysqllock.ListElections(t.Context(), db)
			if err != nil || len(all) != n {
				t.Errorf("ListElections returned %d of %d (%v)", len(all), n, err)
			}
			batch := &mysqllock.Batch{}
			var polls calls
			for i := range n {
				lock := newLock(t, db, fmt.Sprint("e", i), "follower", mysqllock.WithBatch(batch))
				polls.start(func() {
					if err := get(t.Context(), lock)(); err != nil {
						t.Error(err)
					}
				})
			}
			polls.Wait()
		})
	}
}

// With a limit of 0 every table looks empty. That must not pass for an election without a row, nor
// for a table without elections.
func TestSessionThatReturnsNoRowsIsRefused(t *testing.T) {
	admin, config := newTables(t)
	hold(t, admin, "e", "leader")
	db := openDSN(t, config, "sql_select_limit=0")
	err := get(t.Context(), newLock(t, db, "e", "a"))()
	if err == nil || apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "sql_select_limit") {
		t.Errorf("Get returned %v", err)
	}
	if all, err := mysqllock.ListElections(t.Context(), db); err != nil || len(all) != 1 {
		t.Errorf("ListElections returned %v, %v", all, err)
	}
	if got := getElection(t, db, "e"); got.Holder != "leader" {
		t.Errorf("GetElection returned %+v", got)
	}
}

// withParams is Open's pool with session variables.
func withParams(name, variable, value string) session {
	return session{name, func(t testing.TB, config *mysql.Config) *sql.DB {
		t.Helper()
		config = config.Clone()
		config.Params = map[string]string{variable: "'" + value + "'"}
		return open(t, config)
	}}
}

// settings are those of a DSN or a config that must make no difference.
func settings() []session {
	return []session{
		{"Open", open},
		withDSN("driver's defaults", ""),
		withDSN("parseTime, loc, time_zone", "parseTime=true&loc=America%2FNew_York&time_zone='%2B05:30'"),
		withDSN("clientFoundRows", "clientFoundRows=true"),
		withDSN("interpolateParams, charset", "interpolateParams=true&charset=utf8mb4"),
	}
}

// sqlModes are those that change what a statement means, and the absence of all.
func sqlModes() []string {
	modes := []string{"", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "PIPES_AS_CONCAT", "ANSI,TRADITIONAL"}
	if server.MariaDB() {
		modes = append(modes, "EMPTY_STRING_IS_NULL", "ORACLE")
	}
	return modes
}

// inMode are a pool whose driver quotes values and one whose server does.
func inMode(mode string) []session {
	return []session{
		withParams("Open, sql_mode "+mode, "sql_mode", mode),
		withDSN("prepared, sql_mode "+mode, "sql_mode="+url.QueryEscape("'"+mode+"'")),
	}
}

var optionalName = rapid.OneOf(rapid.Just(""), validName)

// instant is what a DATETIME(6) holds, in some zone, or zero.
var instant = rapid.Custom(func(t *rapid.T) metav1.Time {
	first := time.Date(1000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	last := time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC).UnixMicro()
	micros := rapid.OneOf(
		rapid.Int64Range(first, last),
		rapid.Int64Range(0, time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()),
		rapid.SampledFrom([]int64{first, last, -1, 0, 1, time.Date(2026, 3, 8, 7, 0, 0, 0, time.UTC).UnixMicro()}),
	).Draw(t, "micros")
	if rapid.IntRange(0, 9).Draw(t, "zero") == 0 {
		return metav1.Time{}
	}
	zone := time.FixedZone("", rapid.IntRange(-14*3600, 14*3600).Draw(t, "zone"))
	return metav1.NewTime(time.UnixMicro(micros).In(zone))
})

var number31 = rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(1, math.MaxInt32), rapid.Just(math.MaxInt32))

// validRecord is one of the given holder.
func validRecord(holder string) *rapid.Generator[resourcelock.LeaderElectionRecord] {
	return rapid.Custom(func(t *rapid.T) resourcelock.LeaderElectionRecord {
		return resourcelock.LeaderElectionRecord{
			HolderIdentity:       holder,
			LeaseDurationSeconds: number31.Draw(t, "lease"),
			AcquireTime:          instant.Draw(t, "acquired"),
			RenewTime:            instant.Draw(t, "renewed"),
			LeaderTransitions:    number31.Draw(t, "transitions") - 1 + rapid.IntRange(0, 1).Draw(t, "one more"),
			Strategy:             coordinationv1.CoordinatedLeaseStrategy(optionalName.Draw(t, "strategy")),
			PreferredHolder:      optionalName.Draw(t, "preferred holder"),
		}
	})
}

// sameInstant: a time comes back in UTC.
var sameInstant = cmp.Comparer(func(a, b metav1.Time) bool { return a.Equal(&b) && a.IsZero() == b.IsZero() })

func TestSessionOfAnyKindReturnsAnyValidRecordAndName(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	check := func(name string, sessions ...session) {
		t.Run(name, func(t *testing.T) {
			var pools []*sql.DB
			for _, s := range sessions {
				pools = append(pools, s.open(t, config))
			}
			rapid.Check(t, func(rt *rapid.T) {
				roundTrip(t, rt, admin, pools[rapid.IntRange(0, len(pools)-1).Draw(rt, "pool")])
			})
		})
	}
	for _, s := range settings() {
		check(s.name, s)
	}
	for _, mode := range sqlModes() {
		check("sql_mode "+mode, inMode(mode)...)
	}
}

// roundTrip checks one record through Create and one through Update, as the writer and as another
// candidate read them.
func roundTrip(t *testing.T, rt *rapid.T, admin, db *sql.DB) {
	t.Helper()
	election, identity := validName.Draw(rt, "election"), validName.Draw(rt, "identity")
	exec(t, admin, `DELETE FROM election_records`)
	exec(t, admin, `DELETE FROM election_fences`)
	newLock := func(identity string) *mysqllock.Lock {
		lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: identity}, unhurried)
		if err != nil {
			rt.Fatalf("New(%q) for %q: %v", election, identity, err)
		}
		return lock
	}
	writer, reader := newLock(identity), newLock("another")
	if _, _, err := writer.Get(t.Context()); !apierrors.IsNotFound(err) {
		rt.Fatalf("Get of an election that isn't there: %v", err)
	}
	for _, write := range []struct {
		name string
		do   func(resourcelock.LeaderElectionRecord) error
	}{
		{"Create", func(r resourcelock.LeaderElectionRecord) error { return writer.Create(t.Context(), r) }},
		{"Update", func(r resourcelock.LeaderElectionRecord) error { return writer.Update(t.Context(), r) }},
	} {
		want := validRecord(identity).Draw(rt, write.name)
		if err := write.do(want); err != nil {
			rt.Fatalf("%s: %v", write.name, err)
		}
		for _, lock := range []*mysqllock.Lock{writer, reader} {
			got, _, err := lock.Get(t.Context())
			if err != nil {
				rt.Fatalf("Get after %s: %v", write.name, err)
			}
			if diff := cmp.Diff(want, *got, sameInstant); diff != "" {
				rt.Fatalf("%s, then Get by %q:\n%s", write.name, lock.Identity(), diff)
			}
		}
	}
}

// lifecycle is what an election goes through, with the outcomes that client-go relies on.
func lifecycle(t *testing.T, db *sql.DB, election string) {
	t.Helper()
	ctx := t.Context()
	a, b := newLock(t, db, election, "ä", unhurried), newLock(t, db, election, "b", unhurried)
	get := func(lock *mysqllock.Lock) error {
		_, _, err := lock.Get(ctx)
		return err
	}
	same := record("ä") // written twice: not even a time differs
	for i, step := range []struct {
		name, want string
		err        error
	}{
		{"Get of nothing", "NotFound", get(a)},
		{"Create", "ok", a.Create(ctx, same)},
		{"Create of what is there", "AlreadyExists", b.Create(ctx, record("b"))},
		{"renewal", "ok", a.Update(ctx, same)},
		{"the same renewal", "ok", a.Update(ctx, same)},
		{"Get by a follower", "ok", get(b)},
		{"takeover", "ok", b.Update(ctx, record("b"))},
		{"renewal by the former leader", "Conflict", a.Update(ctx, same)},
		{"release by the former leader", "other error", a.Update(ctx, record(""))},
		{"renewal", "ok", b.Update(ctx, record("b"))},
		{"Get by the former leader", "ok", get(a)},
		{"release", "ok", b.Update(ctx, record(""))},
		{"takeover of what has been released since", "Conflict", a.Update(ctx, record("ä"))},
		{"Get of a released election", "ok", get(a)},
		{"takeover", "ok", a.Update(ctx, record("ä"))},
	} {
		if got := outcome(step.err); got != step.want {
			t.Errorf("step %d, %s: %v, not %s", i, step.name, step.err, step.want)
		}
	}
	if row := readRow(t, db, election); row.Holder != "ä" {
		t.Errorf("the row is %+v", row)
	}
	if token, held := a.FencingToken(); !held || token == 0 {
		t.Errorf("the last leader's token is %d (held: %v)", token, held)
	}
}

func TestSessionOfAnyKindLetsAnElectionGoOn(t *testing.T) {
	_, config := newTables(t)
	all := append(settings(), isolations()...)
	for _, mode := range sqlModes() {
		all = append(all, inMode(mode)...)
	}
	for i, s := range all {
		t.Run(s.name, func(t *testing.T) {
			lifecycle(t, s.open(t, config), fmt.Sprintf("ns/life-%d", i))
		})
	}
}

// With autocommit off every write is "done", and gone when the session ends.
func TestSessionWithAutocommitOffIsRefusedAndWritesNothing(t *testing.T) {
	for _, parameters := range []string{"", "interpolateParams=true", "clientFoundRows=true"} {
		t.Run(parameters, func(t *testing.T) {
			admin, config := newTables(t)
			t.Run("by the DSN", func(t *testing.T) {
				lock := newLock(t, openDSN(t, config, parameters+"&autocommit=0"), "new", "a")
				want := `mysqllock: get "new": the session has autocommit off, so that no write would ever be committed; ` +
					`remove autocommit=0 from the DSN, the server's configuration or init_connect`
				mustRefuse(t, admin, "Get", want, get(t.Context(), lock))
				mustRefuse(t, admin, "Create", "autocommit", create(t.Context(), lock, record("a")))
				mustRefuse(t, admin, "Create of a released election", "autocommit", create(t.Context(), lock, recordFor("", 1)))
			})
			t.Run("by SET, before a takeover", func(t *testing.T) {
				db, spoil, heal := openSpoilable(t, config, parameters)
				leader, standby := newLock(t, admin, "takeover", "a"), newLock(t, db, "takeover", "b")
				mustSucceed(t, "Create", create(t.Context(), leader, record("a")))
				mustSucceed(t, "Get", get(t.Context(), standby))
				spoil(`SET SESSION autocommit = 0`)
				mustRefuse(t, admin, "Get", "autocommit", get(t.Context(), standby))
				mustRefuse(t, admin, "Update", "autocommit", update(t.Context(), standby, record("b")))
				// What the refused sessions did must hold nobody up.
				third := newLock(t, admin, "takeover", "c")
				mustSucceed(t, "a renewal", update(t.Context(), leader, record("a")))
				mustSucceed(t, "Get", get(t.Context(), third))
				mustSucceed(t, "a takeover", update(t.Context(), third, record("c")))
				heal(`SET SESSION autocommit = 1`)
				mustSucceed(t, "Get", get(t.Context(), standby))
				mustSucceed(t, "Update", update(t.Context(), standby, record("b")))
			})
			t.Run("by SET, in a term", func(t *testing.T) {
				db, spoil, heal := openSpoilable(t, config, parameters)
				lock := newLock(t, db, "term", "a")
				mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
				spoil(`SET SESSION autocommit = 0`)
				mustRefuse(t, admin, "renewal", "autocommit", update(t.Context(), lock, record("a")))
				mustRefuse(t, admin, "release", "autocommit", update(t.Context(), lock, recordFor("", 1)))
				heal(`SET SESSION autocommit = 1`)
				mustSucceed(t, "Get", get(t.Context(), lock))
				mustSucceed(t, "Update", update(t.Context(), lock, record("a")))
			})
		})
	}
}

// In another character set a name is another one: Get would find nothing, and Create succeed.
func TestSessionWithAnotherCharacterSetRefusesANonASCIIName(t *testing.T) {
	admin, config := newTables(t)
	for _, name := range []struct{ election, identity string }{{"élection", "a"}, {"e", "é"}, {"日本", "日本"}, {"🦭", "a"}} {
		t.Run(name.election+" "+name.identity, func(t *testing.T) {
			t.Run("by the DSN", func(t *testing.T) {
				lock := newLock(t, openDSN(t, config, "charset=latin1"), name.election, name.identity)
				want := `mysqllock: get "` + name.election + `": the session's character set is latin1, in which the election's name`
				mustRefuse(t, admin, "Get", want, get(t.Context(), lock))
				mustRefuse(t, admin, "Create", "character set", create(t.Context(), lock, record(name.identity)))
				mustRefuse(t, admin, "Create of a released election", "character set", create(t.Context(), lock, recordFor("", 1)))
			})
			for _, set := range []string{
				"NAMES latin1", "NAMES utf8", "NAMES gbk", "NAMES binary", "CHARACTER SET latin1",
				"character_set_connection = latin1", "character_set_client = latin1", "character_set_results = latin1",
			} {
				t.Run("by SET "+set, func(t *testing.T) {
					db, spoil, heal := openSpoilable(t, config, "interpolateParams=true")
					defer exec(t, admin, `DELETE FROM election_records`)
					leader := newLock(t, db, name.election, name.identity)
					mustSucceed(t, "Create", create(t.Context(), leader, record(name.identity)))
					standby := newLock(t, db, name.election, name.identity+" 2")
					mustSucceed(t, "Get", get(t.Context(), standby))

					spoil(`SET ` + set)
					mustRefuse(t, admin, "Get", "character set", get(t.Context(), standby))
					if set != "character_set_results = latin1" { // in which a write reads nothing
						mustRefuse(t, admin, "renewal", "character set", update(t.Context(), leader, record(name.identity)))
						mustRefuse(t, admin, "takeover", "character set", update(t.Context(), standby, record(name.identity+" 2")))
						mustRefuse(t, admin, "release", "character set", update(t.Context(), leader, recordFor("", 1)))
					}
					heal(`SET NAMES utf8mb4`)
					mustSucceed(t, "Get", get(t.Context(), leader))
					mustSucceed(t, "Update", update(t.Context(), leader, record(name.identity)))
				})
			}
		})
	}
}

// oddOneOut makes the sessions of a pool; one of them is unfit.
type oddOneOut struct {
	driver.Connector // of good sessions
	unfit            driver.Connector
	odd              int64
	made             atomic.Int64
}

func (c *oddOneOut) Connect(ctx context.Context) (driver.Conn, error) {
	if c.made.Add(1) == c.odd {
		return c.unfit.Connect(ctx)
	}
	return c.Connector.Connect(ctx)
}

// Sessions of one pool may differ, as after a SET by another user of the pool: whichever of its
// statements an operation would have sent to the unfit one, it is done in another.
func TestSessionOfAnOperationIsFitWhicheverIsUnfit(t *testing.T) {
	admin, config := newTables(t)
	for parameters, election := range map[string]string{"autocommit=0": "e", "charset=latin1": "é"} {
		t.Run(parameters, func(t *testing.T) {
			good, unfit := connectorOf(t, config, ""), connectorOf(t, config, parameters)
			met := 0
			for n := range int64(12) {
				election := fmt.Sprint(election, n)
				sessions := &oddOneOut{Connector: good, unfit: unfit, odd: n + 1}
				pool := sql.OpenDB(sessions)
				pool.SetMaxIdleConns(-1) // a session for each operation
				lock, other := newLock(t, pool, election, "a"), newLock(t, admin, election, "b")
				for _, step := range []struct {
					call   func() error
					holder string
				}{
					{create(t.Context(), lock, record("a")), "a"},
					{update(t.Context(), lock, record("a")), "a"},
					{func() error {
						return errors.Join(get(t.Context(), other)(), update(t.Context(), other, record("b"))())
					}, "b"},
					{get(t.Context(), lock), "b"},
					{update(t.Context(), lock, record("a")), "a"},
					{update(t.Context(), lock, record("a")), "a"},
					{update(t.Context(), lock, recordFor("", 1)), ""},
				} {
					mustSucceed(t, fmt.Sprint("with session ", n, " unfit"), step.call)
					if holder := holderOf(t, admin, election); holder != step.holder {
						t.Fatalf("session %d: done, but it is held by %q, not by %q", n, holder, step.holder)
					}
				}
				if sessions.made.Load() >= sessions.odd {
					met++
				}
				mustSucceed(t, "Close", pool.Close)
			}
			if met < 6 {
				t.Errorf("only %d sessions were met", met)
			}
		})
	}
}

func TestSessionOfEveryKindThatAUserMayHaveServesAnElection(t *testing.T) {
	for _, parameters := range []string{
		"",
		"interpolateParams=true",
		"clientFoundRows=true",
		"clientFoundRows=true&interpolateParams=true",
		"parseTime=true&loc=Local&time_zone=%27-11%3A00%27",
		"charset=latin1", "charset=gbk", "charset=utf8mb3", "charset=ascii", "charset=binary",
		"charset=utf8mb4&collation=utf8mb4_general_ci",
		"character_set_results=NULL",
		"sql_mode=%27%27",
		"sql_mode=%27ANSI_QUOTES%2CNO_BACKSLASH_ESCAPES%2CPIPES_AS_CONCAT%2CIGNORE_SPACE%2CHIGH_NOT_PRECEDENCE%27&interpolateParams=true",
		"sql_mode=%27ONLY_FULL_GROUP_BY%2CSTRICT_ALL_TABLES%2CNO_ZERO_DATE%2CNO_ZERO_IN_DATE%2CERROR_FOR_DIVISION_BY_ZERO%27",
		"sql_mode=%27ORACLE%27",
		"sql_mode=%27EMPTY_STRING_IS_NULL%27",
		"sql_mode=%27PAD_CHAR_TO_FULL_LENGTH%27",
		"sql_safe_updates=1",
		"sql_auto_is_null=1",
		"transaction_isolation=%27SERIALIZABLE%27", "tx_isolation=%27SERIALIZABLE%27",
		"multiStatements=true&columnsWithAlias=true&compress=true",
	} {
		t.Run(parameters, func(t *testing.T) {
			t.Parallel()
			_, config := newTables(t)
			pool := openDSN(t, config, parameters)
			if err := pool.PingContext(t.Context()); err != nil {
				switch {
				case strings.Contains(parameters, "tx_isolation"), strings.Contains(parameters, "transaction_isolation"),
					strings.Contains(parameters, "ORACLE"), strings.Contains(parameters, "EMPTY_STRING"):
					return // only one of MySQL and MariaDB knows it
				}
				t.Fatal(err)
			}
			got := liveThrough(t, newLock(t, pool, "e", "a-candidate"), newLock(t, pool, "e", "b-candidate"))
			if diff := cmp.Diff(lifeOfAnElection, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSessionWithoutInterpolationLeaksNoPreparedStatement(t *testing.T) {
	admin, config := newTables(t)
	prepared := func() (n int) {
		var name string
		if err := admin.QueryRowContext(t.Context(), `SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'`).Scan(&name, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	db := openDSN(t, config, "")
	lock := newLock(t, db, "e", "a")
	mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
	before := prepared()
	for range 100 {
		mustSucceed(t, "Get", get(t.Context(), lock))
		mustSucceed(t, "Update", update(t.Context(), lock, record("a")))
	}
	// The server closes the last ones after it was told, which nobody waits for.
	eventually(t, 20*time.Second, "the server has no more prepared statements than before", func() bool { return prepared() <= before })
}

func TestSessionOfAnyTimeZoneWritesTimesInUTC(t *testing.T) {
	admin, config := newTables(t)
	config = config.Clone()
	config.ParseTime, config.Loc = true, time.FixedZone("somewhere", -7*3600)
	config.Params = map[string]string{"time_zone": "'+05:30'"}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	byConfig := sql.OpenDB(connector)
	t.Cleanup(func() { _ = byConfig.Close() })
	for name, db := range map[string]*sql.DB{
		"Open":                 open(t, config),
		"a connector":          byConfig,
		"a DSN":                openDSN(t, config, "parseTime=true&loc=Local&time_zone=%27%2B05%3A30%27"),
		"a DSN, interpolating": openDSN(t, config, "parseTime=true&loc=Local&interpolateParams=true&time_zone=%27%2B05%3A30%27"),
	} {
		t.Run(name, func(t *testing.T) {
			var zone string
			if err := db.QueryRowContext(t.Context(), `SELECT @@session.time_zone`).Scan(&zone); err != nil || zone != "+05:30" {
				t.Fatalf("time zone %q, %v", zone, err)
			}
			r := record("a")
			// In the hour that a zone with summer time has twice or not at all.
			r.AcquireTime = metav1.NewTime(time.Date(2026, 3, 29, 2, 30, 0, 123456000, time.FixedZone("elsewhere", 9*3600)))
			released := r
			released.HolderIdentity = ""
			held, free := newLock(t, db, name+", held", "a"), newLock(t, db, name+", free", "a")
			for _, step := range []struct {
				what string
				lock *mysqllock.Lock
				call func() error
			}{
				{"Create", held, create(t.Context(), held, r)},
				{"renewal", held, update(t.Context(), held, r)},
				{"release", held, update(t.Context(), held, released)},
				{"Create of a released election", free, create(t.Context(), free, released)},
				{"takeover", free, update(t.Context(), free, r)},
			} {
				exec(t, admin, `UPDATE election_records SET last_update = '2000-01-01', acquire_time = NULL`)
				mustSucceed(t, step.what, step.call)
				var age float64
				var acquired string
				err := admin.QueryRowContext(t.Context(), `SELECT TIMESTAMPDIFF(MICROSECOND, last_update, UTC_TIMESTAMP(6)) / 1e6, CAST(acquire_time AS CHAR)`+
					` FROM election_records WHERE CONCAT('election_records/', election_name) = ?`, step.lock.Describe()).Scan(&age, &acquired)
				if err != nil {
					t.Fatal(err)
				}
				if age < 0 || age > 20 {
					t.Errorf("%s: last_update is %v s ago", step.what, age)
				}
				if want := "2026-03-28 17:30:00.123456"; acquired != want {
					t.Errorf("%s: acquire_time is %s, want %s", step.what, acquired, want)
				}
				got, _, err := step.lock.Get(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if !got.AcquireTime.Equal(&r.AcquireTime) || !got.RenewTime.Equal(&r.RenewTime) {
					t.Errorf("%s: Get returns %v and %v, want %v and %v", step.what, got.AcquireTime, got.RenewTime, r.AcquireTime, r.RenewTime)
				}
			}
		})
	}
}
