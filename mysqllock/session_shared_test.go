package mysqllock_test

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// This file is about locks that share their pool with an application, which leaves its mark on
// sessions.

// A fault is what the application did to one session before it gave that back.
type fault struct {
	name       string
	statements []string // {id} is the session's, {other} another database
	// isTransaction: MySQL lets a session be rid of it, so that it may stay.
	isTransaction bool
	// isUse: before the first poll it is what the pool's owner meant, and later it does no harm, as
	// each statement names the database.
	isUse bool
}

// spoil makes a session unfit and returns its id.
func (f fault) spoil(t testing.TB, session *sql.Conn, other string) (id int64) {
	t.Helper()
	if err := session.QueryRowContext(t.Context(), `SELECT CONNECTION_ID()`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	for _, statement := range f.statements {
		statement = strings.NewReplacer("{id}", fmt.Sprint(id), "{other}", other).Replace(statement)
		if _, err := session.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	return id
}

// isIn reports whether a session is still there, and as unfit as it was.
func (f fault) isIn(t testing.TB, admin *sql.DB, id int64) bool {
	t.Helper()
	if f.isUse || countSessions(t, admin, `ID = ?`, id) == 0 {
		return false
	}
	if server.MariaDB() || !f.isTransaction {
		return true
	}
	var open int
	err := admin.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM performance_schema.events_transactions_current JOIN performance_schema.threads USING (THREAD_ID)`+
		` WHERE PROCESSLIST_ID = ? AND STATE = 'ACTIVE' AND AUTOCOMMIT = 'NO'`, id).Scan(&open)
	if err != nil {
		t.Fatal(err)
	}
	return open > 0
}

var faults = []fault{
	{name: "BEGIN", statements: []string{`BEGIN`}, isTransaction: true},
	{name: "BEGIN at SERIALIZABLE", statements: []string{`SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE`, `BEGIN`}, isTransaction: true},
	{name: "COMMIT under CHAIN", statements: []string{`SET completion_type = 'CHAIN'`, `BEGIN`, `COMMIT`}, isTransaction: true},
	{name: "XA START", statements: []string{`XA START 'mysqllock {id}'`}, isTransaction: true},
	{name: "USE", statements: []string{`USE {other}`}, isUse: true},
	{name: "LOCK TABLES", statements: []string{`LOCK TABLES ledger READ`}},
	{name: "autocommit off", statements: []string{`SET autocommit = 0`}},
}

// sharedPool is a lock's and an application's.
type sharedPool struct {
	*sql.DB
	size int

	mu    sync.Mutex // held by the application while it holds sessions
	unfit []int64    // ids of sessions
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

func newSharedPool(db *sql.DB, size int) *sharedPool {
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return &sharedPool{DB: db, size: size}
}

// giveBack gives sessions back, of which the last is handed out next.
func giveBack(sessions ...*sql.Conn) {
	for _, session := range sessions {
		_ = session.Close()
	}
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
