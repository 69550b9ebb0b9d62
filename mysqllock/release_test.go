package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// drain is a function for WithBeforeRelease, and what became of it.
type drain struct {
	do func(context.Context) error // nil: nothing

	mu        sync.Mutex
	calls     int
	deadlines []time.Time
}

func (d *drain) run(ctx context.Context) error {
	d.mu.Lock()
	d.calls++
	deadline, _ := ctx.Deadline()
	d.deadlines = append(d.deadlines, deadline)
	d.mu.Unlock()
	if d.do == nil {
		return nil
	}
	return d.do(ctx)
}

func (d *drain) option() mysqllock.Option { return mysqllock.WithBeforeRelease(d.run) }

func (d *drain) wantCalls(t testing.TB, n int) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.calls != n {
		t.Errorf("WithBeforeRelease's function was called %d times, want %d", d.calls, n)
	}
}

func TestReleaseComesAfterTheEndOfTheWorkInHand(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	work := newLedger(t, config)
	var lock *mysqllock.Lock
	follower := newLock(t, db, "e", "b", calm.option())
	d := &drain{do: func(ctx context.Context) error {
		if token, held := lock.FencingToken(); token == 0 || !held {
			t.Errorf("token %d (%t) while work ends", token, held)
		}
		err := lock.Transact(ctx, work, nil, func(ctx context.Context, tx *sql.Tx) error {
			if err := lock.Guard(ctx, tx); err != nil {
				return err
			}
			return insert(ctx, tx, "drained")
		})
		if err != nil {
			t.Errorf("the last transaction: %v", err)
		}
		if holder := holderOf(t, db, "e"); holder != "a" {
			t.Errorf("the row is held by %q while work ends", holder)
		}
		if r, _, err := follower.Get(ctx); err != nil || r.HolderIdentity != "a" {
			t.Errorf("a follower sees %+v, %v while work ends", r, err)
		}
		return nil
	}}
	lock = newLock(t, db, "e", "a", calm.option(), d.option())
	leader := start(t, lock, calm, releasing)
	<-leader.leading
	d.wantCalls(t, 0)
	leader.stop()
	d.wantCalls(t, 1)
	if holder := holderOf(t, db, "e"); holder != "" {
		t.Errorf("after the release the row is held by %q", holder)
	}
	wantLedger(t, work, "drained")
	if err := lock.Transact(t.Context(), work, nil, inserting("after")); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("after the release: %v, want ErrNotLeader", err)
	}

	began := time.Now()
	next := start(t, follower, calm)
	<-next.leading
	if took := next.from.Sub(began); took > calm.lease/2 {
		t.Errorf("the follower led %v after the release", took)
	}
}

func TestReleaseLeavesDrainingUntilOneOperationBeforeTheLeasesEnd(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	for _, test := range []struct {
		name   string
		opts   []mysqllock.Option
		lease  int // seconds
		budget time.Duration
	}{
		{"WithTimings", []mysqllock.Option{calm.option()}, 4, 3400 * time.Millisecond},
		{"WithOperationTimeout", []mysqllock.Option{mysqllock.WithOperationTimeout(700 * time.Millisecond)}, 15, 14300 * time.Millisecond},
		{"neither", nil, 10, 9 * time.Second},
		{"neither, and a long lease", nil, 60, 58500 * time.Millisecond},
	} {
		d := &drain{}
		lock := newLock(t, db, test.name, "a", append(test.opts, d.option())...)
		held := record("a")
		held.LeaseDurationSeconds = test.lease
		if err := lock.Create(t.Context(), held); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		if err := lock.Update(t.Context(), held); err != nil {
			t.Fatal(err)
		}
		after := time.Now()
		// As client-go's own, which may be longer than what is left of the lease.
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := lock.Update(ctx, record("")); err != nil {
			t.Fatal(err)
		}
		d.wantCalls(t, 1)
		if got := d.deadlines[0]; got.Before(before.Add(test.budget)) || got.After(after.Add(test.budget)) {
			t.Errorf("%s: the deadline is %v after the last renewal was sent, want %v", test.name, got.Sub(before), test.budget)
		}

		// A context that ends earlier is heeded.
		if err := lock.Update(t.Context(), held); err != nil {
			t.Fatal(err)
		}
		sooner, cancelSooner := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancelSooner()
		if err := lock.Update(sooner, record("")); err != nil {
			t.Fatal(err)
		}
		d.wantCalls(t, 2) // it was another term
		if want, _ := sooner.Deadline(); !d.deadlines[1].Equal(want) {
			t.Errorf("%s: the deadline is %v, want the context's own, %v", test.name, d.deadlines[1], want)
		}
	}
}

// renewalTimes notes when its elector sent its last successful renewal, the first of all: it lets no
// other through.
type renewalTimes struct {
	*mysqllock.Lock
	mu           sync.Mutex
	sent, served time.Time
}

func (r *renewalTimes) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if r.hasRenewed() && record.HolderIdentity != "" {
		return errors.New("cut off")
	}
	sent := time.Now()
	err := r.Lock.Update(ctx, record)
	if err == nil && record.HolderIdentity != "" {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.sent, r.served = sent, time.Now()
	}
	return err
}

func (r *renewalTimes) hasRenewed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.served.IsZero()
}

// An elector that could not renew until RenewDeadline gives the release a RenewDeadline more, which
// is longer than its lease.
func TestReleaseLeavesDrainingUntilTheLeasesEndAlsoAfterAnOutage(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var elector time.Time
	d := &drain{do: func(context.Context) error {
		elector = time.Now().Add(calm.renewDeadline)
		return nil
	}}
	lock := &renewalTimes{Lock: newLock(t, db, "e", "a", calm.option(), d.option())}
	leader := start(t, lock, calm, releasing)
	<-leader.leading
	<-leader.ended
	d.wantCalls(t, 1)
	if t.Failed() {
		return
	}
	got := d.deadlines[0]
	budget := calm.lease - calm.operationTimeout()
	if got.Before(lock.sent.Add(budget)) || got.After(lock.served.Add(budget)) {
		t.Errorf("the deadline is %v after the last renewal was sent, want %v", got.Sub(lock.sent), budget)
	}
	if !got.Before(elector) {
		t.Errorf("the elector's own deadline, %v, is not later than %v: there was nothing to shorten", elector, got)
	}
	if holder := holderOf(t, db, "e"); holder != "" {
		t.Errorf("the row is held by %q", holder)
	}
}

// The release that was not written must not be tried again by client-go, and the next candidate has
// to wait as for any leader that is gone.
func TestReleaseIsRefusedWhenDrainingFailsOrTakesTooLong(t *testing.T) {
	t.Parallel()
	failure := errors.New("the queue did not drain")
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended) })
	c := cadence{2 * time.Second, 1200 * time.Millisecond, 200 * time.Millisecond}
	for _, test := range []struct {
		name  string
		do    func(context.Context) error
		cause error
	}{
		{"it fails", func(context.Context) error { return failure }, failure},
		{"it returns nil, but only when its time is over", func(ctx context.Context) error { <-ctx.Done(); return nil }, context.DeadlineExceeded},
		{"it overlooks that its time is over", func(ctx context.Context) error {
			deadline, _ := ctx.Deadline()
			late := time.NewTimer(time.Until(deadline) + 50*time.Millisecond) // time has to pass
			defer late.Stop()
			<-late.C
			return nil
		}, context.DeadlineExceeded},
		{"it waits for work that ends only with the elector", func(context.Context) error { <-ended; return nil }, context.DeadlineExceeded},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, config := newTables(t)
			work := newLedger(t, config)
			byHand := &drain{do: test.do}
			lock := newLock(t, db, "by hand", "a", c.option(), byHand.option())
			if err := lock.Create(t.Context(), c.record("a")); err != nil {
				t.Fatal(err)
			}
			err := lock.Update(t.Context(), record(""))
			if !errors.Is(err, test.cause) || apierrors.IsConflict(err) {
				t.Errorf("error %v, want one that wraps %v and is no conflict", err, test.cause)
			}
			if holder := holderOf(t, db, "by hand"); holder != "a" {
				t.Errorf("the row is held by %q", holder)
			}
			if err := lock.Transact(t.Context(), work, nil, inserting("after")); !errors.Is(err, mysqllock.ErrNotLeader) {
				t.Errorf("the term goes on: %v", err)
			}
			if err := lock.Update(t.Context(), record("")); err == nil || apierrors.IsConflict(err) {
				t.Errorf("a second try: error %v", err)
			}
			byHand.wantCalls(t, 1)

			d := &drain{do: test.do}
			leader := start(t, newLock(t, db, "e", "a", c.option(), d.option()), c, releasing)
			<-leader.leading
			leader.stop()
			d.wantCalls(t, 1)
			if holder := holderOf(t, db, "e"); holder != "a" {
				t.Errorf("after the elector has ended the row is held by %q", holder)
			}
			began := time.Now()
			next := start(t, newLock(t, db, "e", "b", c.option()), c)
			<-next.leading
			if took := next.from.Sub(began); took < c.lease {
				t.Errorf("the follower led after %v, before a lease of %v was over", took, c.lease)
			}
		})
	}
}

// Its work has ended, so that nobody else can begin too early.
func TestReleaseMayFollowDrainingForLongerThanRenewDeadline(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	c := cadence{4 * time.Second, 1200 * time.Millisecond, 200 * time.Millisecond}
	d := &drain{do: func(context.Context) error {
		// A fixed time: this is the work, and how long it takes is what the test is about.
		time.Sleep(c.renewDeadline + 200*time.Millisecond)
		return nil
	}}
	lock := newLock(t, db, "e", "a", c.option(), d.option())
	mustSucceed(t, "Create", create(t.Context(), lock, c.record("a")))
	mustSucceed(t, "the release", update(t.Context(), lock, record("")))
	if holder := holderOf(t, db, "e"); holder != "" {
		t.Errorf("the row is held by %q", holder)
	}
}

func TestReleaseDrainsNothingOfACandidateThatDoesNotLead(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	c := cadence{2 * time.Second, 1200 * time.Millisecond, 200 * time.Millisecond}
	d := &drain{}
	lock := func(identity string) *mysqllock.Lock {
		return newLock(t, db, "e", identity, c.option(), d.option())
	}
	deposed, successor := lock("deposed"), newLock(t, db, "e", "successor", c.option())
	if err := deposed.Create(t.Context(), c.record("deposed")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := successor.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := successor.Update(t.Context(), c.record("successor")); err != nil {
		t.Fatal(err)
	}
	if err := deposed.Update(t.Context(), c.record("deposed")); !apierrors.IsConflict(err) {
		t.Fatalf("a renewal of the deposed leader: %v", err)
	}
	if err := deposed.Update(t.Context(), record("")); err == nil || apierrors.IsConflict(err) {
		t.Errorf("a release of the deposed leader: %v", err)
	}
	follower := lock("follower")
	if _, _, err := follower.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := follower.Update(t.Context(), record("")); err == nil || apierrors.IsConflict(err) {
		t.Errorf("a release of a follower: %v", err)
	}

	waiting := start(t, lock("waiting"), c, releasing)
	waiting.stop()

	robbed := start(t, newLock(t, db, "other", "robbed", c.option(), d.option()), c, releasing)
	<-robbed.leading
	exec(t, db, `UPDATE election_records SET leader_name = 'robber', leader_uid = 'another', version = version + 1 WHERE election_name = 'other'`)
	<-robbed.ended

	d.wantCalls(t, 0)
	for election, want := range map[string]string{"e": "successor", "other": "robber"} {
		if holder := holderOf(t, db, election); holder != want {
			t.Errorf("%s is held by %q, want %s", election, holder, want)
		}
	}
}

// It can't know; but the fence does, and the successor's lease stays.
func TestReleaseAfterADrainOfALeaderThatWasTakenOverWritesNothing(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	work := newLedger(t, config)
	var stale *mysqllock.Lock
	d := &drain{do: func(ctx context.Context) error {
		err := stale.Transact(ctx, work, nil, inserting("of a stale leader"))
		if !errors.Is(err, mysqllock.ErrNotLeader) {
			t.Errorf("Transact while draining: %v, want ErrNotLeader", err)
		}
		return nil
	}}
	stale = newLock(t, db, "e", "stale", d.option())
	takeOver(t, stale)
	takeOver(t, newLock(t, db, "e", "successor"))
	if err := stale.Update(t.Context(), record("")); err == nil || apierrors.IsConflict(err) {
		t.Errorf("the release: %v", err)
	}
	d.wantCalls(t, 1)
	wantLedger(t, work)
	if holder := holderOf(t, db, "e"); holder != "successor" {
		t.Errorf("the row is held by %q", holder)
	}
}

func TestReleaseDrainsOnceATermAlsoWhenItIsTriedAgain(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	network := newProxy(t, config.Addr)
	d := &drain{}
	lock := newLock(t, open(t, network.config(config)), "e", "a", mysqllock.WithOperationTimeout(500*time.Millisecond), d.option())
	takeOver(t, lock)
	network.blackHole()
	if err := lock.Update(t.Context(), record("")); err == nil {
		t.Fatal("released through a black hole")
	}
	network.cut()
	network.forward()
	d.wantCalls(t, 1)
	if err := lock.Update(t.Context(), record("")); err != nil {
		t.Errorf("the second try: %v", err)
	}
	d.wantCalls(t, 1)
	if holder := holderOf(t, db, "e"); holder != "" {
		t.Errorf("the row is held by %q", holder)
	}
	takeOver(t, lock)
	if err := lock.Update(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if err := lock.Update(t.Context(), record("")); err != nil {
		t.Fatal(err)
	}
	d.wantCalls(t, 2)
}

// A leader that lost sight of its row, which was its own all the same, has work that nobody ended:
// the token ended, and the function wasn't due.
func TestReleaseOfALeaseThatWasOutOfSightIsRefusedUndrained(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	network := newProxy(t, config.Addr)
	d := &drain{}
	lock := newLock(t, open(t, network.config(config)), "e", "a", mysqllock.WithOperationTimeout(time.Second), d.option())
	takeOver(t, lock)
	mustSucceed(t, "Update", update(t.Context(), lock, record("a")))
	version := versionOf(t, db, "e")
	network.swallowReplies()
	if err := lock.Update(t.Context(), record("a")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a renewal without an answer: %v", err)
	}
	network.cut()
	network.forward()
	eventually(t, 20*time.Second, "it is applied", func() bool { return versionOf(t, db, "e") != version })

	// The next one finds another version, and the answer to why is lost.
	failAtNextRenewal(network, func() {}, network.blackHole)()
	if err := lock.Update(t.Context(), record("a")); !apierrors.IsConflict(err) {
		t.Fatalf("a renewal of another version than the row's: %v", err)
	}
	if _, held := lock.FencingToken(); held {
		t.Fatal("the token is still held, so that this shows nothing")
	}
	network.cut()
	network.forward()

	mustSucceed(t, "the Get of a release", get(t.Context(), lock))
	if err := lock.Update(t.Context(), record("")); err == nil || apierrors.IsConflict(err) || !strings.Contains(err.Error(), "left to expire") {
		t.Errorf("the release: %v", err)
	}
	d.wantCalls(t, 0)
	if holder := holderOf(t, db, "e"); holder != "a" {
		t.Errorf("the row is held by %q", holder)
	}

	// It may be taken up again, and is drained and released then.
	takeOver(t, lock)
	mustSucceed(t, "release", update(t.Context(), lock, record("")))
	d.wantCalls(t, 1)
}

func TestReleaseOptionRefusesANilFunction(t *testing.T) {
	db, _ := newTables(t)
	_, err := mysqllock.New(db, "e", resourcelock.ResourceLockConfig{Identity: "a"}, mysqllock.WithBeforeRelease(nil))
	const want = `mysqllock: new "e": WithBeforeRelease: the function is nil; give one that ends the work`
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// An elector that gave up ends its work after the release only, so that a release would let a
// successor begin too early.
func TestReleaseOfALeaseThatWasNotRenewedForRenewDeadlineIsRefused(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	for _, c := range []struct {
		name  string
		opts  []mysqllock.Option
		limit time.Duration
	}{
		{"as WithTimings tells", []mysqllock.Option{mysqllock.WithTimings(10*time.Second, 4*time.Second, time.Second)}, 4 * time.Second},
		{"half a lease without it", nil, 5 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			early, late := newLock(t, db, c.name+", early", "a", c.opts...), newLock(t, db, c.name+", late", "a", c.opts...)
			began := time.Now()
			mustSucceed(t, "Create", create(t.Context(), late, recordFor("a", 10)))
			// Fixed times, here and below: a renewal is late by the clock alone, and no condition
			// tells that it is.
			time.Sleep(c.limit * 6 / 10)
			mustSucceed(t, "Create", create(t.Context(), early, recordFor("a", 10)))
			time.Sleep(time.Until(began.Add(c.limit + 50*time.Millisecond))) // a fixed time, as above
			mustSucceed(t, "the release of a leader that renewed lately", update(t.Context(), early, recordFor("", 1)))
			err := late.Update(t.Context(), recordFor("", 1))
			if err == nil || apierrors.IsConflict(err) || !strings.Contains(err.Error(), fmt.Sprintf("not renewed for %v", c.limit)) {
				t.Errorf("the release of a leader that gave up: error %v", err)
			}
			if _, held := late.FencingToken(); held {
				t.Error("a leader that gave up holds a token")
			}
			if holder := holderOf(t, db, c.name+", late"); holder != "a" {
				t.Errorf("held by %q", holder)
			}
		})
	}
}

// A release was given up and is on its way still when the row is deleted and the same Lock makes it
// again: with versions that count from 1 again, it would end the new term.
func TestReleaseThatWasAbandonedEndsNoTermOfARowThatWasMadeAgain(t *testing.T) {
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
	session := sessionID(t, pool)
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

func TestReleaseThatWasGivenUpEndsTheTerm(t *testing.T) {
	s := newLateServer(t)
	lock := s.lock("a")
	if err := lock.Create(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	first := s.token(lock)
	letGo := s.hold("election_records")
	s.givesUp("a release", func(ctx context.Context) error { return lock.Update(ctx, record("")) })
	if _, held := lock.FencingToken(); held {
		t.Error("a release of unknown outcome leaves a fencing token")
	}
	want := "a"
	if s.settle(letGo) {
		want = ""
	}
	if holder := s.get(lock); holder != want {
		t.Errorf("the holder is %q, not %q", holder, want)
	}
	if err := lock.Update(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if second := s.token(lock); second <= first {
		t.Errorf("the token of the next term is %d, after %d", second, first)
	}
}

func TestReleaseFindsItsOwnLateRenewal(t *testing.T) {
	s := newLateServer(t)
	lock := s.lock("a")
	if err := lock.Create(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	letGo := s.hold("election_records")
	s.givesUp("a renewal", func(ctx context.Context) error { return lock.Update(ctx, record("a")) })
	s.settle(letGo)
	if err := lock.Update(t.Context(), record("")); err != nil {
		t.Errorf("release after a late renewal: %v", err)
	}
	if row := readRow(t, s.db, s.election); row.Holder != "" || row.UID != "" {
		t.Errorf("the released row is %+v", row)
	}
}

// An elector calls itself leader until its release has returned, so that a release which got no
// answer must not take longer than the lease, even where an operation may.
func TestReleaseEndsWithTheLeaseHoweverLongAnOperationMayTake(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	network := newProxy(t, config.Addr)
	const lease, timeout = 6 * time.Second, time.Minute
	lock := newLock(t, open(t, network.config(config)), "e", "a", mysqllock.WithOperationTimeout(timeout))
	began := recordFor("a", int(lease/time.Second))
	if err := lock.Create(t.Context(), began); err != nil {
		t.Fatal(err)
	}
	if err := lock.Update(t.Context(), began); err != nil {
		t.Fatal(err)
	}
	network.blackHole()
	since := time.Now()
	err := lock.Update(t.Context(), record(""))
	if took := time.Since(since); !errors.Is(err, context.DeadlineExceeded) || took > timeout/2 {
		t.Errorf("the release ended after %v, with a lease of %v: %v", took, lease, err)
	}
}
