package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// ability is what a candidate's work needs besides the database, such as an API server.
type ability struct{ away atomic.Bool }

func (a *ability) check(context.Context) error {
	if a.away.Load() {
		return errors.New("the API server is away")
	}
	return nil
}

// beginAble starts an elector whose work needs that, and that steps down if it is asked to.
func beginAble(t testing.TB, db *sql.DB, identity string, needs *ability) *candidate {
	t.Helper()
	c, _ := beginAsked(t, db, identity, true, mysqllock.WithReadiness(needs.check))
	return c
}

func TestReadinessHandsOverFromALeaderThatIsCutOffAlone(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var leaders, followers ability
	leader := beginAble(t, db, "a", &leaders)
	<-leader.leading
	follower := beginAble(t, db, "b", &followers)
	eventually(t, electorPatience, "the follower polls", func() bool { return len(follower.history()) > 1 })
	leaders.away.Store(true)
	since := time.Now()
	<-follower.leading
	took := time.Since(since)
	t.Logf("a ready follower leads after %v, with a retry period of %v and a lease of %v", took.Round(time.Millisecond), hasty.retry, hasty.lease)
	if limit := 10*hasty.retry + stall; took > limit {
		t.Errorf("took %v, want at most %v", took, limit)
	}
	<-leader.ended
	if !leader.stopped.Before(follower.from.Add(stall)) {
		t.Error("two led at a time")
	}
	if e := getElection(t, db, "e"); !e.Ready || e.Holder != "b" {
		t.Errorf("the successor's row: %+v", e)
	}
}

// If nobody can work, nobody loses the lease; nor does an outage that ends for all at once cost it.
func TestReadinessCostsNoLeaseIfAllAreCutOff(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var all ability
	leader := beginAble(t, db, "a", &all)
	<-leader.leading
	followers := []*candidate{beginAble(t, db, "b", &all), beginAble(t, db, "c", &all)}
	for range 2 {
		all.away.Store(true)
		eventually(t, electorPatience, "the leader says that it isn't ready", func() bool { return !getElection(t, db, "e").Ready })
		goesOnFor(t, leader, followers, 5)
		all.away.Store(false)
		eventually(t, electorPatience, "the leader is ready again", func() bool { return getElection(t, db, "e").Ready })
		goesOnFor(t, leader, followers, 3)
	}
	if e := getElection(t, db, "e"); e.StepDownRequested || !leader.leads() || len(leader.sawLeaders()) > 1 {
		t.Errorf("the lease was lost, or asked for: %+v, leaders %v", e, leader.sawLeaders())
	}
}

// goesOnFor waits until each has made so many more calls.
func goesOnFor(t testing.TB, leader *candidate, followers []*candidate, calls int) {
	t.Helper()
	for _, c := range append(followers, leader) {
		before := len(c.history())
		eventually(t, electorPatience, "they go on", func() bool { return len(c.history()) >= before+calls })
	}
}

// A candidate that flaps is asked to go, at most once a lease.
func TestReadinessThatFlapsIsNoPingPong(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var flapping, other ability
	first := beginAble(t, db, "a", &flapping)
	<-first.leading
	second := beginAble(t, db, "b", &other)
	eventually(t, electorPatience, "the follower polls", func() bool { return len(second.history()) > 1 })
	flapping.away.Store(true)
	<-second.leading
	<-first.ended
	since := time.Now()
	again := beginAble(t, db, "a", &flapping)
	for time.Since(since) < 2*hasty.lease {
		flapping.away.Store(!flapping.away.Load())
		goesOnFor(t, second, []*candidate{again}, 1)
	}
	if !second.leads() || again.leads() {
		t.Error("leadership came back to the candidate that flaps")
	}
}

// One renewal without being ready is not enough: the leader's answer may be about to change.
func TestReadinessIsAskedOfTheLeaderForTwoRetries(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var away, here ability
	const retry = 300 * time.Millisecond
	timings := mysqllock.WithTimings(time.Minute, 40*time.Second, retry)
	leader := newLock(t, db, "e", "a", timings, mysqllock.WithReadiness(away.check))
	follower := newLock(t, db, "e", "b", timings, mysqllock.WithReadiness(here.check))
	takeOver := recordFor("a", 60)
	mustSucceed(t, "Create", create(t.Context(), leader, takeOver))
	away.away.Store(true)
	round := func() {
		t.Helper()
		mustSucceed(t, "a renewal", update(t.Context(), leader, takeOver))
		mustSucceed(t, "Get", get(t.Context(), follower))
	}
	began := time.Now()
	round()
	for time.Since(began) < 2*retry-50*time.Millisecond {
		round()
		if getElection(t, db, "e").StepDownRequested && time.Since(began) < 2*retry {
			t.Fatalf("asked after %v", time.Since(began))
		}
	}
	// Any other answer starts the time again.
	here.away.Store(true)
	round()
	here.away.Store(false)
	began = time.Now()
	round()
	for time.Since(began) < 2*retry-50*time.Millisecond {
		round()
		if getElection(t, db, "e").StepDownRequested && time.Since(began) < 2*retry {
			t.Fatalf("asked %v after the follower was not ready itself", time.Since(began))
		}
	}
	eventually(t, electorPatience, "the leader is asked", func() bool {
		if getElection(t, db, "e").StepDownRequested {
			return true
		}
		round()
		return false
	})
}

// A request that was lost, as that leader took its own row over without having seen it or somebody
// cleared it, is made again; one that stands is not.
func TestReadinessAsksAgainIfTheRequestIsGone(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var away, here ability
	timings := mysqllock.WithTimings(time.Minute, 40*time.Second, 10*time.Millisecond)
	leader := newLock(t, db, "e", "a", timings, mysqllock.WithReadiness(away.check), mysqllock.WithStepDown(func() {}))
	follower := newLock(t, db, "e", "b", timings, mysqllock.WithReadiness(here.check))
	mustSucceed(t, "Create", create(t.Context(), leader, recordFor("a", 60)))
	away.away.Store(true)
	for range 2 {
		eventually(t, electorPatience, "the leader is asked", func() bool {
			mustSucceed(t, "a renewal", update(t.Context(), leader, recordFor("a", 60)))
			mustSucceed(t, "Get", get(t.Context(), follower))
			return getElection(t, db, "e").StepDownRequested
		})
		exec(t, db, `UPDATE election_records SET step_down_uid = ''`)
	}
}

// What was seen before an outage, or before a term of its own, says nothing of what is.
func TestReadinessStartsAnewAfterAPollThatFailed(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var away, here ability
	const retry = 100 * time.Millisecond
	timings := mysqllock.WithTimings(time.Minute, 40*time.Second, retry)
	leader := newLock(t, db, "e", "a", timings, mysqllock.WithReadiness(away.check))
	follower := newLock(t, db, "e", "b", timings, mysqllock.WithReadiness(here.check))
	mustSucceed(t, "Create", create(t.Context(), leader, recordFor("a", 60)))
	away.away.Store(true)
	round := func() {
		t.Helper()
		mustSucceed(t, "a renewal", update(t.Context(), leader, recordFor("a", 60)))
		mustSucceed(t, "Get", get(t.Context(), follower))
	}
	round()
	cut, cancel := context.WithCancel(t.Context())
	cancel()
	if err := get(cut, follower)(); err == nil {
		t.Fatal("a poll that was cut off succeeded")
	}
	// A fixed time: that it passes unseen is what the test is about, and no condition tells that it has.
	time.Sleep(2 * retry)
	round()
	if getElection(t, db, "e").StepDownRequested {
		t.Error("asked by what was seen before the outage")
	}
}

// A leader that died while it wasn't ready is replaced as ever, by a candidate that is.
func TestReadinessOfADeadLeaderDoesNotMatter(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	dead := newLock(t, db, "e", "dead", mysqllock.WithReadiness(func(context.Context) error { return nil }))
	mustSucceed(t, "Create", create(t.Context(), dead, recordFor("dead", 2)))
	exec(t, db, `UPDATE election_records SET ready = 0`)
	var unable, able ability
	unable.away.Store(true)
	idle := beginAble(t, db, "unable", &unable)
	beginAble(t, db, "able", &able)
	eventually(t, electorPatience, "the able one leads", func() bool {
		e := getElection(t, db, "e")
		if e.Holder == "dead" && e.StepDownRequested {
			t.Fatal("a dead leader was asked to step down")
		}
		return e.Holder == "able"
	})
	if idle.leads() {
		t.Error("a candidate leads that is not ready")
	}
}

func TestReadinessIsNeededForATerm(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var needs ability
	lock := newLock(t, db, "e", "a", mysqllock.WithReadiness(needs.check))
	needs.away.Store(true)
	_ = get(t.Context(), lock)()
	if err := create(t.Context(), lock, record("a"))(); err == nil || !strings.Contains(err.Error(), "not ready: the API server is away") {
		t.Errorf("Create: %v", err)
	}
	needs.away.Store(false)
	mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
	needs.away.Store(true)
	mustSucceed(t, "a renewal", update(t.Context(), lock, record("a")))
	if getElection(t, db, "e").Ready {
		t.Error("the row says that the leader is ready")
	}
	lock.RecordEvent("stopped leading")
	mustSucceed(t, "Get", get(t.Context(), lock))
	mustSucceed(t, "taking its own row over", update(t.Context(), lock, record("a")))
	needs.away.Store(false)
	mustSucceed(t, "a renewal", update(t.Context(), lock, record("a")))
	if !getElection(t, db, "e").Ready {
		t.Error("the row says that the leader is not ready")
	}
	mustSucceed(t, "a release", update(t.Context(), lock, recordFor("", 1)))
	needs.away.Store(true)
	mustSucceed(t, "Get", get(t.Context(), lock))
	if err := update(t.Context(), lock, record("a"))(); err == nil || !strings.Contains(err.Error(), "not ready") {
		t.Errorf("a takeover: %v", err)
	}
}

// However long an operation may take, an elector's round has time left for the renewal.
func TestReadinessThatHangsLeavesTimeForTheRenewal(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var hangs atomic.Bool
	lock := newLock(t, db, "e", "a", mysqllock.WithTimings(time.Minute, 4*time.Second, time.Second), mysqllock.WithReadiness(func(ctx context.Context) error {
		if hangs.Load() {
			<-ctx.Done()
		}
		return ctx.Err()
	}))
	mustSucceed(t, "Create", create(t.Context(), lock, recordFor("a", 60)))
	hangs.Store(true)
	for _, round := range []struct{ left, limit time.Duration }{{4 * time.Second, 1500 * time.Millisecond}, {800 * time.Millisecond, 700 * time.Millisecond}} {
		ctx, cancel := context.WithTimeout(t.Context(), round.left)
		began := time.Now()
		mustSucceed(t, "a renewal", update(ctx, lock, recordFor("a", 60)))
		if took := time.Since(began); took > round.limit {
			t.Errorf("with %v left it took %v", round.left, took)
		}
		cancel()
	}
}

// A function that hangs is an answer, too, and is not called again meanwhile.
func TestReadinessThatHangsIsBoundedAndAskedOnce(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var calls atomic.Int32
	hangs, ends := atomic.Bool{}, make(chan struct{})
	lock := newLock(t, db, "e", "a", mysqllock.WithOperationTimeout(200*time.Millisecond), mysqllock.WithReadiness(func(context.Context) error {
		calls.Add(1)
		if hangs.Load() {
			<-ends
		}
		return nil
	}))
	takeOver(t, lock)
	hangs.Store(true)
	before := calls.Load()
	for range 3 {
		started := time.Now()
		mustSucceed(t, "a renewal", update(t.Context(), lock, record("a")))
		if took := time.Since(started); took > 400*time.Millisecond+stall {
			t.Errorf("took %v", took)
		}
	}
	if n := calls.Load() - before; n != 1 {
		t.Errorf("%d calls at once", n)
	}
	if getElection(t, db, "e").Ready {
		t.Error("ready, although nobody answers")
	}
	close(ends)
	eventually(t, electorPatience, "it is ready again", func() bool {
		return update(t.Context(), lock, record("a"))() == nil && getElection(t, db, "e").Ready
	})
	if _, err := mysqllock.New(db, "e", resourcelock.ResourceLockConfig{Identity: "a"}, mysqllock.WithReadiness(nil)); err == nil || !strings.Contains(err.Error(), "WithReadiness: the function is nil") {
		t.Errorf("WithReadiness(nil): %v", err)
	}
}

// What becomes of an answer when the caller's own time is over says nothing of this candidate: the
// database took the time, or the elector ended.
func TestReadinessIsNotCountedAfterTheCallersTime(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	takeOver(t, newLock(t, db, "e", "a"))
	asked := make(chan struct{})
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
	b := newLock(t, db, "e", "b", mysqllock.WithReadiness(func(ctx context.Context) error {
		close(asked)
		<-ctx.Done()
		return ctx.Err()
	}))
	if _, _, err := b.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), logger))
	defer cancel()
	go func() {
		<-asked
		cancel()
	}()
	if err := b.Update(ctx, record("b")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	if logs := logger.GetSink().(ktesting.Underlier).GetBuffer().String(); strings.Contains(logs, "not ready") {
		t.Errorf("logged: %s", logs)
	}
}
