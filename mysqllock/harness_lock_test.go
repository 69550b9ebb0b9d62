package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Calls of one Lock, by hand.

// record is one that holds the lease for the given candidate.
func record(identity string) resourcelock.LeaderElectionRecord {
	now := metav1.NewTime(time.Now().UTC().Truncate(time.Microsecond))
	return resourcelock.LeaderElectionRecord{HolderIdentity: identity, LeaseDurationSeconds: 15, AcquireTime: now, RenewTime: now}
}

// recordFor is a record with that lease, a release if the identity is empty.
func recordFor(identity string, seconds int) resourcelock.LeaderElectionRecord {
	r := record(identity)
	r.LeaseDurationSeconds = seconds
	return r
}

// The three operations as calls.
func get(ctx context.Context, lock *mysqllock.Lock) func() error {
	return func() error { _, _, err := lock.Get(ctx); return err }
}

func create(ctx context.Context, lock *mysqllock.Lock, r resourcelock.LeaderElectionRecord) func() error {
	return func() error { return lock.Create(ctx, r) }
}

func update(ctx context.Context, lock *mysqllock.Lock, r resourcelock.LeaderElectionRecord) func() error {
	return func() error { return lock.Update(ctx, r) }
}

// mustSucceed makes a call.
func mustSucceed(t testing.TB, what string, call func() error) {
	t.Helper()
	if err := call(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// takeOver makes a candidate the leader, without waiting for anybody's lease.
func takeOver(t testing.TB, lock *mysqllock.Lock) {
	t.Helper()
	if err := tryTakeOver(t.Context(), lock); err != nil {
		t.Fatal(err)
	}
}

func tryTakeOver(ctx context.Context, lock *mysqllock.Lock) error {
	_, _, err := lock.Get(ctx)
	switch {
	case apierrors.IsNotFound(err):
		return lock.Create(ctx, record(lock.Identity()))
	case err != nil:
		return err
	}
	return lock.Update(ctx, record(lock.Identity()))
}

// unhurried is for tests that are not about time: no operation ends by a deadline, however slow the
// machine is.
var unhurried = mysqllock.WithOperationTimeout(2 * time.Minute)

// isBusy recognises a takeover that was refused as the fence row was locked at that moment: by a
// guard or, in a race, by another takeover.
func isBusy(err error) bool {
	var e *mysql.MySQLError
	return errors.As(err, &e) && (e.Number == 1205 || e.Number == 3572)
}

func nop(context.Context, *sql.Tx) error { return nil }

// calls are made at the same time. t.Parallel would make two at a time on a machine with two
// processors, whatever they wait for.
type calls struct{ sync.WaitGroup }

func (c *calls) start(call func()) {
	c.Add(1)
	go func() {
		defer c.Done()
		call()
	}()
}

// together runs f(0) to f(n-1) at once and returns their errors.
func concurrently(n int, f func(int) error) []error {
	var (
		wg    sync.WaitGroup
		start = make(chan struct{})
		errs  = make([]error, n)
	)
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			<-start
			errs[i] = f(i)
		}()
	}
	close(start)
	wg.Wait()
	return errs
}

// seeded is a source of random numbers whose seed is in the test's log. MYSQLLOCK_TEST_SEED sets
// it: the same faults are tried again, though not to the microsecond.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("MYSQLLOCK_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MYSQLLOCK_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
