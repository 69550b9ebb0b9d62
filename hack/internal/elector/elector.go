// Package elector starts client-go's elector as the long runs do: with WithTimings' timings, and a release at its end.
package elector

import (
	"fmt"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Timings are an elector's.
type Timings struct{ LeaseDuration, RenewDeadline, RetryPeriod time.Duration }

var (
	// Default are client-go's.
	Default = Timings{15 * time.Second, 10 * time.Second, 2 * time.Second}
	// Tight are about the shortest that a busy machine can keep.
	Tight = Timings{3 * time.Second, 2 * time.Second, 300 * time.Millisecond}
)

func (t Timings) String() string {
	return fmt.Sprintf("%v / %v / %v", t.LeaseDuration, t.RenewDeadline, t.RetryPeriod)
}

// Operation is how long the lock gives each of its operations.
func (t Timings) Operation() time.Duration {
	return (t.LeaseDuration - t.RenewDeadline - t.RetryPeriod) / 2
}

// Option is WithTimings, for the elector's lock.
func (t Timings) Option() mysqllock.Option {
	return mysqllock.WithTimings(t.LeaseDuration, t.RenewDeadline, t.RetryPeriod)
}

// New makes an elector that releases the lease when its context ends.
func (t Timings) New(lock resourcelock.Interface, callbacks leaderelection.LeaderCallbacks) (*leaderelection.LeaderElector, error) {
	return leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: t.LeaseDuration, RenewDeadline: t.RenewDeadline, RetryPeriod: t.RetryPeriod,
		ReleaseOnCancel: true, Callbacks: callbacks,
	})
}
