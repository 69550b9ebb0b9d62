package mysqllock_test

import (
	"context"
	"database/sql"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
)

// A contest is one election under a hazard. One that went wrong while the machine stood still is
// held again.

// together runs tests at the same time, however many processors there are: t.Parallel runs no more
// at once than there are, and these mostly wait.
func together(t *testing.T, tests ...test) {
	t.Helper()
	var all sync.WaitGroup
	for _, test := range tests {
		all.Add(1)
		go func() {
			defer all.Done()
			t.Run(test.name, test.run)
		}()
	}
	all.Wait()
}

type test struct {
	name string
	run  func(*testing.T)
}

// arena is where contests are held: a database, and a pulse that shows how the machine and the
// server are doing.
type arena struct {
	*testing.T
	config *mysql.Config
	db     *sql.DB

	mu       sync.Mutex
	contests int
	beats    []time.Time
}

// stall is how long machine or server may stand still without changing what comes of a contest. A
// process that is paused for longer than the timings allow for may lose its lease, or believe in
// one for too long: that is how it must be, and is not what is to be shown.
const stall = 250 * time.Millisecond

func newArena(t *testing.T) *arena {
	t.Helper()
	a := &arena{T: t}
	a.db, a.config = newTables(t)
	exec(t, a.db, `CREATE TABLE pulse (id INT PRIMARY KEY, n BIGINT NOT NULL) ENGINE=InnoDB`)
	exec(t, a.db, `INSERT INTO pulse VALUES (1, 0)`)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			if _, err := a.db.ExecContext(ctx, `UPDATE pulse SET n = n + 1`); err != nil {
				continue
			}
			a.mu.Lock()
			a.beats = append(a.beats, time.Now())
			a.mu.Unlock()
			<-tick.C
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return a
}

// stalled is the longest time between two beats since then.
func (a *arena) stalled(since time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	longest := time.Duration(0)
	for _, beat := range append(slices.Clone(a.beats), time.Now()) {
		if beat.After(since) {
			longest = max(longest, beat.Sub(since))
			since = beat
		}
	}
	return longest
}

// hold holds a contest. One that went wrong while machine or server stalled is held again, at most
// twice.
func (a *arena) hold(t *testing.T, ours bool, p cadence, run func(*contest) hazardResult, isWanted func(hazardResult) bool) hazardResult {
	t.Helper()
	for attempt := 1; ; attempt++ {
		since := time.Now()
		c := &contest{T: t, arena: a, ours: ours, pace: p, config: a.config}
		c.db = open(c, a.config)
		c.db.SetMaxOpenConns(6) // the server has 151 for all
		c.network = newProxy(c, a.config.Addr)
		a.mu.Lock()
		a.contests++
		c.election = fmt.Sprintf("contest %d", a.contests)
		a.mu.Unlock()

		var o hazardResult
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer c.end()
			o = run(c)
		}()
		<-ended
		if len(c.failures) == 0 && isWanted(o) {
			return o
		}
		stalled := a.stalled(since)
		// The other lock needn't fall to a hazard each time to show that it is there.
		if (stalled > stall || !ours && !o.broken) && attempt < 3 {
			t.Logf("held again (machine or server stalled for %v): %v, %q", stalled.Round(time.Millisecond), o, c.failures)
			continue
		}
		for _, failure := range c.failures {
			t.Error(failure)
		}
		if !isWanted(o) {
			t.Errorf("the outcome: %v (the longest stall was %v)", o, stalled.Round(time.Millisecond))
		}
		return o
	}
}

// contest is one election and its candidates: a testing.TB that fails, and cleans up, by itself.
type contest struct {
	*testing.T
	arena    *arena
	election string
	ours     bool // they use a Lock, else the reference
	pace     cadence
	db       *sql.DB // for those whose network works
	config   *mysql.Config
	network  *proxy // between one of them and the server

	candidates []*candidate
	cleanups   []func()
	failures   []string
}

func (c *contest) Cleanup(f func()) { c.cleanups = append(c.cleanups, f) }

func (c *contest) Error(args ...any) { c.failures = append(c.failures, fmt.Sprint(args...)) }

func (c *contest) Errorf(format string, args ...any) {
	c.failures = append(c.failures, fmt.Sprintf(format, args...))
}

func (c *contest) Fatal(args ...any) {
	c.Error(args...)
	runtime.Goexit()
}

func (c *contest) Fatalf(format string, args ...any) {
	c.Errorf(format, args...)
	runtime.Goexit()
}

// stop stops all electors.
func (c *contest) stop() {
	for _, r := range c.candidates {
		r.stop()
	}
}

func (c *contest) end() {
	c.stop()
	for _, f := range slices.Backward(c.cleanups) {
		f()
	}
}

// lock makes a candidate's lock. Options take the place of WithTimings.
func (c *contest) lock(db *sql.DB, identity string, opts ...mysqllock.Option) *spy {
	c.Helper()
	if !c.ours {
		return &spy{Interface: mysqllocktest.NewReferenceLock(db, c.election, identity, c.pace.renewDeadline)}
	}
	if len(opts) == 0 {
		opts = []mysqllock.Option{c.pace.option()}
	}
	return &spy{Interface: newLock(c, db, c.election, identity, opts...)}
}

// proxied is a pool of connections through the network that fails.
func (c *contest) proxied() *sql.DB {
	c.Helper()
	return open(c, c.network.config(c.config))
}

// run runs an elector until the contest ends.
func (c *contest) run(lock *spy, how ...func(*campaign)) *candidate {
	c.Helper()
	r := start(c, lock, c.pace, how...)
	c.candidates = append(c.candidates, r)
	return r
}

// follow runs n followers, and waits until each has seen the election.
func (c *contest) follow(n int) []*candidate {
	c.Helper()
	var followers []*candidate
	for i := range n {
		followers = append(followers, c.run(c.lock(c.db, fmt.Sprintf("follower %d", i+1))))
	}
	for _, f := range followers {
		eventually(c, 20*time.Second, "a follower polls", func() bool { return f.polls() > 0 })
	}
	return followers
}

// receive waits for what a network tells. A leader that lost its lease, as the machine was busy,
// sends no more renewals.
func receive[T any](c *contest, what string, from <-chan T) (told T) {
	c.Helper()
	select {
	case told = <-from:
	case <-time.After(20 * time.Second):
		c.Fatalf("not within 20s: %s", what)
	}
	return told
}

// overlap is for how long more than one of them led.
func overlap(candidates ...*candidate) time.Duration {
	type edge struct {
		at   time.Time
		step int
	}
	now := time.Now()
	var edges []edge
	for _, r := range candidates {
		for _, t := range r.led(now) {
			edges = append(edges, edge{t.from, 1}, edge{t.to, -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return a.at.Compare(b.at) })
	var sum time.Duration
	leaders := 0
	for i, e := range edges {
		if leaders > 1 {
			sum += e.at.Sub(edges[i-1].at)
		}
		leaders += e.step
	}
	return sum
}

// hazardResult is what came of a contest.
type hazardResult struct {
	overlap time.Duration
	broken  bool // the promise was broken: by an overlap, if nothing else is said
	note    string
}

func (o hazardResult) String() string {
	s := o.overlap.Round(10 * time.Millisecond).String()
	if o.note != "" {
		s += " (" + o.note + ")"
	}
	return s
}

func unbroken(o hazardResult) bool { return !o.broken }

// overlapped is the result where any overlap breaks the promise.
func overlapped(candidates ...*candidate) hazardResult {
	d := overlap(candidates...)
	return hazardResult{overlap: d, broken: d > 0}
}

// late is such a contest with replies that take that long.
func late(c *contest, delay time.Duration, change ...func(*campaign)) hazardResult {
	arm := failAtNextRenewal(c.network, func() { c.network.delayReplies(delay) }, c.network.blackHole)
	leader := c.run(c.lock(c.proxied(), "leader"), change...)
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	arm()
	return succession(c, leader, followers)
}

// succession waits until a follower has taken the leader's place.
func succession(c *contest, leader *candidate, followers []*candidate) hazardResult {
	c.Helper()
	whoLeads(c, followers, c.pace.takeoverWithin())
	leader.mustEnd(c)
	return overlapped(c.candidates...)
}

func outage(c *contest) hazardResult {
	begun := make(chan time.Time, 1)
	arm := failAtNextRenewal(c.network, func() { c.network.blackHole(); begun <- time.Now() }, nil)
	leader := c.run(c.lock(c.proxied(), "leader"))
	leader.mustLead(c, 20*time.Second)
	follower := c.follow(1)[0]
	arm()
	outage := time.After(time.Until(receive(c, "the leader's next renewal", begun).Add(c.pace.lease / 3)))
	before := len(leader.renewals())
	<-outage
	if n := len(leader.renewals()); n != before {
		c.Errorf("%d renewals during the outage", n-before)
	}
	c.network.forward()
	leader.mustRenew(c, 2)
	if n := len(leader.led(time.Now())); n != 1 || !leader.leads() {
		c.Errorf("the leader had %d terms (leads now: %t)", n, leader.leads())
	}
	if n := len(follower.led(time.Now())); n != 0 {
		c.Errorf("the follower had %d terms", n)
	}
	o := overlapped(leader, follower)
	o.note = "the leader keeps its lease"
	return o
}
