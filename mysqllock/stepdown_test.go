package mysqllock_test

import (
	"context"
	"database/sql"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// beginAsked starts an elector of the election "e" that the function of WithStepDown cancels, or
// none does.
func beginAsked(t testing.TB, db *sql.DB, identity string, cancels bool, opts ...mysqllock.Option) (c *candidate, asked <-chan struct{}) {
	t.Helper()
	called := make(chan struct{}, 10)
	opts = append(opts, hasty.option())
	if cancels {
		opts = append(opts, mysqllock.WithStepDown(func() {
			called <- struct{}{}
			c.cancel()
		}))
	}
	c = start(t, newLock(t, db, "e", identity, opts...), hasty, releasing)
	return c, called
}

func requestStepDown(t testing.TB, db *sql.DB, election string) {
	t.Helper()
	if err := mysqllock.RequestStepDown(t.Context(), db, election); err != nil {
		t.Fatal(err)
	}
}

func TestStepDownOnRequestHandsOverWithinRetries(t *testing.T) {
	t.Parallel()
	for _, pool := range ownAndOpened {
		t.Run(pool.name, func(t *testing.T) {
			_, config := newTables(t)
			db := pool.open(t, config)
			leader, asked := beginAsked(t, db, "a", true)
			<-leader.leading
			follower, _ := beginAsked(t, db, "b", true)
			eventually(t, electorPatience, "the follower polls", func() bool { return len(follower.history()) > 0 })
			before := readRow(t, db, "e")

			requestStepDown(t, db, "e")
			requestStepDown(t, db, "e") // no second call
			since := time.Now()
			<-follower.leading
			t.Logf("led by the next one after %v, with a retry period of %v", time.Since(since).Round(time.Millisecond), hasty.retry)
			<-leader.ended
			<-asked
			select {
			case <-asked:
				t.Error("the function of WithStepDown was called twice")
			default:
			}
			if took := time.Since(since); took > hasty.lease {
				t.Errorf("took %v, as long as after a death", took)
			}
			if after := readRow(t, db, "e"); after.Version <= before.Version || after.Holder != "b" {
				t.Errorf("row %v after %v", after, before)
			}
			eventually(t, electorPatience, "the successor renews, and isn't asked itself", func() bool {
				e := getElection(t, db, "e")
				return e.Holder == "b" && !e.StepDownRequested && len(follower.history()) > 6
			})
			if !follower.leads() {
				t.Error("the request outlived the term")
			}
		})
	}
}

// Nobody has said what to do: the elector gives up at RenewDeadline, and the lease expires.
func TestStepDownWithoutAFunctionEndsAtRenewDeadline(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	leader, _ := beginAsked(t, db, "a", false)
	<-leader.leading
	requestStepDown(t, db, "e")
	<-leader.ended
	follower, _ := beginAsked(t, db, "b", false)
	<-follower.leading
	if !leader.stopped.Before(follower.from) {
		t.Error("two led at a time")
	}
}

// A leader that was asked keeps its lease until its work has ended, however long that takes.
func TestStepDownKeepsTheLeaseUntilTheElectorGivesItUp(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var batch mysqllock.Batch
	for _, way := range []struct {
		name string
		opts []mysqllock.Option
	}{{"alone", nil}, {"in a batch", []mysqllock.Option{mysqllock.WithBatch(&batch)}}} {
		t.Run(way.name, func(t *testing.T) {
			stopped := make(chan struct{}, 10)
			lock := newLock(t, db, way.name, "a", append(way.opts, mysqllock.WithStepDown(func() { stopped <- struct{}{} }))...)
			takeOver(t, lock)
			requestStepDown(t, db, way.name)
			for range 3 {
				before := readRow(t, db, way.name).Version
				mustSucceed(t, "a renewal", update(t.Context(), lock, record("a")))
				if readRow(t, db, way.name).Version <= before {
					t.Error("the row was not renewed")
				}
				mustSucceed(t, "Get", get(t.Context(), lock))
			}
			<-stopped
			if len(stopped) > 0 {
				t.Error("the function of WithStepDown was called again")
			}
			if e := getElection(t, db, way.name); !e.StepDownRequested || e.Holder != "a" {
				t.Errorf("the request is gone: %+v", e)
			}
			mustSucceed(t, "the release", update(t.Context(), lock, recordFor("", 1)))
			if err := update(t.Context(), lock, record("a"))(); err == nil || !strings.Contains(err.Error(), "lets others lead") {
				t.Errorf("a takeover at once: %v", err)
			}
		})
	}
}

// The elector has stopped by the end of the lease, whether or not its events reach the Lock.
func TestStepDownEndsATermWithoutAFunctionByTheEndOfItsLease(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a", unhurried)
	mustSucceed(t, "Create", create(t.Context(), lock, recordFor("a", 1)))
	requestStepDown(t, db, "e")
	eventually(t, electorPatience, "the term ends", func() bool {
		if err := update(t.Context(), lock, recordFor("a", 1))(); err == nil || !strings.Contains(err.Error(), "asked to step down") {
			t.Fatalf("the renewal: %v", err)
		}
		_, held := lock.FencingToken()
		return !held
	})
	eventually(t, electorPatience, "it may lead again", func() bool {
		return get(t.Context(), lock)() == nil && update(t.Context(), lock, recordFor("a", 1))() == nil
	})
	mustSucceed(t, "a renewal", update(t.Context(), lock, recordFor("a", 1)))
}

// A request changes no version and no time: a dead leader stays dead, and a live one's CAS is not
// taken for a lost one.
func TestStepDownRequestIsNoSignOfLife(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	dead := newLock(t, db, "e", "dead")
	takeOver(t, dead)
	follower := newLock(t, db, "e", "b")
	_, before, err := follower.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	row := readRow(t, db, "e")
	requestStepDown(t, db, "e")
	if e := getElection(t, db, "e"); !e.StepDownRequested || !e.Ready {
		t.Errorf("the request is not shown: %+v", e)
	}
	_, after, err := follower.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) || readRow(t, db, "e") != row {
		t.Errorf("%s became %s", before, after)
	}
	mustSucceed(t, "the takeover", update(t.Context(), follower, record("b")))
	mustSucceed(t, "the successor's renewal", update(t.Context(), follower, record("b")))
}

func TestStepDownRequestToNobodyIsAnError(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	if err := mysqllock.RequestStepDown(t.Context(), db, "absent"); !apierrors.IsNotFound(err) {
		t.Errorf("no row: %v", err)
	}
	lock := newLock(t, db, "e", "a")
	takeOver(t, lock)
	mustSucceed(t, "the release", update(t.Context(), lock, recordFor("", 1)))
	if err := mysqllock.RequestStepDown(t.Context(), db, "e"); err == nil || !strings.Contains(err.Error(), "nobody leads") {
		t.Errorf("released: %v", err)
	}
	exec(t, db, `UPDATE election_records SET leader_name = 'by hand', leader_uid = ''`)
	if err := mysqllock.RequestStepDown(t.Context(), db, "e"); err == nil || !strings.Contains(err.Error(), "has no leader_uid") {
		t.Errorf("a leader without a uid: %v", err)
	}
	if e := getElection(t, db, "e"); e.StepDownRequested {
		t.Errorf("a leader without a uid was asked: %+v", e)
	}
	if err := mysqllock.RequestStepDown(t.Context(), nil, "e"); err == nil || !strings.Contains(err.Error(), "db is nil") {
		t.Errorf("without a pool: %v", err)
	}
	if err := mysqllock.RequestStepDown(t.Context(), db, " e"); err == nil || !strings.Contains(err.Error(), "space") {
		t.Errorf("bad name: %v", err)
	}
	if _, err := mysqllock.New(db, "e", resourcelock.ResourceLockConfig{Identity: "a"}, mysqllock.WithStepDown(nil)); err == nil || !strings.Contains(err.Error(), "WithStepDown: the function is nil") {
		t.Errorf("WithStepDown(nil): %v", err)
	}
}

// Who was asked lets the others come first, for a lease; its own row is then somebody else's to it.
func TestStepDownKeepsALockFromLeadingForALease(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	const lease = 2
	lock := newLock(t, db, "e", "a", unhurried)
	mustSucceed(t, "Create", create(t.Context(), lock, recordFor("a", lease)))
	requestStepDown(t, db, "e")
	asked := time.Now()
	if err := update(t.Context(), lock, recordFor("a", lease))(); err == nil || !strings.Contains(err.Error(), "asked to step down") || apierrors.IsConflict(err) {
		t.Errorf("the renewal: %v", err)
	}
	if _, held := lock.FencingToken(); !held {
		t.Error("the term ended before the lease, and with it the work's transactions")
	}
	mustSucceed(t, "the release", update(t.Context(), lock, recordFor("", 1)))
	mustSucceed(t, "Get", get(t.Context(), lock))
	if err := update(t.Context(), lock, recordFor("a", lease))(); err == nil || !strings.Contains(err.Error(), "lets others lead") {
		t.Errorf("a takeover at once: %v", err)
	}
	eventually(t, electorPatience, "it may lead again", func() bool {
		return get(t.Context(), lock)() == nil && update(t.Context(), lock, recordFor("a", lease))() == nil
	})
	if took := time.Since(asked); took < lease*time.Second {
		t.Errorf("after %v", took)
	}
	mustSucceed(t, "a renewal", update(t.Context(), lock, recordFor("a", lease)))

	requestStepDown(t, db, "e")
	_ = update(t.Context(), lock, recordFor("a", lease))()
	mustSucceed(t, "the release", update(t.Context(), lock, recordFor("", 1)))
	other := newLock(t, db, "e", "b", unhurried)
	mustSucceed(t, "Get", get(t.Context(), other))
	mustSucceed(t, "the other's takeover", update(t.Context(), other, recordFor("b", lease)))
	mustSucceed(t, "Get", get(t.Context(), lock))
	mustSucceed(t, "the other's release", update(t.Context(), other, recordFor("", 1)))
	mustSucceed(t, "Get", get(t.Context(), lock))
	mustSucceed(t, "a takeover, once another has led", update(t.Context(), lock, recordFor("a", lease)))
}

// A term that ended without a release leaves the Lock's own row, with the request in it.
func TestStepDownShowsTheLocksOwnRowAsAnothersOnceTheTermIsOver(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a")
	takeOver(t, lock)
	requestStepDown(t, db, "e")
	record := func() string {
		t.Helper()
		r, _, err := lock.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r.HolderIdentity
	}
	if holder := record(); holder != "a" {
		t.Errorf("held by %q while the term lasts: client-go would not release", holder)
	}
	lock.RecordEvent("stopped leading")
	if holder := record(); holder == "a" {
		t.Error("held by itself after the term: an elector would go on at once")
	}
	twin := newLock(t, db, "e", "a", mysqllock.WithSameIdentityTakeover())
	if r, _, err := twin.Get(t.Context()); err != nil || r.HolderIdentity == "a" {
		t.Errorf("WithSameIdentityTakeover takes a row whose holder was asked: %v, %v", r, err)
	}
}

// A request that a Lock has seen in its own row before it takes that over is done with; one that
// came in between is not.
func TestStepDownRequestInTheLocksOwnRowStandsUntilItIsSeen(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a")
	takeOver(t, lock)
	lock.RecordEvent("stopped leading")
	requestStepDown(t, db, "e")
	mustSucceed(t, "Get, which shows the request", get(t.Context(), lock))
	mustSucceed(t, "taking its own row over", update(t.Context(), lock, record("a")))
	mustSucceed(t, "a renewal", update(t.Context(), lock, record("a")))

	mustSucceed(t, "Get", get(t.Context(), lock))
	lock.RecordEvent("stopped leading")
	requestStepDown(t, db, "e")
	mustSucceed(t, "taking its own row over, with a request that it hasn't seen", update(t.Context(), lock, record("a")))
	if err := update(t.Context(), lock, record("a"))(); err == nil || !strings.Contains(err.Error(), "asked to step down") {
		t.Errorf("the renewal: %v", err)
	}
}

// Others of the same Batch go on, and are not passed over in each round.
func TestStepDownOfOneLeavesItsBatchAlone(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	var batch mysqllock.Batch
	locks := map[string]*mysqllock.Lock{}
	for _, name := range []string{"one", "two", "three"} {
		locks[name] = newLock(t, db, name, "a", mysqllock.WithBatch(&batch))
		takeOver(t, locks[name])
	}
	requestStepDown(t, db, "two")
	for range 3 {
		var all calls
		for name, lock := range locks {
			all.start(func() {
				err := lock.Update(t.Context(), record("a"))
				if (err == nil) != (name != "two") {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		all.Wait()
	}
}

func TestStepDownReachesElectLeader(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	terms := make(chan string, 10)
	elect := func(who string) <-chan error {
		returned := make(chan error, 1)
		go func() {
			returned <- mysqllock.ElectLeaderWithTimings(ctx, db, "e", hasty.lease, hasty.renewDeadline, hasty.retry,
				func(context.Context) { terms <- who }, func() { terms <- who + " ended" })
		}()
		return returned
	}
	first := elect("a")
	if who := <-terms; who != "a" {
		t.Fatal(who)
	}
	second := elect("b")
	eventually(t, electorPatience, "both campaign", func() bool { return getElection(t, db, "e").Holder != "" })
	requestStepDown(t, db, "e")
	if got := <-terms; got != "a ended" {
		t.Errorf("first %q", got)
	}
	if got := <-terms; got != "b" {
		t.Errorf("then %q", got)
	}
	cancel()
	for _, returned := range []<-chan error{first, second} {
		if err := <-returned; err != nil {
			t.Error(err)
		}
	}
}

// The successor begins only after the work has ended, also where that takes longer than a lease.
func TestStepDownOfElectLeaderWaitsForItsWork(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var working, began atomic.Int32
	var all calls
	for range 2 {
		all.start(func() {
			err := mysqllock.ElectLeaderWithTimings(ctx, db, "e", hasty.lease, hasty.renewDeadline, hasty.retry,
				func(ctx context.Context) {
					if working.Add(1) > 1 {
						t.Error("two work at a time")
					}
					began.Add(1)
					<-ctx.Done()
				},
				func() {
					if began.Load() == 1 {
						time.Sleep(2 * hasty.lease) // the work takes its time to end
					}
					working.Add(-1)
				})
			if err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, electorPatience, "one leads", func() bool { return began.Load() == 1 })
	requestStepDown(t, db, "e")
	eventually(t, electorPatience, "the other leads", func() bool { return began.Load() == 2 })
	cancel()
	all.Wait()
}

// Of two requests at once the second changes nothing, and is no error either.
func TestStepDownRequestedTwiceAtOnceIsNoError(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	takeOver(t, newLock(t, db, "e", "a"))
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var version int64
	if err := tx.QueryRowContext(t.Context(), `SELECT version FROM election_records FOR UPDATE`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	outcomes := make(chan error, 2)
	for range 2 {
		go func() { outcomes <- mysqllock.RequestStepDown(t.Context(), db, "e") }()
	}
	eventually(t, 20*time.Second, "both wait for the row", func() bool {
		return countSessions(t, db, `INFO LIKE 'UPDATE%SET step_down_uid = leader_uid%'`) == 2
	})
	mustSucceed(t, "the rollback", tx.Rollback)
	for range 2 {
		if err := <-outcomes; err != nil {
			t.Error(err)
		}
	}
}
