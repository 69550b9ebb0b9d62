package mysqllock_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// An elector calls itself leader until its release has returned, so that a
// release which got no answer must not take longer than the lease, even where an
// operation may.
func TestAReleaseEndsWithTheLeaseHoweverLongAnOperationMayTake(t *testing.T) {
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
