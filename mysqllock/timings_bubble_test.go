//go:build go1.25

package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Electors and server are real here, but the time is synctest's: it goes on once everybody waits
// for it, and stands still while the server works. So minutes of an election take milliseconds, and
// timings are what they are said to be.

// elected is a candidate in a bubble, its lock, and what it logged.
type elected struct {
	*testing.T
	*candidate
	lock *mysqllock.Lock
	logs func() string
}

// inBubble runs a test in a bubble of its own, with a pool made there.
func inBubble(t *testing.T, config *mysql.Config, test func(t *testing.T, db *sql.DB)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, open(t, config)) })
}

// startElector starts one, whose calls pass through wrap, unless that is nil.
func startElector(t *testing.T, ctx context.Context, timings cadence, lock *mysqllock.Lock, wrap func(resourcelock.Interface) resourcelock.Interface) *elected {
	t.Helper()
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
	e := &elected{T: t, lock: lock}
	e.logs = func() string { return logger.GetSink().(ktesting.Underlier).GetBuffer().String() }
	var used resourcelock.Interface = lock
	if wrap != nil {
		used = wrap(lock)
	}
	e.candidate = start(t, used, timings, releasing, within(klog.NewContext(ctx, logger)))
	return e
}

// mustEnd waits until the elector has given up, or has returned.
func (e *elected) mustEnd() {
	e.Helper()
	select {
	case <-e.ended:
	case <-time.After(time.Hour):
		e.Fatal("not within an hour: the elector's end")
	}
}

// wrapper is a user's own around a lock, for calls of Update.
type wrapper struct {
	resourcelock.Interface
	update func(context.Context, resourcelock.LeaderElectionRecord) error
}

func (w *wrapper) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return w.update(ctx, record)
}

// wantSeen compares what the lock has seen of its elector, and made of it.
func (e *elected) wantSeen(when string, renewDeadline, retry, d time.Duration) {
	e.Helper()
	seenRenewDeadline, seenRetry := e.lock.ElectorTimings()
	if seenRenewDeadline != renewDeadline || seenRetry != retry {
		e.Errorf("%s: RenewDeadline %v and RetryPeriod %v were seen, want %v and %v", when, seenRenewDeadline, seenRetry, renewDeadline, retry)
	}
	if got := e.lock.OperationTimeout(); got != d {
		e.Errorf("%s: an operation may take %v, want %v", when, got, d)
	}
}

// noRoomLogged is how often it is logged that the timings leave no room.
func (e *elected) noRoomLogged() (n int) {
	for line := range strings.Lines(e.logs()) {
		if strings.Contains(line, "Two may lead for a moment") && strings.Contains(line, `lock="`+e.lock.Describe()+`"`) {
			n++
		}
	}
	return n
}

// mustRenew waits for the n-th renewal.
func (e *elected) mustRenew(n int) {
	e.Helper()
	eventually(e, time.Hour, "renewals", func() bool { return len(e.renewals()) >= n })
}

// candidateIn makes a lock without what newLock adds, which would outlive a bubble.
func candidateIn(t *testing.T, db *sql.DB, election string, opts ...mysqllock.Option) *mysqllock.Lock {
	t.Helper()
	lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: "a"}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

func multiLock(t *testing.T, db *sql.DB, primary bool) func(resourcelock.Interface) resourcelock.Interface {
	return func(lock resourcelock.Interface) resourcelock.Interface {
		other := resourcelock.Interface(candidateIn(t, db, "the other lock"))
		if !primary {
			lock, other = other, lock
		}
		return &resourcelock.MultiLock{Primary: lock, Secondary: other}
	}
}

func TestTimingsOfTheStockElectorAreSeen(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	for _, c := range []struct {
		name    string
		timings cadence
		// d is that of a takeover, of the first renewals, and of those from the fourth on, when
		// RetryPeriod is known.
		takeover, first, later time.Duration
		unsafe                 bool
	}{
		{"client-go", defaults, 1500 * time.Millisecond, 1500 * time.Millisecond, 1500 * time.Millisecond, false},
		{"OpenShift", cadence{137 * time.Second, 107 * time.Second, 26 * time.Second}, 1500 * time.Millisecond, 1500 * time.Millisecond, 1500 * time.Millisecond, false},
		{"CSI sidecars", cadence{15 * time.Second, 10 * time.Second, 5 * time.Second}, 1500 * time.Millisecond, 1500 * time.Millisecond, 50 * time.Millisecond, true},
		{"a renew deadline near the lease", cadence{10 * time.Second, 9600 * time.Millisecond, 200 * time.Millisecond}, time.Second, 200 * time.Millisecond, 100 * time.Millisecond, false},
		{"just enough room", cadence{3 * time.Second, 2700 * time.Millisecond, 200 * time.Millisecond}, 300 * time.Millisecond, 150 * time.Millisecond, 50 * time.Millisecond, false},
		{"less than no room", cadence{3 * time.Second, 2900 * time.Millisecond, time.Second}, 300 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond, true},
		{"a short lease", cadence{time.Second, 700 * time.Millisecond, 100 * time.Millisecond}, 100 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond, false},
	} {
		for _, under := range []string{"alone", "primary of a MultiLock", "secondary of a MultiLock", "a context with a deadline", "in a Batch"} {
			t.Run(c.name+", "+under, func(t *testing.T) {
				inBubble(t, config, func(t *testing.T, db *sql.DB) {
					exec(t, db, `DELETE FROM election_records`)
					ctx := context.Background()
					var wrap func(resourcelock.Interface) resourcelock.Interface
					var opts []mysqllock.Option
					switch under {
					case "primary of a MultiLock", "secondary of a MultiLock":
						wrap = multiLock(t, db, strings.HasPrefix(under, "primary"))
					case "a context with a deadline":
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, time.Hour)
						defer cancel()
					case "in a Batch":
						opts = []mysqllock.Option{mysqllock.WithBatch(new(mysqllock.Batch))}
					}
					lock := candidateIn(t, db, "seen", opts...)
					e := startElector(t, ctx, c.timings, lock, wrap)
					if d := lock.OperationTimeout(); d != 1500*time.Millisecond {
						t.Errorf("before anything is known, an operation may take %v", d)
					}
					e.mustRenew(1)
					e.wantSeen("after the first renewal", c.timings.renewDeadline, 0, c.first)
					e.mustRenew(3)
					e.wantSeen("after the third renewal", c.timings.renewDeadline, 0, c.first)
					e.mustRenew(4)
					e.wantSeen("after the fourth renewal", c.timings.renewDeadline, c.timings.retry, c.later)
					e.mustRenew(20)
					e.wantSeen("much later", c.timings.renewDeadline, c.timings.retry, c.later)
					if errs := e.refusals(); len(errs) > 0 {
						t.Errorf("an Update failed: %v", errs)
					}
					if logged := e.noRoomLogged(); (logged == 1) != c.unsafe || logged > 1 {
						t.Errorf("logged %d times:\n%s", logged, e.logs())
					}
				})
			})
		}
	}
}

// errAway is what a wrapper returns in place of a lock.
var errAway = errors.New("away")

// An elector whose RenewDeadline is longer than told would be trusted for too long.
func TestTimingsOptionRefusesAnElectorWithALongerRenewDeadline(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	told := mysqllock.WithTimings(15*time.Second, 10*time.Second, 2*time.Second)
	for _, c := range []struct {
		timings cadence
		refused string // "" if it isn't
	}{
		{cadence{15 * time.Second, 12 * time.Second, time.Second}, `mysqllock: update "told": RenewDeadline is 12s, WithTimings says 10s; give WithTimings the elector's own RenewDeadline`},
		{cadence{15 * time.Second, 10*time.Second + 20*time.Millisecond, 2 * time.Second}, `mysqllock: update "told": RenewDeadline is 10.02s, WithTimings says 10s; give WithTimings the elector's own RenewDeadline`},
		{defaults, ""},
		{cadence{15 * time.Second, 8 * time.Second, 2 * time.Second}, ""},
	} {
		t.Run(c.timings.renewDeadline.String(), func(t *testing.T) {
			inBubble(t, config, func(t *testing.T, db *sql.DB) {
				exec(t, db, `DELETE FROM election_records`)
				lock := candidateIn(t, db, "told", told)
				e := startElector(t, context.Background(), c.timings, lock, nil)
				if c.refused == "" {
					e.mustRenew(10)
					if errs := e.refusals(); len(errs) > 0 {
						t.Errorf("an Update failed: %v", errs)
					}
					return
				}
				e.mustEnd()
				if n := len(e.renewals()); n > 0 {
					t.Errorf("%d renewals", n)
				}
				for _, err := range e.refusals() {
					if err.Error() != c.refused {
						t.Errorf("the elector was told %v\nwant %s", err, c.refused)
					}
				}
				if row := readRow(t, db, "told"); row.Holder != "a" {
					t.Errorf("the row after an elector has given up: %+v", row)
				}
				// Its next term would be as short, and its work would begin for nothing.
				again := startElector(t, context.Background(), c.timings, lock, nil)
				eventually(t, time.Hour, "three more tries", func() bool { return len(again.refusals()) >= 3 })
				if row := readRow(t, db, "told"); row.Holder != "a" || len(again.renewals()) > 0 {
					t.Errorf("the row after further tries: %+v", row)
				}
				if _, held := lock.FencingToken(); held {
					t.Error("a further term began")
				}
			})
		})
	}
}

// What is between elector and lock may only shorten what an operation may take.
func TestTimingsSeenThroughACallersOwnContextMakeALockNoLessCareful(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	tight := cadence{10 * time.Second, 9600 * time.Millisecond, 200 * time.Millisecond}
	shorter := func(d time.Duration) func(resourcelock.Interface) resourcelock.Interface {
		return func(lock resourcelock.Interface) resourcelock.Interface {
			return &wrapper{lock, func(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
				ctx, cancel := context.WithTimeout(ctx, d)
				defer cancel()
				return lock.Update(ctx, record)
			}}
		}
	}
	endless := func(lock resourcelock.Interface) resourcelock.Interface {
		return &wrapper{lock, func(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
			return lock.Update(context.WithoutCancel(ctx), record)
		}}
	}
	for _, c := range []struct {
		name    string
		timings cadence
		opts    []mysqllock.Option
		wrap    func(resourcelock.Interface) resourcelock.Interface
		run     time.Duration // the deadline of Run's context
		d       time.Duration
	}{
		{name: "no deadline", timings: tight, wrap: endless, d: time.Second},
		{name: "no deadline, WithTimings", timings: tight, opts: []mysqllock.Option{mysqllock.WithTimings(tight.lease, tight.renewDeadline, tight.retry)}, wrap: endless, d: 100 * time.Millisecond},
		{name: "a shorter one for each call", timings: defaults, wrap: shorter(time.Second), d: 1500 * time.Millisecond},
		{name: "a shorter one for each call, WithTimings", timings: tight, opts: []mysqllock.Option{mysqllock.WithTimings(tight.lease, tight.renewDeadline, tight.retry)}, wrap: shorter(time.Second), d: 100 * time.Millisecond},
		{name: "a longer one for each call", timings: tight, wrap: shorter(time.Hour), d: 100 * time.Millisecond},
		{name: "a shorter one of Run's", timings: defaults, run: 9 * time.Second, d: 1500 * time.Millisecond},
		{name: "WithOperationTimeout that is too long", timings: tight, opts: []mysqllock.Option{mysqllock.WithOperationTimeout(700 * time.Millisecond)}, d: 100 * time.Millisecond},
		{name: "WithOperationTimeout that is short", timings: tight, opts: []mysqllock.Option{mysqllock.WithOperationTimeout(20 * time.Millisecond)}, d: 20 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, config, func(t *testing.T, db *sql.DB) {
				exec(t, db, `DELETE FROM election_records`)
				ctx := context.Background()
				if c.run > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.run)
					defer cancel()
				}
				lock := candidateIn(t, db, "careful", c.opts...)
				e := startElector(t, ctx, c.timings, lock, c.wrap)
				e.mustRenew(5)
				if d := lock.OperationTimeout(); d != c.d {
					t.Errorf("an operation may take %v, want %v", d, c.d)
				}
				if n := e.noRoomLogged(); n > 0 {
					t.Errorf("logged %d times:\n%s", n, e.logs())
				}
				<-time.After(c.timings.retry * 8 / 10) // a leader that waits for its next renewal has not given up
				e.stop()
				if errs := e.refusals(); len(errs) > 0 {
					t.Errorf("an Update failed: %v", errs)
				}
				if row := readRow(t, db, "careful"); row.Holder != "" {
					t.Errorf("not released: %+v", row)
				}
			})
		})
	}
}

// A candidate's context may end in hours, and that of a renewal that is none yet: under a MultiLock
// whose other lock refuses, the lease is held, but the elector doesn't lead, and goes on as a
// candidate.
func TestTimingsAreNotSeenInACandidatesContext(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	inBubble(t, config, func(t *testing.T, db *sql.DB) {
		lock := candidateIn(t, db, "seen", mysqllock.WithTimings(15*time.Second, 10*time.Second, 2*time.Second))
		away := true // a term's elector is the only one that uses it
		other := candidateIn(t, db, "the other lock")
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Hour)
		defer cancel()
		// Both rows are there, as a MultiLock takes over by Update then.
		for _, l := range []*mysqllock.Lock{lock, other} {
			if err := l.Create(ctx, resourcelock.LeaderElectionRecord{LeaseDurationSeconds: 1}); err != nil {
				t.Fatal(err)
			}
		}
		tries := 0
		campaign := func() *elected {
			away, tries = true, 0
			return startElector(t, ctx, defaults, lock, func(lock resourcelock.Interface) resourcelock.Interface {
				return &resourcelock.MultiLock{Primary: lock, Secondary: &wrapper{other, func(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
					if tries++; away && tries < 5 {
						return errAway
					}
					away = false
					return other.Update(ctx, record)
				}}}
			})
		}
		for range 2 { // the second time, it has led before
			e := campaign()
			e.mustRenew(6)
			e.wantSeen("once it leads", 10*time.Second, 2*time.Second, 1500*time.Millisecond)
			e.stop()
			if n := len(e.refusals()); n != 4 {
				t.Errorf("%d tries failed", n)
			}
			for _, err := range e.refusals() {
				if !errors.Is(err, errAway) {
					t.Error(err)
				}
			}
		}
	})
}

// A process may stall, such as when its work begins. A long pause is not RetryPeriod.
func TestTimingsAreNotSeenInAStall(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	inBubble(t, config, func(t *testing.T, db *sql.DB) {
		lock := candidateIn(t, db, "stall")
		updates := 0
		e := startElector(t, context.Background(), defaults, lock, func(lock resourcelock.Interface) resourcelock.Interface {
			return &wrapper{lock, func(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
				if updates++; updates == 2 || updates == 3 || updates == 9 {
					<-time.After(4 * time.Second)
				}
				return lock.Update(ctx, record)
			}}
		})
		for n := 1; n <= 9; n++ {
			e.mustRenew(n)
			if d := lock.OperationTimeout(); d != 1500*time.Millisecond {
				t.Errorf("after renewal %d, an operation may take %v", n, d)
			}
		}
		e.wantSeen("in the end", 10*time.Second, 2*time.Second, 1500*time.Millisecond)
		if n := e.noRoomLogged(); n > 0 {
			t.Errorf("logged %d times:\n%s", n, e.logs())
		}
	})
}

// Retries within one round are closer together, or further apart, than RetryPeriod.
func TestTimingsAreNotSeenInTriesOfOneRound(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	inBubble(t, config, func(t *testing.T, db *sql.DB) {
		lock := candidateIn(t, db, "tries")
		updates := 0
		e := startElector(t, context.Background(), defaults, lock, func(lock resourcelock.Interface) resourcelock.Interface {
			return &wrapper{lock, func(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
				err := lock.Update(ctx, record)
				if updates++; err == nil && updates%4 != 0 {
					err = errAway // as a MultiLock's other lock does
				}
				return err
			}}
		})
		e.mustRenew(8)
		e.wantSeen("in the end", 10*time.Second, 2*time.Second, 1500*time.Millisecond)
	})
}

func TestTimingsWithoutRoomAreLoggedOnceATerm(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	inBubble(t, config, func(t *testing.T, db *sql.DB) {
		lock := candidateIn(t, db, "CSI")
		for term := range 3 {
			e := startElector(t, context.Background(), cadence{15 * time.Second, 10 * time.Second, 5 * time.Second}, lock, nil)
			e.mustRenew(10)
			e.stop()
			if n := e.noRoomLogged(); n != 1 {
				t.Errorf("logged %d times in term %d:\n%s", n, term, e.logs())
			}
			const advice = "LeaseDuration 15s, RenewDeadline 10s and RetryPeriod 5s don't leave 50ms for an operation"
			if !strings.Contains(e.logs(), advice) || !strings.Contains(e.logs(), "15s, 10s and 2s would work") {
				t.Errorf("logged:\n%s", e.logs())
			}
		}
	})
}

// client-go releases first and ends the work afterwards if it could not renew, so that such a
// release must be refused. It gives up long before half a lease here.
func TestReleaseByALeaderThatGaveUpBeforeHalfALeaseIsRefused(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	for name, opts := range map[string][]mysqllock.Option{
		"":              nil,
		", WithTimings": {mysqllock.WithTimings(15*time.Second, 10*time.Second, time.Second)}, // told too long
	} {
		for _, isStopped := range []bool{false, true} {
			t.Run(map[bool]string{false: "gave up", true: "was told to stop"}[isStopped]+name, func(t *testing.T) {
				inBubble(t, config, func(t *testing.T, db *sql.DB) {
					exec(t, db, `DELETE FROM election_records`)
					lock := candidateIn(t, db, "give up", opts...)
					updates := 0
					e := startElector(t, context.Background(), cadence{15 * time.Second, 5 * time.Second, time.Second}, lock, func(lock resourcelock.Interface) resourcelock.Interface {
						return &wrapper{lock, func(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
							if updates++; !isStopped && updates > 5 && record.HolderIdentity != "" {
								return errAway
							}
							return lock.Update(ctx, record)
						}}
					})
					holder := "a"
					e.mustRenew(5)
					if isStopped {
						e.stop()
						holder = ""
					}
					e.mustEnd()
					if row := readRow(t, db, "give up"); row.Holder != holder {
						t.Errorf("the row in the end: %+v", row)
					}
				})
			})
		}
	}
}
