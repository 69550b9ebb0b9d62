package mysqllock_test

import (
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Followers may count from the moment that a renewal was sent, so that a slow reply must not lengthen
// the leader's trust.
func TestTermCountsFromTheSendOfItsRenewals(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	network := newProxy(t, config.Addr)
	lock := newLock(t, open(t, network.config(config)), "e", "a", mysqllock.WithOperationTimeout(10*time.Second))
	takeOver(t, lock)
	mustSucceed(t, "a renewal, which is prepared", update(t.Context(), lock, record("a")))
	const slow = 300 * time.Millisecond
	network.delayReplies(slow)
	sent := time.Now()
	mustSucceed(t, "a renewal with a slow reply", update(t.Context(), lock, record("a")))
	if took := time.Since(sent); took < slow {
		t.Fatalf("the reply took %v", took)
	}
	lease := time.Duration(record("a").LeaseDurationSeconds) * time.Second
	if end := lock.LeaseEnd(); end.After(sent.Add(lease + slow/2)) {
		t.Errorf("the lease ends %v after the send, want %v", end.Sub(sent), lease)
	}
}
