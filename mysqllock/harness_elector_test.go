package mysqllock_test

import (
	"context"
	"database/sql"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// One runner of client-go's own elector, and the timings that tests give it.

// cadence is the timings of an elector: LeaseDuration, RenewDeadline and RetryPeriod.
type cadence struct{ lease, renewDeadline, retry time.Duration }

// operationTimeout is the deadline that WithTimings gives an operation.
func (c cadence) operationTimeout() time.Duration { return (c.lease - c.renewDeadline - c.retry) / 2 }

func (c cadence) option() mysqllock.Option {
	return mysqllock.WithTimings(c.lease, c.renewDeadline, c.retry)
}

// record is one that holds the lease for that duration, and begins a term.
func (c cadence) record(identity string) resourcelock.LeaderElectionRecord {
	return recordFor(identity, int(c.lease/time.Second))
}

// takeoverWithin is how long a follower needs when a leader is gone without a word: the lease, a
// poll that sees its last renewal and one that takes over, both with the acquire loop's jitter, and
// what a busy machine adds.
func (c cadence) takeoverWithin() time.Duration {
	return c.lease + time.Duration(2*(1+leaderelection.JitterFactor)*float64(c.retry)) + 3*time.Second
}

var (
	// patient candidates act often, but a slow machine can't make them lose a lease, and nobody
	// waits long enough here for one to expire.
	patient = cadence{time.Minute, 40 * time.Second, 100 * time.Millisecond}
	// hasty ones are for tests in which a lease has to expire.
	hasty = cadence{2 * time.Second, 1200 * time.Millisecond, 200 * time.Millisecond}
	// short is for contests in which a process is paused for a while.
	short = cadence{3 * time.Second, 2 * time.Second, 200 * time.Millisecond}
	// calm is a cadence that a slow machine can keep.
	calm = cadence{4 * time.Second, 2400 * time.Millisecond, 400 * time.Millisecond}
	// long leaves a wide window in which a reply may be late.
	long = cadence{6 * time.Second, 5 * time.Second, 200 * time.Millisecond}
	// defaults are client-go's.
	defaults = cadence{15 * time.Second, 10 * time.Second, 2 * time.Second}
)

// electorPatience bounds what happens within milliseconds on an idle machine, and is less than half
// of a patient lease: what happened by then had no need of an expiry.
const electorPatience = 25 * time.Second

// candidate is a stock elector that runs, the calls of its lock, and what it told of itself.
type candidate struct {
	*spy
	leading chan struct{} // closed when it first leads
	ended   chan struct{} // closed when it has ended
	end     context.CancelFunc

	mu sync.Mutex
	// story is what the callbacks told, in order: "started", "ended" (the context of
	// OnStartedLeading), "stopped".
	story []string
	// leaders are the identities of OnNewLeader.
	leaders []string
	// beliefs are the terms as the callbacks tell of them: from OnStartedLeading to OnStoppedLeading.
	beliefs []belief
	// from and to are the first term: from the moment that the elector knows that it leads, until it
	// stops, is told to stop or gives the lease up.
	from, to time.Time
	token    int64     // at its start
	stopped  time.Time // of OnStoppedLeading
}

// belief is when a candidate believed that it led.
type belief struct{ from, to time.Time }

// campaign is how an elector runs.
type campaign struct {
	leaderelection.LeaderElectionConfig
	ctx   context.Context
	again bool // elector after elector, until it is cancelled
}

// releasing makes an elector release its lease in the end. Without it, an elector ends as a process
// dies: its lease stays.
func releasing(c *campaign) { c.ReleaseOnCancel = true }

// again makes one elector follow the other until the candidate is stopped.
func again(c *campaign) { c.again = true }

// within makes an elector run in a context of the test's.
func within(ctx context.Context) func(*campaign) { return func(c *campaign) { c.ctx = ctx } }

// telling makes an elector write in a history when it leads and when it stops.
func telling(history chan<- string) func(*campaign) {
	return func(c *campaign) {
		identity, before := c.Lock.Identity(), c.Callbacks
		c.Callbacks.OnStartedLeading = func(ctx context.Context) {
			history <- identity + " leads"
			before.OnStartedLeading(ctx)
		}
		c.Callbacks.OnStoppedLeading = func() {
			before.OnStoppedLeading()
			history <- identity + " stopped"
		}
	}
}

// start runs the stock elector on a lock until stop, or the end of the test.
func start(t testing.TB, lock resourcelock.Interface, timings cadence, how ...func(*campaign)) *candidate {
	t.Helper()
	c, err := run(lock, timings, how...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	return c
}

// begin is start with a new lock of that name.
func begin(t testing.TB, db *sql.DB, election, identity string, timings cadence, how ...func(*campaign)) *candidate {
	t.Helper()
	return start(t, newLock(t, db, election, identity, mysqllock.WithOperationTimeout(timings.operationTimeout())), timings, how...)
}

// run is start for other goroutines than the test's: they stop the candidate.
func run(lock resourcelock.Interface, timings cadence, how ...func(*campaign)) (*candidate, error) {
	s, isSpy := lock.(*spy)
	if !isSpy {
		s = &spy{Interface: lock}
	}
	c := &candidate{spy: s, leading: make(chan struct{}), ended: make(chan struct{})}
	s.becameLeader, s.releasing = c.beginTerm, c.endTerm
	config := campaign{ctx: context.Background(), LeaderElectionConfig: leaderelection.LeaderElectionConfig{
		Lock:          s,
		Name:          s.Describe(),
		LeaseDuration: timings.lease,
		RenewDeadline: timings.renewDeadline,
		RetryPeriod:   timings.retry,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: c.startedLeading,
			OnStoppedLeading: c.stoppedLeading,
			OnNewLeader:      c.newLeader,
		},
	}}
	for _, f := range how {
		f(&config)
	}
	elector, err := leaderelection.NewLeaderElector(config.LeaderElectionConfig)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(config.ctx)
	c.end = cancel
	go func() {
		defer close(c.ended)
		elector.Run(ctx)
		for config.again && ctx.Err() == nil {
			elector.Run(ctx)
		}
	}()
	return c, nil
}

func (c *candidate) beginTerm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.from.IsZero() {
		return
	}
	c.from = time.Now()
	if lock, ok := c.Interface.(*mysqllock.Lock); ok {
		c.token, _ = lock.FencingToken()
	}
}

func (c *candidate) endTerm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.to.IsZero() {
		c.to = time.Now()
	}
}

func (c *candidate) startedLeading(ctx context.Context) {
	c.mu.Lock()
	c.story = append(c.story, "started")
	b := belief{from: time.Now()}
	if ctx.Err() != nil { // it has stopped already
		b.to = b.from
	}
	c.beliefs = append(c.beliefs, b)
	if len(c.beliefs) == 1 {
		close(c.leading)
	}
	c.mu.Unlock()
	<-ctx.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.story = append(c.story, "ended")
}

func (c *candidate) stoppedLeading() {
	c.endTerm()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.story = append(c.story, "stopped")
	c.stopped = time.Now()
	if n := len(c.beliefs); n > 0 && c.beliefs[n-1].to.IsZero() {
		c.beliefs[n-1].to = c.stopped
	}
}

func (c *candidate) newLeader(identity string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaders = append(c.leaders, identity)
}

// cancel ends the elector, which may release its lease before it has ended.
func (c *candidate) cancel() {
	c.endTerm()
	c.end()
}

// stop cancels the elector, even of a process that is paused, and waits until it has ended.
func (c *candidate) stop() {
	c.resume()
	c.cancel()
	<-c.ended
}

func (c *candidate) told(what string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.story, what)
}

// leads reports whether it believes so now.
func (c *candidate) leads() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.beliefs)
	return n > 0 && c.beliefs[n-1].to.IsZero()
}

// led are its beliefs so far; one that goes on ends now.
func (c *candidate) led(now time.Time) []belief {
	c.mu.Lock()
	defer c.mu.Unlock()
	beliefs := slices.Clone(c.beliefs)
	for i := range beliefs {
		if beliefs[i].to.IsZero() {
			beliefs[i].to = now
		}
	}
	return beliefs
}

// sawLeaders are the leaders that OnNewLeader named, but for the "" of an election that was seen
// between a release and the next term.
func (c *candidate) sawLeaders() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.leaders), func(s string) bool { return s == "" })
}

func (c *candidate) mustLead(t testing.TB, timeout time.Duration) {
	t.Helper()
	eventually(t, timeout, c.Identity()+" leads", c.leads)
}

// mustEnd waits until the elector has ended by itself.
func (c *candidate) mustEnd(t testing.TB) {
	t.Helper()
	select {
	case <-c.ended:
	case <-time.After(20 * time.Second):
		t.Fatalf("not within 20s: the end of %s", c.Identity())
	}
}

// mustRenew waits for n more renewals, or whatever Update succeeds.
func (c *candidate) mustRenew(t testing.TB, n int) {
	t.Helper()
	before := len(c.renewals())
	eventually(t, 20*time.Second, c.Identity()+" renews", func() bool { return len(c.renewals()) >= before+n })
}

// whoLeads waits until one of them leads.
func whoLeads(t testing.TB, candidates []*candidate, timeout time.Duration) (leader *candidate, others []*candidate) {
	t.Helper()
	eventually(t, timeout, "a candidate leads", func() bool {
		i := slices.IndexFunc(candidates, (*candidate).leads)
		if i < 0 {
			return false
		}
		leader = candidates[i]
		others = slices.Delete(slices.Clone(candidates), i, i+1)
		return true
	})
	return leader, others
}
