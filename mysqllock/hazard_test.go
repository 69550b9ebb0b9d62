package mysqllock_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
)

// This file shows what goes wrong with client-go's stock elector on a lock that
// does no more than LeaseLock does (see mysqllocktest.ReferenceLock), and that it
// does not with a Lock. The networks fail by means of a proxy, the rest is real.
// What is measured is for how long two candidates led at once, as they believed
// themselves: from OnStartedLeading to OnStoppedLeading.

// pace is the timings of an elector.
type pace struct{ lease, renewDeadline, retry time.Duration }

// operationTimeout is the deadline that WithTimings gives an operation.
func (p pace) operationTimeout() time.Duration { return (p.lease - p.renewDeadline - p.retry) / 2 }

func (p pace) option() mysqllock.Option {
	return mysqllock.WithTimings(p.lease, p.renewDeadline, p.retry)
}

// takeoverWithin is how long a follower needs when a leader is gone without a
// word: the lease, a poll that sees its last renewal and one that takes over,
// both with the acquire loop's jitter, and what a busy machine adds.
func (p pace) takeoverWithin() time.Duration {
	return p.lease + time.Duration(2*(1+leaderelection.JitterFactor)*float64(p.retry)) + 3*time.Second
}

var (
	// long leaves a wide window where a reply may be late; the others are for
	// where it isn't about that.
	long  = pace{6 * time.Second, 5 * time.Second, 200 * time.Millisecond}
	short = pace{3 * time.Second, 2 * time.Second, 200 * time.Millisecond}
	brisk = pace{2 * time.Second, 1200 * time.Millisecond, 200 * time.Millisecond}
)

// together runs tests at the same time, however many processors there are:
// t.Parallel runs no more at once than there are, and these mostly wait.
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

// arena is where contests are held: a database, and a pulse that shows how the
// machine and the server are doing.
type arena struct {
	*testing.T
	config *mysql.Config
	db     *sql.DB

	mu       sync.Mutex
	contests int
	beats    []time.Time
}

// stall is how long machine or server may stand still without changing what
// comes of a contest. A process that is paused for longer than the timings
// allow for may lose its lease, or believe in one for too long: that is how it
// must be, and is not what is to be shown.
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

// hold holds a contest. One that went wrong while machine or server stalled is
// held again, at most twice.
func (a *arena) hold(t *testing.T, ours bool, p pace, run func(*contest) hazardResult, isWanted func(hazardResult) bool) hazardResult {
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

// contest is one election and its candidates: a testing.TB that fails, and
// cleans up, by itself.
type contest struct {
	*testing.T
	arena    *arena
	election string
	ours     bool // they use a Lock, else the reference
	pace     pace
	db       *sql.DB // for those whose network works
	config   *mysql.Config
	network  *proxy // between one of them and the server

	contenders []*contender
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
	for _, r := range c.contenders {
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
func (c *contest) lock(db *sql.DB, identity string, opts ...mysqllock.Option) *watched {
	c.Helper()
	if !c.ours {
		return &watched{Interface: mysqllocktest.NewReferenceLock(db, c.election, identity, c.pace.renewDeadline)}
	}
	if len(opts) == 0 {
		opts = []mysqllock.Option{c.pace.option()}
	}
	return &watched{Interface: newLock(c, db, c.election, identity, opts...)}
}

// proxied is a pool of connections through the network that fails.
func (c *contest) proxied() *sql.DB {
	c.Helper()
	return open(c, c.network.config(c.config))
}

// contender is a candidate whose elector runs.
type contender struct {
	*watched
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	terms []hazardTerm
}

// hazardTerm is when a candidate believed that it led.
type hazardTerm struct{ from, to time.Time }

// run runs an elector until the contest ends.
func (c *contest) run(lock *watched, change ...func(*leaderelection.LeaderElectionConfig)) *contender {
	return c.runWith(context.Background(), lock, change...)
}

func (c *contest) runWith(ctx context.Context, lock *watched, change ...func(*leaderelection.LeaderElectionConfig)) *contender {
	c.Helper()
	r := &contender{watched: lock, done: make(chan struct{})}
	config := leaderelection.LeaderElectionConfig{
		Lock:          lock,
		Name:          lock.Describe(),
		LeaseDuration: c.pace.lease,
		RenewDeadline: c.pace.renewDeadline,
		RetryPeriod:   c.pace.retry,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.terms = append(r.terms, hazardTerm{from: time.Now()})
			},
			OnStoppedLeading: func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				if n := len(r.terms); n > 0 {
					r.terms[n-1].to = time.Now()
				}
			},
		},
	}
	for _, f := range change {
		f(&config)
	}
	elector, err := leaderelection.NewLeaderElector(config)
	if err != nil {
		c.Fatal(err)
	}
	ctx, r.cancel = context.WithCancel(ctx)
	go func() {
		defer close(r.done)
		elector.Run(ctx)
	}()
	c.contenders = append(c.contenders, r)
	return r
}

// releasing makes an elector release its lease in the end.
func releasing(config *leaderelection.LeaderElectionConfig) { config.ReleaseOnCancel = true }

// follow runs n followers, and waits until each has seen the election.
func (c *contest) follow(n int) []*contender {
	c.Helper()
	var followers []*contender
	for i := range n {
		followers = append(followers, c.run(c.lock(c.db, fmt.Sprintf("follower %d", i+1))))
	}
	for _, f := range followers {
		eventually(c, 20*time.Second, "a follower polls", func() bool { return f.pollCount() > 0 })
	}
	return followers
}

func (r *contender) stop() {
	r.watched.resume()
	r.cancel()
	<-r.done
}

func (r *contender) leads() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.terms)
	return n > 0 && r.terms[n-1].to.IsZero()
}

// led are the terms so far; one that goes on ends now.
func (r *contender) led(now time.Time) []hazardTerm {
	r.mu.Lock()
	defer r.mu.Unlock()
	terms := slices.Clone(r.terms)
	for i := range terms {
		if terms[i].to.IsZero() {
			terms[i].to = now
		}
	}
	return terms
}

func (r *contender) mustLead(c *contest, timeout time.Duration) {
	c.Helper()
	eventually(c, timeout, r.Identity()+" leads", r.leads)
}

// mustEnd waits until the elector's Run has returned.
func (r *contender) mustEnd(c *contest) {
	c.Helper()
	select {
	case <-r.done:
	case <-time.After(20 * time.Second):
		c.Fatalf("not within 20s: %s stops", r.Identity())
	}
}

// receive waits for what a network tells. A leader that lost its lease, as the
// machine was busy, sends no more renewals.
func receive[T any](c *contest, what string, from <-chan T) (told T) {
	c.Helper()
	select {
	case told = <-from:
	case <-time.After(20 * time.Second):
		c.Fatalf("not within 20s: %s", what)
	}
	return told
}

// mustRenew waits for n renewals, or whatever Update succeeds.
func (r *contender) mustRenew(c *contest, n int) {
	c.Helper()
	before := len(r.succeeded())
	eventually(c, 20*time.Second, r.Identity()+" renews", func() bool { return len(r.succeeded()) >= before+n })
}

// whoLeads waits until one of them leads.
func whoLeads(c *contest, contenders []*contender, timeout time.Duration) (leader *contender, others []*contender) {
	c.Helper()
	eventually(c, timeout, "a follower leads", func() bool {
		i := slices.IndexFunc(contenders, (*contender).leads)
		if i < 0 {
			return false
		}
		leader = contenders[i]
		others = slices.Delete(slices.Clone(contenders), i, i+1)
		return true
	})
	return leader, others
}

// overlap is for how long more than one of them led.
func overlap(contenders ...*contender) time.Duration {
	type edge struct {
		at   time.Time
		step int
	}
	now := time.Now()
	var edges []edge
	for _, r := range contenders {
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

// watched passes everything on to a lock, keeps what a test asks about, and can
// stand for a process that is paused.
type watched struct {
	resourcelock.Interface

	mu      sync.Mutex
	paused  chan struct{} // operations wait while it is there
	waiting int
	// pauseAfterUpdate pauses the process right after an Update succeeded.
	pauseAfterUpdate bool
	polls            int
	updates          []written
}

// written is an Update that has returned.
type written struct {
	started, returned time.Time
	err               error
}

func (w *watched) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	w.wait()
	record, raw, err := w.Interface.Get(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.polls++
	return record, raw, err
}

func (w *watched) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	w.wait()
	return w.Interface.Create(ctx, record)
}

func (w *watched) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	w.wait()
	started := time.Now()
	err := w.Interface.Update(ctx, record)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.updates = append(w.updates, written{started, time.Now(), err})
	if err == nil && w.pauseAfterUpdate {
		w.pauseAfterUpdate = false
		w.paused = make(chan struct{})
	}
	return err
}

func (w *watched) wait() {
	w.mu.Lock()
	paused := w.paused
	if paused == nil {
		w.mu.Unlock()
		return
	}
	w.waiting++
	w.mu.Unlock()
	<-paused
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting--
}

// pause stops the process, as SIGSTOP or a long garbage collection does, before
// its next operation, and returns when it has stopped.
func (w *watched) pause(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	w.paused = make(chan struct{})
	w.mu.Unlock()
	eventually(t, 20*time.Second, "the process is paused", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.waiting > 0
	})
}

func (w *watched) setPauseAfterUpdate(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pauseAfterUpdate = on
}

func (w *watched) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pauseAfterUpdate = false
	if w.paused != nil {
		close(w.paused)
		w.paused = nil
	}
}

func (w *watched) pollCount() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.polls
}

func (w *watched) written() []written {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.updates)
}

// succeeded are the Updates that did.
func (w *watched) succeeded() []written {
	return slices.DeleteFunc(w.written(), func(u written) bool { return u.err != nil })
}

// rereading releases as newer electors do (v0.37.2): it reads the row, still
// goes by what it believed before, and tries again on a Conflict. The elector of
// v0.31 only writes.
type rereading struct {
	resourcelock.Interface
	begin    func() // called before the first attempt, unless nil
	attempts atomic.Int64
}

func (l *rereading) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if record.HolderIdentity != "" {
		return l.Interface.Update(ctx, record)
	}
	if l.begin != nil {
		l.begin()
	}
	for {
		l.attempts.Add(1)
		if _, _, err := l.Interface.Get(ctx); err != nil {
			return err
		}
		if err := l.Interface.Update(ctx, record); !apierrors.IsConflict(err) {
			return err
		}
	}
}

// isRenewal tells whether a packet has a statement that writes the lease alone:
// a renewal or a release. In a Batch it has a row, with two names, of another
// Lock than those that keep it company.
func isRenewal(packet []byte) bool {
	switch command(packet) {
	case comStmtPrepare:
		return false
	case comStmtExecute:
		return hasTime.Match(packet)
	}
	if bytes.Contains(packet, []byte("UPDATE (SELECT")) {
		return bytes.Count(packet, []byte("CONVERT('")) > 2*bytes.Count(packet, []byte("CONVERT('company"))
	}
	return bytes.Contains(packet, []byte("election_records AS r SET")) || bytes.Contains(packet, []byte("UPDATE election_records SET leader_name"))
}

// isPoll tells whether a packet has a statement that reads the row.
func isPoll(packet []byte) bool {
	switch command(packet) {
	case comStmtPrepare:
		return false
	case comStmtExecute:
		return !hasTime.Match(packet)
	}
	return bytes.Contains(packet, []byte("SELECT")) && bytes.Contains(packet, []byte("leader_transitions"))
}

// hasTime: of what is sent prepared, a renewal has times, and a poll has none.
var hasTime = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`)

// command is what a packet of the protocol asks for.
func command(packet []byte) byte {
	if len(packet) < 5 {
		return 0
	}
	return packet[4]
}

// failAtNextRenewal returns a function after which the next renewal that passes
// the network is met by fail. What is sent after that is met by then, if there
// is one.
func failAtNextRenewal(network *proxy, fail, then func()) (arm func()) {
	var stage atomic.Int32
	network.onRequest = func(packet []byte) {
		switch {
		case stage.Load() == 1 && isRenewal(packet):
			stage.Store(2)
			fail()
		case stage.Load() == 2 && then != nil:
			stage.Store(3)
			then()
		}
	}
	return func() { stage.Store(1) }
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
func overlapped(contenders ...*contender) hazardResult {
	d := overlap(contenders...)
	return hazardResult{overlap: d, broken: d > 0}
}

// hazards are what client-go's elector and its LeaseLock leave open, or why they
// do not.
var hazards = []struct {
	name string
	pace pace
	run  func(*contest) hazardResult
	// sound: LeaseLock's semantics withstand it as well.
	sound bool
}{
	{name: "a1: a success that arrives late", pace: long, run: lateSuccess},
	{name: "a2: a success that arrives late, while the process is paused", pace: long, run: lateSuccessInAPause},
	{name: "b1: the release of a leader that could not renew", pace: long, run: releaseAtTheDeadline},
	{name: "b2: the release of a leader that was cancelled and is cut off", pace: long, run: releaseWhenCancelled},
	{name: "a+b: a late success and then a release that fails", pace: long, run: lateSuccessAndRelease},
	{name: "b3: a late success and then a release in two steps", pace: pace{6 * time.Second, 3 * time.Second, 200 * time.Millisecond}, run: releaseInTwoSteps},
	{name: "b4: the release of a leader that could not renew is applied, and its reply is lost", pace: pace{6 * time.Second, 3 * time.Second, 200 * time.Millisecond}, run: releaseWithoutAnAnswer},
	{name: "c: the release of a leader that was paused while another took over", pace: short, run: releaseAfterTakeover},
	{name: "d: renewals within one second", pace: pace{time.Second, 950 * time.Millisecond, 700 * time.Millisecond}, run: renewalsWithinASecond},
	{name: "e: two candidates with one identity", pace: short, run: oneIdentity},
	{name: "f: the row is deleted and made again under a leader", pace: short, run: rowMadeAgain},
	{name: "g1: an abandoned release that is applied after a takeover", pace: short, run: func(c *contest) hazardResult { return lateRelease(c, false) }, sound: true},
	{name: "g2: the same, and the server lost a write, so that versions repeat", pace: short, run: func(c *contest) hazardResult { return lateRelease(c, true) }},
	{name: "l: a transaction left open in the pool that the lock shares", pace: short, run: openTransaction},
	{name: "m: USE of another database in the pool that the lock shares", pace: short, run: otherDefaultDatabase},
}

func TestHazardsOfTheStockElector(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	newLedger(t, a.config)
	var tests []test
	for _, h := range hazards {
		tests = append(tests, test{h.name, func(t *testing.T) {
			var reference any = "not asked"
			var ours hazardResult
			contests := []test{{"Lock", func(t *testing.T) {
				ours = a.hold(t, true, h.pace, h.run, unbroken)
			}}}
			if os.Getenv(batchVariable) == "" { // which is nothing to the other lock
				contests = append(contests, test{"LeaseLock's semantics", func(t *testing.T) {
					// Otherwise the test would show nothing.
					reference = a.hold(t, false, h.pace, h.run, func(o hazardResult) bool { return o.broken != h.sound })
				}})
			}
			together(t, contests...)
			t.Logf("HAZARD | %s | %v | %v", h.name, reference, ours)
		}})
	}
	together(t, tests...)
}

// The leader's last renewal is applied at once, but its reply takes almost as
// long as LeaseLock allows. From then on the leader is cut off. It trusts its
// lease from the reply on, the followers count from the renewal on.
func lateSuccess(c *contest) hazardResult {
	return late(c, mysqllocktest.ReferenceTimeout(c.pace.renewDeadline)*8/10)
}

// late is such a contest with replies that take that long.
func late(c *contest, delay time.Duration, change ...func(*leaderelection.LeaderElectionConfig)) hazardResult {
	arm := failAtNextRenewal(c.network, func() { c.network.delayReplies(delay) }, c.network.blackHole)
	leader := c.run(c.lock(c.proxied(), "leader"), change...)
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	arm()
	return succession(c, leader, followers)
}

// succession waits until a follower has taken the leader's place.
func succession(c *contest, leader *contender, followers []*contender) hazardResult {
	c.Helper()
	whoLeads(c, followers, c.pace.takeoverWithin())
	leader.mustEnd(c)
	return overlapped(c.contenders...)
}

// The same, but nothing ends the wait for the reply: then only the clock tells
// the lock that the success is too late.
func lateSuccessInAPause(c *contest) hazardResult {
	network := newStubborn(c, mysqllocktest.ReferenceTimeout(c.pace.renewDeadline)*8/10, isRenewal)
	pool := open(c, network.config(c.config))
	pool.SetMaxOpenConns(1)
	leader := c.run(c.lock(pool, "leader"))
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	network.arm()
	return succession(c, leader, followers)
}

// Both at once: the reply is as late as a Lock allows, and the elector has
// another operation to spend on its release.
func lateSuccessAndRelease(c *contest) hazardResult {
	timeout := mysqllocktest.ReferenceTimeout(c.pace.renewDeadline)
	if c.ours {
		timeout = c.pace.operationTimeout()
	}
	return late(c, timeout*8/10, releasing)
}

// The leader is cut off. When it could not renew in time, its elector tries to
// release the lease first, and only then ends the work's context.
func releaseAtTheDeadline(c *contest) hazardResult {
	arm := failAtNextRenewal(c.network, c.network.blackHole, nil)
	leader := c.run(c.lock(c.proxied(), "leader"), releasing)
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	arm()
	return succession(c, leader, followers)
}

// The leader is cut off, and cancelled shortly before its deadline. Its work's
// context ends at once, but Run doesn't return, and OnStoppedLeading isn't
// called, before the release was given up; whoever waits for that (as
// controller-runtime does) still holds what the next leader needs.
func releaseWhenCancelled(c *contest) hazardResult {
	cut := make(chan struct{})
	arm := failAtNextRenewal(c.network, func() { c.network.blackHole(); close(cut) }, nil)
	leader := c.run(c.lock(c.proxied(), "leader"), releasing)
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	arm()
	receive(c, "the leader's next renewal", cut)
	// The moment matters: the later the elector begins to release, the longer
	// beyond its lease it is at it.
	<-time.After(c.pace.renewDeadline - 300*time.Millisecond)
	leader.cancel()
	return succession(c, leader, followers)
}

// The network is slow at the last renewal, then down, then slow once more when a
// newer elector releases: that reads the row first, and so has three operations
// to spend beyond its deadline, not two. Lost packets stay lost here, as a
// renewal that arrives late would be one.
func releaseInTwoSteps(c *contest) hazardResult {
	delay := mysqllocktest.ReferenceTimeout(c.pace.renewDeadline) * 8 / 10
	if c.ours {
		delay = c.pace.operationTimeout() * 8 / 10
	}
	slow := func() { c.network.delayReplies(delay) }
	var isReleasing atomic.Bool
	arm := failAtNextRenewal(c.network, slow, c.network.blackHole)
	down := c.network.onRequest
	var stage atomic.Int32
	c.network.onRequest = func(packet []byte) {
		switch {
		case !isReleasing.Load():
			down(packet)
		case stage.Load() == 0 && isPoll(packet):
			stage.Store(1)
			slow()
		case stage.Load() == 1:
			stage.Store(2)
			c.network.blackHole()
		}
	}
	lock := c.lock(c.proxied(), "leader")
	release := &rereading{Interface: lock, begin: func() {
		isReleasing.Store(true)
		c.network.cut()
		c.network.forward()
	}}
	leader := c.run(lock, releasing, func(config *leaderelection.LeaderElectionConfig) { config.Lock = release })
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	arm()
	result := succession(c, leader, followers)
	if stage.Load() == 0 {
		c.Error("no read of the release was seen, so that its network was not slow")
	}
	return result
}

// The leader is cut off until RenewDeadline. Its release then reaches the server,
// and whoever polls may lead; but no reply comes, and the elector, which ends the
// work's context after its release, still calls itself leader.
func releaseWithoutAnAnswer(c *contest) hazardResult {
	arm := failAtNextRenewal(c.network, c.network.blackHole, nil)
	down := c.network.onRequest
	var isReleasing atomic.Bool
	c.network.onRequest = func(packet []byte) {
		switch {
		case !isReleasing.Load():
			down(packet)
		case isRenewal(packet):
			c.network.swallowReplies()
		}
	}
	lock := c.lock(c.proxied(), "leader")
	release := &rereading{Interface: lock, begin: func() {
		isReleasing.Store(true)
		c.network.cut()
		c.network.forward()
	}}
	leader := c.run(lock, releasing, func(config *leaderelection.LeaderElectionConfig) { config.Lock = release })
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	arm()
	return succession(c, leader, followers)
}

// A leader is paused until another has taken over. When it goes on, it releases
// a lease that isn't its own any more, and a third one begins to lead beside the
// second. (That the first one believes in itself while it is paused can't be
// helped, and isn't counted.)
func releaseAfterTakeover(c *contest) hazardResult {
	lock := c.lock(c.db, "leader")
	release := &rereading{Interface: lock}
	leader := c.run(lock, releasing, func(config *leaderelection.LeaderElectionConfig) { config.Lock = release })
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	leader.pause(c)
	for _, f := range followers {
		f.setPauseAfterUpdate(true)
	}
	successor, others := whoLeads(c, followers, c.pace.takeoverWithin())
	leader.resume()
	leader.mustEnd(c)
	o := intruded(c, successor, others)
	o.note = fmt.Sprintf("%d attempts to release", release.attempts.Load())
	if n := release.attempts.Load(); c.ours && n != 1 {
		c.Errorf("the elector tried to release %d times, want once", n)
	}
	return o
}

// intruded tells whether one of the others begins to lead beside the successor,
// whose next renewal is a bit late. That is only so that the hazard shows every
// time: otherwise it is a race of the successor's renewal against the others'
// polls.
func intruded(c *contest, successor *contender, others []*contender) hazardResult {
	for _, f := range others {
		f.setPauseAfterUpdate(false)
	}
	// Enough for several polls of each, and not for the successor's deadline.
	timeout := time.After(c.pace.renewDeadline * 6 / 10)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting && !slices.ContainsFunc(others, (*contender).leads); {
		select {
		case <-tick.C:
		case <-timeout:
			waiting = false
		}
	}
	successor.resume()
	if !slices.ContainsFunc(others, (*contender).leads) {
		successor.mustRenew(c, 2)
	} else {
		successor.mustEnd(c)
	}
	return overlapped(append(others, successor)...)
}

// The lease is 1 s, and the leader renews it every 0.7 s. The renewal's second,
// all that the bytes of LeaseLock's record show of it, stays the same for longer
// than a second now and then, and a follower that polls often notices that.
func renewalsWithinASecond(c *contest) hazardResult {
	o := keptWhileRenewed(c)
	for range 3 {
		if c.ours || o.broken {
			break
		}
		// It is a matter of how seconds, renewals and polls fall together.
		c.stop()
		o = keptWhileRenewed(c)
	}
	return o
}

func keptWhileRenewed(c *contest) hazardResult {
	timeout := mysqllock.WithOperationTimeout(250 * time.Millisecond)
	leader := c.run(c.lock(c.db, "leader", timeout))
	leader.mustLead(c, c.pace.takeoverWithin())
	often := func(config *leaderelection.LeaderElectionConfig) { config.RetryPeriod = 30 * time.Millisecond }
	followers := []*contender{c.run(c.lock(c.db, "follower 1", timeout), often), c.run(c.lock(c.db, "follower 2", timeout), often)}
	end := time.After(8 * time.Second) // the seconds in which the leader must keep its lease
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting && !slices.ContainsFunc(followers, (*contender).leads); {
		select {
		case <-tick.C:
		case <-end:
			waiting = false
		}
	}
	i := slices.IndexFunc(followers, (*contender).leads)
	if i < 0 {
		return hazardResult{note: fmt.Sprintf("kept for 8s, %d renewals", len(leader.succeeded()))}
	}
	taken := followers[i].led(time.Now())[0].from
	renewals := slices.DeleteFunc(leader.succeeded(), func(u written) bool { return u.returned.After(taken) })
	if len(renewals) == 0 {
		c.Fatal("the leader never renewed")
	}
	ago := taken.Sub(renewals[len(renewals)-1].returned)
	leader.mustEnd(c)
	return hazardResult{
		overlap: overlap(append(followers, leader)...),
		// A lease that was not renewed, as the machine was busy, was lost in
		// good order.
		broken: ago < c.pace.lease-200*time.Millisecond,
		note:   fmt.Sprintf("lost %v after a renewal", ago.Round(time.Millisecond)),
	}
}

// Two processes have one identity. client-go compares the strings, so both lead,
// for ever and in silence. Of two Locks the second waits for the first one's
// lease to end like any other, and says once why.
func oneIdentity(c *contest) hazardResult {
	first := c.run(c.lock(c.db, "twin"))
	first.mustLead(c, 20*time.Second)
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
	second := c.runWith(klog.NewContext(context.Background(), logger), c.lock(c.db, "twin"))
	if !c.ours {
		second.mustLead(c, 20*time.Second)
		first.mustRenew(c, 5) // both go on
		second.mustRenew(c, 5)
		first.mustRenew(c, 1)
		o := overlapped(first, second)
		o.note = "and no end"
		return o
	}
	// Longer than a lease.
	polls := second.pollCount()
	<-time.After(c.pace.lease * 3 / 2)
	if n := second.pollCount(); n < polls+3 {
		c.Errorf("the second one polled %d times only", n-polls)
	}
	if second.leads() || !first.leads() {
		c.Error("the second one led while the first one lived")
	}
	first.cancel() // its process ends without a release
	first.mustEnd(c)
	died := time.Now()
	second.mustLead(c, c.pace.takeoverWithin())
	took := time.Since(died)
	second.mustRenew(c, 3)
	lines := 0
	for _, line := range logger.GetSink().(ktesting.Underlier).GetBuffer().Data() {
		if errors.Is(line.Err, mysqllock.ErrDuplicateIdentity) {
			lines++
		}
	}
	if lines != 1 {
		c.Errorf("ErrDuplicateIdentity was logged %d times in %d polls, want once", lines, second.pollCount())
	}
	o := overlapped(first, second)
	o.note = fmt.Sprintf("takeover %v after the first one's death, lease %v", took.Round(10*time.Millisecond), c.pace.lease)
	return o
}

// Somebody deletes the row while the leader is out of reach for a moment;
// another candidate makes it anew. No lock below the elector can end the first
// one's belief before its RenewDeadline: the elector doesn't ask. But what it
// writes with Transact in that time is not committed, and tokens go on growing.
func rowMadeAgain(c *contest) hazardResult {
	work := c.arena.db
	cutOff := make(chan struct{})
	arm := failAtNextRenewal(c.network, func() { c.network.blackHole(); close(cutOff) }, nil)
	deposed := c.run(c.lock(c.proxied(), "leader"))
	deposed.mustLead(c, 20*time.Second)
	follower := c.follow(1)[0]
	write := func(r *contender) error {
		if lock, ok := r.Interface.(*mysqllock.Lock); ok {
			return lock.Transact(c.Context(), work, nil, inserting(r.Identity()))
		}
		_, err := work.ExecContext(c.Context(), `INSERT INTO ledger (entry) VALUES (?)`, r.Identity())
		return err
	}
	if err := write(deposed); err != nil {
		c.Fatal(err)
	}
	var before, after int64
	if c.ours {
		before, _ = deposed.Interface.(*mysqllock.Lock).FencingToken()
	}
	arm()
	receive(c, "the leader's next renewal", cutOff) // or it would notice, and make the row again itself
	exec(c, c.db, `DELETE FROM election_records WHERE election_name = ?`, c.election)
	follower.mustLead(c, 20*time.Second)
	attempts, committed := 0, 0
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deposed.leads() {
		// The first time before it can have noticed.
		err := write(deposed)
		attempts++
		switch {
		case err == nil:
			committed++
		case !errors.Is(err, mysqllock.ErrNotLeader):
			c.Errorf("the deposed leader's write: %v", err)
		}
		c.network.forward()
		<-tick.C
	}
	deposed.mustEnd(c)
	if err := write(follower); err != nil {
		c.Errorf("the successor's write: %v", err)
	}
	if c.ours {
		if after, _ = follower.Interface.(*mysqllock.Lock).FencingToken(); after <= before {
			c.Errorf("the successor's token is %d after %d", after, before)
		}
	}
	follower.mustRenew(c, 2)
	if attempts == 0 {
		c.Error("the deposed leader was gone at once")
	}
	return hazardResult{
		overlap: overlap(c.contenders...),
		broken:  committed > 0,
		note:    fmt.Sprintf("%d of the deposed leader's %d writes committed", committed, attempts),
	}
}

// A leader's release gets lost in the network, the leader has given up, another
// one has taken over, and then the release arrives. It compares and swaps, so
// that it does nothing. But versions alone can repeat: here a server is promoted
// that lacks the last renewal, as an etcd restored from a backup does.
func lateRelease(c *contest, lostWrite bool) hazardResult {
	// As if by a client whose clock is in the year 2100, so that versions only
	// count up.
	exec(c, c.db, `INSERT INTO election_records (election_name, leader_name, last_update, leader_uid, strategy, preferred_holder, server, version)
		VALUES (?, '', UTC_TIMESTAMP(6), '', '', '', '', 4102444800000000)`, c.election)
	pool := c.proxied()
	pool.SetMaxOpenConns(1) // so that the release's is known
	var session int64
	if err := pool.QueryRowContext(c.Context(), `SELECT CONNECTION_ID()`).Scan(&session); err != nil {
		c.Fatal(err)
	}
	leader := c.run(c.lock(pool, "leader"), releasing)
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	// Nothing but the release is to be under way.
	leader.pause(c)
	c.network.blackHole()
	leader.cancel()
	leader.resume()
	leader.mustEnd(c)
	if lostWrite {
		exec(c, c.db, `UPDATE election_records SET version = version - 1 WHERE election_name = ?`, c.election)
	}
	for _, f := range followers {
		f.setPauseAfterUpdate(true)
	}
	successor, others := whoLeads(c, followers, c.pace.takeoverWithin())
	c.network.forward()
	eventually(c, 20*time.Second, "the server has executed the release", func() bool {
		return countSessions(c, c.db, `ID = ?`, session) == 0
	})
	return intruded(c, successor, others)
}

// The leader shares its pool with an application that begins transactions by
// Exec: the COMMIT went to another session, or never came. So the lease is
// written inside of a transaction, and nobody sees it. When the session ends, as
// sessions do, all of that is gone, and a follower leads beside the leader.
func openTransaction(c *contest) hazardResult {
	pool := openOne(c, c.config, "")
	var session int64
	if err := pool.QueryRowContext(c.Context(), `SELECT CONNECTION_ID()`).Scan(&session); err != nil {
		c.Fatal(err)
	}
	exec(c, pool, `BEGIN`)
	leader := c.run(c.lock(pool, "leader"))
	leader.mustLead(c, 20*time.Second)
	leader.mustRenew(c, 2)
	for i := range 3 {
		c.run(c.lock(c.db, fmt.Sprintf("follower %d", i+1)))
	}
	leader.mustRenew(c, 3)
	if holder := table(c, c.db, `SELECT leader_name FROM election_records WHERE election_name = ?`, c.election); c.ours && holder != "leader" {
		c.Errorf("others see the election held by %q", holder)
	}
	_, _ = c.db.ExecContext(c.Context(), fmt.Sprintf(`KILL %d`, session)) // fails if it has ended already
	ended := time.Now()
	eventually(c, 20*time.Second, "a lease has passed since the session's end", func() bool { return time.Since(ended) > c.pace.lease })
	if c.ours && !leader.leads() {
		c.Error("the leader lost its lease")
	}
	return overlapped(c.contenders...)
}

// The leader shares its pool with an application that changes the session's
// default database, and there are tables of the same names: the leader finds no
// row, makes one and goes on, and so does whoever waited for the lease to end.
func otherDefaultDatabase(c *contest) hazardResult {
	other := newConfig(c)
	if err := mysqllock.Migrate(c.Context(), open(c, other)); err != nil {
		c.Fatal(err)
	}
	pool := openOne(c, c.config, "")
	leader := c.run(c.lock(pool, "leader"))
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	exec(c, pool, `USE `+other.DBName)
	changed := time.Now()
	if !c.ours {
		successor, _ := whoLeads(c, followers, c.pace.takeoverWithin())
		leader.mustRenew(c, 5) // both go on
		successor.mustRenew(c, 5)
		leader.mustRenew(c, 1)
		o := overlapped(c.contenders...)
		o.note = "and no end"
		return o
	}
	eventually(c, 20*time.Second, "two leases have passed", func() bool { return time.Since(changed) > 2*c.pace.lease })
	leader.mustRenew(c, 2)
	if n := len(leader.led(time.Now())); n != 1 || !leader.leads() {
		c.Errorf("the leader had %d terms (leads now: %t)", n, leader.leads())
	}
	return overlapped(c.contenders...)
}

// countSessions counts the server's sessions.
func countSessions(t testing.TB, db *sql.DB, condition string, args ...any) (n int) {
	t.Helper()
	table := "performance_schema.processlist"
	if server.MariaDB() {
		table = "information_schema.PROCESSLIST"
	}
	if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM `+table+` WHERE `+condition, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// ErrDuplicateIdentity tells why a compare-and-swap was lost, and the elector
// still sees the Conflict that it knows.
func TestACompareAndSwapLostToATwinSaysSo(t *testing.T) {
	db, _ := newTables(t)
	first, second, stranger := newLock(t, db, "e", "twin"), newLock(t, db, "e", "twin"), newLock(t, db, "e", "stranger")
	takeOver(t, first)
	takeOver(t, second)
	err := first.Update(t.Context(), record("twin"))
	if !apierrors.IsConflict(err) || !errors.Is(err, mysqllock.ErrDuplicateIdentity) {
		t.Errorf("lost to a twin: %v", err)
	}
	takeOver(t, stranger)
	err = second.Update(t.Context(), record("twin"))
	if !apierrors.IsConflict(err) || errors.Is(err, mysqllock.ErrDuplicateIdentity) {
		t.Errorf("lost to a stranger: %v", err)
	}
}

// A release was given up and is on its way still when the row is deleted and
// the same Lock makes it again: with versions that count from 1 again, it would
// end the new term.
func TestAnAbandonedReleaseDoesNotEndATermOfARowThatWasMadeAgain(t *testing.T) {
	db, config := newTables(t)
	network := newProxy(t, config.Addr)
	// The Lock's first connection is the one that fails.
	config = config.Clone()
	var healthy atomic.Bool
	direct := config.Addr
	failing := network.config(config).Addr
	config.DialFunc = func(ctx context.Context, networkName, _ string) (conn net.Conn, err error) {
		address := failing
		if healthy.Load() {
			address = direct
		}
		return (&net.Dialer{}).DialContext(ctx, networkName, address)
	}
	pool := open(t, config)
	pool.SetMaxOpenConns(1)
	lock := newLock(t, pool, "e", "a", mysqllock.WithOperationTimeout(time.Second))
	begin := func() {
		t.Helper()
		takeOver(t, lock)
		if err := lock.Update(t.Context(), record("a")); err != nil {
			t.Fatal(err)
		}
	}
	var session int64
	if err := pool.QueryRowContext(t.Context(), `SELECT CONNECTION_ID()`).Scan(&session); err != nil {
		t.Fatal(err)
	}
	begin()
	network.blackHole()
	if err := lock.Update(t.Context(), record("")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the release: %v", err)
	}
	if token, held := lock.FencingToken(); held {
		t.Errorf("the token %d is held although the lease may be released", token)
	}
	healthy.Store(true)
	exec(t, db, `DELETE FROM election_records`)
	begin()
	network.forward()
	eventually(t, 20*time.Second, "the server has executed the first release", func() bool {
		return countSessions(t, db, `ID = ?`, session) == 0
	})
	var holder string
	if err := db.QueryRowContext(t.Context(), `SELECT leader_name FROM election_records WHERE election_name = 'e'`).Scan(&holder); err != nil || holder != "a" {
		t.Errorf("the row is held by %q (error %v) after a release of an earlier row", holder, err)
	}
	if err := lock.Update(t.Context(), record("a")); err != nil {
		t.Errorf("the renewal: %v", err)
	}
}

// A candidate vanishes, with neither FIN nor RST, at each packet of a takeover
// and of a Create in turn. Whatever the server has of it by then must not be in
// another candidate's way: a takeover that was a transaction of several packets
// would keep its locks until the server's wait_timeout, 8 hours later.
func TestACandidateThatIsCutOffAtAnyPacketOfATakeoverHindersNobody(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	patient := mysqllock.WithOperationTimeout(time.Second) // on a busy machine
	// attempt cuts a candidate off after n packets; negative: never.
	attempt := func(t *testing.T, election string, n int) (packets int) {
		network := newSevered(t)
		pool := open(t, network.config(config))
		pool.SetMaxOpenConns(1)
		if err := pool.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		lock := newLock(t, pool, election, "cut off", patient)
		network.after(n)
		if err := tryTakeOver(t.Context(), lock); (err == nil) != (n < 0) {
			t.Fatalf("after %d packets: %v", n, err)
		}
		packets = network.count()
		if n < 0 {
			return packets
		}
		start := time.Now()
		other := newLock(t, db, election, "other", patient)
		eventually(t, 5*time.Second, "another candidate leads", func() bool { return tryTakeOver(t.Context(), other) == nil })
		t.Logf("HAZARD | h: cut off after packet %d of a %s | another candidate leads %v later", n, election, time.Since(start).Round(time.Millisecond))
		if err := other.Update(t.Context(), record("other")); err != nil {
			t.Errorf("its renewal: %v", err)
		}
		if _, held := lock.FencingToken(); held {
			t.Error("the candidate that was cut off holds a token")
		}
		return packets
	}
	for _, operation := range []string{"Create", "takeover"} {
		prepare := func(t *testing.T, election string) {
			if operation == "takeover" {
				takeOver(t, newLock(t, db, election, "gone", patient))
			}
		}
		prepare(t, operation)
		packets := attempt(t, operation, -1)
		if packets < 3 {
			t.Fatalf("%s took %d packets only", operation, packets)
		}
		var tests []test
		for n := range packets + 1 {
			tests = append(tests, test{fmt.Sprintf("%s, %d of %d", operation, n, packets), func(t *testing.T) {
				election := fmt.Sprintf("%s %d", operation, n)
				prepare(t, election)
				attempt(t, election, n)
			}})
		}
		together(t, tests...)
	}
}

// A leader's work is cut off in the same way at each packet of a Transact. The
// leader's own renewals go on, and another candidate can take over at the
// latest about a lease after the guard, when the server drops the session.
func TestWorkThatIsCutOffAtAnyPacketOfATransactHoldsTakeoversOffForALeaseAtMost(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	newLedger(t, config)
	patient := mysqllock.WithOperationTimeout(time.Second) // on a busy machine
	const lease = time.Second
	inOneSecond := record("leader")
	inOneSecond.LeaseDurationSeconds = int(lease / time.Second)
	// start begins a Transact that is cut off after n packets; negative: never.
	start := func(t *testing.T, leader *mysqllock.Lock, entry string, n int) (network *severed, result chan error) {
		if err := leader.Create(t.Context(), inOneSecond); err != nil {
			t.Fatal(err)
		}
		network = newSevered(t)
		work := open(t, network.config(config))
		work.SetMaxOpenConns(1)
		if err := work.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		network.after(n)
		result = make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // for the function's own statement
			defer cancel()
			result <- leader.Transact(ctx, work, nil, inserting(entry))
		}()
		return network, result
	}
	whole, result := start(t, newLock(t, db, "whole", "leader", patient), "whole", -1)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	packets := whole.count()
	var tests []test
	for n := range packets + 1 {
		tests = append(tests, test{fmt.Sprintf("%d of %d", n, packets), func(t *testing.T) {
			election := fmt.Sprintf("transact %d", n)
			leader := newLock(t, db, election, "leader", patient)
			other := newLock(t, db, election, "other", patient)
			network, result := start(t, leader, election, n)
			<-network.cut
			cut := time.Now()
			renewals := 0
			eventually(t, lease+4*time.Second, "another candidate takes over", func() bool {
				if err := leader.Update(t.Context(), inOneSecond); err != nil {
					t.Errorf("the leader's renewal: %v", err)
				}
				renewals++
				return tryTakeOver(t.Context(), other) == nil
			})
			t.Logf("HAZARD | h: cut off after packet %d of %d of a Transact | takeover %v later, lease %v, %d renewals meanwhile",
				n, packets, time.Since(cut).Round(10*time.Millisecond), lease, renewals)
			err := <-result
			committed := slices.Contains(ledger(t, db), election)
			if unknown := errors.Is(err, mysqllock.ErrOutcomeUnknown); !unknown && committed != (err == nil) {
				t.Errorf("committed: %t, error %v", committed, err)
			}
		}})
	}
	together(t, tests...)
}

// A transaction guards a term whose leader has stopped renewing; five followers
// want to take over meanwhile. They are refused at once, leave no session
// waiting at the server, and one leads soon after the guard has ended.
func TestFollowersOfAGuardedTermNeitherQueueNorWaitLong(t *testing.T) {
	t.Parallel()
	o := newArena(t).hold(t, true, brisk, followersOfAGuardedTerm, unbroken)
	t.Logf("HAZARD | i: five followers of a guarded term | | %s", o.note)
}

func followersOfAGuardedTerm(c *contest) hazardResult {
	const n = 5
	gone := newLock(c, c.db, c.election, "gone", mysqllock.WithOperationTimeout(5*time.Second)) // its own pace doesn't matter
	ofTwoSeconds := record("gone")
	ofTwoSeconds.LeaseDurationSeconds = 2
	if err := gone.Create(c.Context(), ofTwoSeconds); err != nil {
		c.Fatal(err)
	}
	work := openDSN(c, c.config, "")
	tx, err := work.BeginTx(c.Context(), nil)
	if err != nil {
		c.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // of nothing, if all is well
	if err := gone.Guard(c.Context(), tx); err != nil {
		c.Fatal(err)
	}
	var followers []*contender
	for i := range n {
		followers = append(followers, c.run(c.lock(open(c, c.config), fmt.Sprintf("follower %d", i+1))))
	}
	admin := openDSN(c, c.config, "")
	sessions := 0
	// The lease ends after 2 s; for the rest of the time followers try.
	end := time.After(7 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for guarded := true; guarded; {
		select {
		case <-tick.C:
			sessions = max(sessions, countSessions(c, admin, `DB = ?`, c.config.DBName))
		case <-end:
			guarded = false
		}
	}
	if slices.ContainsFunc(followers, (*contender).leads) {
		c.Fatal("a follower leads while the guard holds")
	}
	if err := tx.Commit(); err != nil {
		c.Fatal(err)
	}
	ended := time.Now()
	whoLeads(c, followers, 10*time.Second)
	took := time.Since(ended)

	var refusals []time.Duration
	for _, f := range followers {
		for _, u := range f.written() {
			if u.err != nil && strings.Contains(u.err.Error(), "a transaction guards the current term") {
				refusals = append(refusals, u.returned.Sub(u.started))
			}
		}
	}
	if len(refusals) < 2*n {
		c.Fatalf("%d refusals only", len(refusals))
	}
	slices.Sort(refusals)
	median := refusals[len(refusals)/2]
	// One or two for each follower, and those of the leader, its work, the
	// administrator and the arena.
	if limit := 2*n + 5; sessions > limit {
		c.Errorf("%d sessions at the server, want at most %d", sessions, limit)
	}
	if median > c.pace.operationTimeout()/2 {
		c.Errorf("half of the refusals took %v and longer", median)
	}
	if limit := c.pace.takeoverWithin() - c.pace.lease; took > limit {
		c.Errorf("a new leader %v after the guard, want at most %v", took, limit)
	}
	return hazardResult{note: fmt.Sprintf("at most %d sessions, %d refusals, median %v, a new leader %v after the guard",
		sessions, len(refusals), median.Round(100*time.Microsecond), took.Round(time.Millisecond))}
}

// One Lock serves one elector after the other. Whatever the last run ended by,
// the next one can lead again, with a larger token; between them there is none.
func TestOneLockServesRunAfterRun(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	newLedger(t, a.config)
	o := a.hold(t, true, brisk, runAfterRun, unbroken)
	t.Logf("HAZARD | j: one Lock for run after run | | %s", o.note)
}

func runAfterRun(c *contest) hazardResult {
	work := c.arena.db
	lock := c.lock(c.proxied(), "again")
	own := lock.Interface.(*mysqllock.Lock)
	other := newLock(c, c.db, c.election, "other")
	largest := int64(0)
	endings := []string{"release", "no release", "no release", "deposed", "cut off", "row deleted", "release"}
	for _, ending := range endings {
		if _, held := own.FencingToken(); held {
			c.Fatalf("before %q: a token is held, and nobody leads", ending)
		}
		if err := own.Transact(c.Context(), work, nil, inserting(ending)); !errors.Is(err, mysqllock.ErrNotLeader) {
			c.Errorf("before %q: error %v, want ErrNotLeader", ending, err)
		}
		how := func(config *leaderelection.LeaderElectionConfig) { config.ReleaseOnCancel = ending == "release" }
		run := c.run(lock, how)
		run.mustLead(c, c.pace.takeoverWithin())
		token, held := own.FencingToken()
		if !held || token <= largest {
			c.Errorf("%q: token %d (held: %t) after %d", ending, token, held, largest)
		}
		largest = token
		run.mustRenew(c, 2)
		if again, held := own.FencingToken(); again != token || !held {
			c.Errorf("%q: the token of the term changed from %d to %d (held: %t)", ending, token, again, held)
		}
		switch ending {
		case "deposed":
			takeOver(c, other)
			token, _ := other.FencingToken()
			largest = max(largest, token)
			run.mustEnd(c) // as it can't renew
			if err := other.Update(c.Context(), record("")); err != nil {
				c.Fatal(err)
			}
		case "cut off":
			c.network.blackHole()
			run.mustEnd(c)
			c.network.forward()
		case "row deleted":
			run.pause(c)
			exec(c, c.db, `DELETE FROM election_records WHERE election_name = ?`, c.election)
			run.cancel()
			run.resume()
			run.mustEnd(c)
		default:
			run.stop()
		}
	}
	wantLedger(c, work)
	return hazardResult{note: fmt.Sprintf("%d terms, each with a larger token", len(endings))}
}

// WithTimings leaves an operation little time, but not so little that an outage
// of a third of the lease costs it.
func TestALeaderKeepsItsLeaseThroughAnOutageOfAThirdOfIt(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	var tests []test
	for _, p := range []pace{
		{6 * time.Second, 4 * time.Second, 800 * time.Millisecond},
		{15 * time.Second, 10 * time.Second, 2 * time.Second}, // client-go's defaults
	} {
		tests = append(tests, test{fmt.Sprintf("%v, %v, %v", p.lease, p.renewDeadline, p.retry), func(t *testing.T) {
			o := a.hold(t, true, p, outage, unbroken)
			t.Logf("HAZARD | k: an outage of %v, with a lease of %v | | %v", p.lease/3, p.lease, o)
		}})
	}
	together(t, tests...)
}

func outage(c *contest) hazardResult {
	begun := make(chan time.Time, 1)
	arm := failAtNextRenewal(c.network, func() { c.network.blackHole(); begun <- time.Now() }, nil)
	leader := c.run(c.lock(c.proxied(), "leader"))
	leader.mustLead(c, 20*time.Second)
	follower := c.follow(1)[0]
	arm()
	outage := time.After(time.Until(receive(c, "the leader's next renewal", begun).Add(c.pace.lease / 3)))
	before := len(leader.succeeded())
	<-outage
	if n := len(leader.succeeded()); n != before {
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

func TestWithTimingsRefusesTimingsThatLeaveNoRoom(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	lock := func(opts ...mysqllock.Option) (*mysqllock.Lock, error) {
		return mysqllock.New(db, "e", resourcelock.ResourceLockConfig{Identity: "a"}, opts...)
	}
	const why = " don't leave 50ms for an operation: (LeaseDuration - RenewDeadline - RetryPeriod) / 2 must be at least that, " +
		"RenewDeadline more than 1.2 times RetryPeriod, and LeaseDuration whole seconds; "
	for _, c := range []struct {
		pace
		given, instead string // "" if they are accepted
	}{
		{pace: pace{15 * time.Second, 10 * time.Second, 2 * time.Second}},
		{pace: pace{60 * time.Second, 40 * time.Second, 15 * time.Second}},
		{pace: pace{time.Second, 700 * time.Millisecond, 200 * time.Millisecond}}, // leaves exactly 50ms
		{pace{time.Second, 701 * time.Millisecond, 200 * time.Millisecond}, "LeaseDuration 1s, RenewDeadline 701ms and RetryPeriod 200ms", "1s, 666ms and 133ms"},
		{pace{15 * time.Second, 13 * time.Second, 2 * time.Second}, "LeaseDuration 15s, RenewDeadline 13s and RetryPeriod 2s", "15s, 10s and 2s"},
		{pace{15 * time.Second, 15 * time.Second, 2 * time.Second}, "LeaseDuration 15s, RenewDeadline 15s and RetryPeriod 2s", "15s, 10s and 2s"},
		{pace{15 * time.Second, 2400 * time.Millisecond, 2 * time.Second}, "LeaseDuration 15s, RenewDeadline 2.4s and RetryPeriod 2s", "15s, 10s and 2s"},
		{pace{15 * time.Second, 10 * time.Second, 0}, "LeaseDuration 15s, RenewDeadline 10s and RetryPeriod 0s", "15s, 10s and 2s"},
		{pace{15 * time.Second, 10 * time.Second, -time.Second}, "LeaseDuration 15s, RenewDeadline 10s and RetryPeriod -1s", "15s, 10s and 2s"},
		{pace{15 * time.Second, 0, 2 * time.Second}, "LeaseDuration 15s, RenewDeadline 0s and RetryPeriod 2s", "15s, 10s and 2s"},
		{pace{1900 * time.Millisecond, 1200 * time.Millisecond, 200 * time.Millisecond}, "LeaseDuration 1.9s, RenewDeadline 1.2s and RetryPeriod 200ms", "2s, 1.333s and 266ms"},
		{pace{0, 0, 0}, "LeaseDuration 0s, RenewDeadline 0s and RetryPeriod 0s", "1s, 666ms and 133ms"},
		{pace{-time.Second, 10 * time.Second, 2 * time.Second}, "LeaseDuration -1s, RenewDeadline 10s and RetryPeriod 2s", "1s, 666ms and 133ms"},
	} {
		_, err := lock(c.option())
		if c.given == "" {
			if err != nil {
				t.Errorf("%v: %v", c.pace, err)
			}
			continue
		}
		if want := `mysqllock: new "e": WithTimings: ` + c.given + why + c.instead + ` would work`; err == nil || err.Error() != want {
			t.Errorf("%v:\nerror %v\nwant  %s", c.pace, err, want)
		}
		// What is proposed is accepted, by client-go too.
		var texts [3]string
		if _, err := fmt.Sscanf(strings.NewReplacer(",", "", " and", "").Replace(c.instead), "%s %s %s", &texts[0], &texts[1], &texts[2]); err != nil {
			t.Fatal(err)
		}
		var proposed [3]time.Duration
		for i, text := range texts {
			if proposed[i], err = time.ParseDuration(text); err != nil {
				t.Fatal(err)
			}
		}
		accepted, err := lock(mysqllock.WithTimings(proposed[0], proposed[1], proposed[2]))
		if err != nil {
			t.Errorf("%s: %v", c.instead, err)
			continue
		}
		_, err = leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: accepted, LeaseDuration: proposed[0], RenewDeadline: proposed[1], RetryPeriod: proposed[2],
			Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) {}, OnStoppedLeading: func() {}},
		})
		if err != nil {
			t.Errorf("%s: %v", c.instead, err)
		}
	}

	defaults := mysqllock.WithTimings(15*time.Second, 10*time.Second, 2*time.Second)
	if _, err := lock(defaults, mysqllock.WithOperationTimeout(1500*time.Millisecond)); err != nil {
		t.Error(err)
	}
	const tooLong = `mysqllock: new "e": WithOperationTimeout(1.501s) is longer than the 1.5s that WithTimings leaves for an operation; leave WithOperationTimeout out`
	for _, opts := range [][]mysqllock.Option{
		{defaults, mysqllock.WithOperationTimeout(1501 * time.Millisecond)},
		{mysqllock.WithOperationTimeout(1501 * time.Millisecond), defaults},
	} {
		if _, err := lock(opts...); err == nil || err.Error() != tooLong {
			t.Errorf("error %v, want %s", err, tooLong)
		}
	}

	// An elector with another LeaseDuration than the one that was told.
	accepted, err := lock(defaults)
	if err != nil {
		t.Fatal(err)
	}
	other := record("a")
	other.LeaseDurationSeconds = 14
	const mismatch = `mysqllock: create "e": leaseDurationSeconds is 14, WithTimings says 15s; give WithTimings the elector's own LeaseDuration`
	if err := accepted.Create(t.Context(), other); err == nil || err.Error() != mismatch {
		t.Errorf("error %v, want %s", err, mismatch)
	}
	if err := accepted.Create(t.Context(), record("a")); err != nil {
		t.Error(err)
	}
	if err := accepted.Update(t.Context(), record("")); err != nil {
		t.Error(err)
	}
}
