package mysqllock

import (
	"context"
	"fmt"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// How long an operation may take follows from the elector's timings: as told by
// WithTimings, and as the elector's own calls show them.

// timings are those of an elector.
type timings struct {
	lease, renewDeadline, retry time.Duration
}

// operationTimeout is the time that an operation may take so that neither a
// renewal whose success arrives late (trusted from its arrival on, for
// LeaseDuration, while followers count from when it was applied) nor the second
// budget of a release makes a leader outlive its lease.
func (t timings) operationTimeout() time.Duration {
	return (t.lease - t.renewDeadline - t.retry) / 2
}

// minOperationTimeout is the least time for an operation that WithTimings
// accepts: with less, an ordinary hiccup of network or disk costs the lease.
const minOperationTimeout = 50 * time.Millisecond

// maxOperationTimeout is (LeaseDuration - RenewDeadline - RetryPeriod) / 2 of
// client-go's defaults: 15 s, 10 s and 2 s.
const maxOperationTimeout = 1500 * time.Millisecond

// noRoom is what is wrong with timings that leave too little time for an
// operation, and which would be right: client-go's proportions on whole seconds.
func (t timings) noRoom() error {
	lease := max((t.lease + time.Second - 1).Truncate(time.Second), time.Second)
	renewDeadline, retry := (lease * 2 / 3).Truncate(time.Millisecond), (lease * 2 / 15).Truncate(time.Millisecond)
	return fmt.Errorf("LeaseDuration %v, RenewDeadline %v and RetryPeriod %v don't leave %v for an operation: (LeaseDuration - RenewDeadline - RetryPeriod) / 2 must be at least that, "+
		"RenewDeadline more than %.1f times RetryPeriod, and LeaseDuration whole seconds; %v, %v and %v would work",
		t.lease, t.renewDeadline, t.retry, minOperationTimeout, leaderelection.JitterFactor, lease, renewDeadline, retry)
}

// WithTimings tells the lock the elector's LeaseDuration, RenewDeadline and
// RetryPeriod, so that they are checked at the start, and the deadline of each
// operation is as long as is safe from the first one on:
//
//	(LeaseDuration - RenewDeadline - RetryPeriod) / 2
//
// which is 1.5 s for client-go's defaults of 15 s, 10 s and 2 s. Timings that
// leave less than 50 ms are refused, and so is a LeaseDuration that is not
// whole seconds: client-go stores whole seconds, and followers wait no longer
// than what is stored.
//
// An elector that has others is found out: a record with another lease duration
// is refused, and so is every renewal of an elector whose RenewDeadline is seen
// to be longer, from the first one on. Without this option the lock goes by what
// it sees of the elector; see WithOperationTimeout.
func WithTimings(leaseDuration, renewDeadline, retryPeriod time.Duration) Option {
	return func(o *options) error {
		t := timings{leaseDuration, renewDeadline, retryPeriod}
		// What client-go itself refuses is refused here as well.
		tooClose := float64(renewDeadline) <= leaderelection.JitterFactor*float64(retryPeriod)
		if retryPeriod <= 0 || tooClose || leaseDuration%time.Second != 0 || t.operationTimeout() < minOperationTimeout {
			return fmt.Errorf("WithTimings: %w", t.noRoom())
		}
		o.timings = t
		return nil
	}
}

// WithOperationTimeout bounds each operation of the lock (Get, Create, Update)
// by d: whatever has not been answered by then is an error, and so is an answer
// that comes later, even one that says OK.
//
// With neither this option nor WithTimings, d is a tenth of the lease duration,
// at most 1.5 s. To be safe d must be at most (LeaseDuration - RenewDeadline -
// RetryPeriod) / 2 of the elector: an answer that arrives late would extend the
// leader's trust in its lease beyond the lease.
//
// A leader's own elector shows its timings: the context of a renewal ends
// RenewDeadline after the elector began with it, and RetryPeriod lies between
// two renewals. Whatever the options say, d is never longer than what is safe by
// what was seen, but at least 50 ms; timings that leave less are logged, once a
// term, as an error. RenewDeadline is seen with the first renewal, RetryPeriod
// with the fourth. An elector shows nothing if its calls have no deadline, or if
// a wrapper around the lock doesn't pass RecordEvent on.
func WithOperationTimeout(d time.Duration) Option {
	return func(o *options) error {
		if d <= 0 {
			return fmt.Errorf("WithOperationTimeout: %v is no time; give a positive duration, such as 1500ms", d)
		}
		o.operationTimeout = d
		return nil
	}
}

// seenTimings is what a leader's elector shows of its timings by its calls.
//
// client-go renews in rounds. A round has one context for all of its tries, which
// ends RenewDeadline after the round began, or earlier with the caller's own. It
// ends with a success, and RetryPeriod lies between that and the next round.
type seenTimings struct {
	// renewing lasts from the event "became leader" to "stopped leading". A
	// candidate's context has no deadline, or the caller's own, which may be hours
	// away and says nothing about the elector.
	renewing bool
	// left is the longest time that an Update found left of its round: never more
	// than RenewDeadline, and less by what had passed since the round began.
	left time.Duration
	// pause is the shortest time between two rounds: never less than RetryPeriod,
	// and more by what a timer or a busy process was late.
	pause  time.Duration
	pauses int // how many were seen

	round    time.Time // when the context of the current round ends
	returned time.Time // when the last Update returned

	reported bool // it is logged that they leave no room, in this term
}

// seenResolution is what is seen rounded to. Nobody sets timings more finely, and
// what is seen is off by far less.
const seenResolution = 10 * time.Millisecond

// enoughPauses are so many that the shortest is taken for RetryPeriod. A single
// one may be longer by a stall of the process, just when its work begins; d would
// shrink, and renewals that take longer than that would never show another pause.
const enoughPauses = 3

// timings are the elector's, as far as they were seen: 0 if not. RenewDeadline is
// rounded up, as less would make d longer.
func (s *seenTimings) timings(lease time.Duration) timings {
	t := timings{lease: lease, renewDeadline: (s.left + seenResolution - 1).Truncate(seenResolution)}
	if s.pauses >= enoughPauses {
		t.retry = s.pause.Round(seenResolution)
	}
	return t
}

// seeEvent is called with each event that the elector records.
func (l *Lock) seeEvent(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch event {
	case "became leader":
		l.elector.renewing, l.elector.round, l.elector.reported = true, time.Time{}, false
	case "stopped leading":
		l.elector.renewing = false
	}
}

// seeUpdate is called when an Update begins.
func (l *Lock) seeUpdate(ctx context.Context, record resourcelock.LeaderElectionRecord) {
	deadline, ok := ctx.Deadline()
	if !ok || record.HolderIdentity == "" { // a release has a context of its own
		return
	}
	if t, bad := l.see(deadline); bad {
		klog.FromContext(ctx).Error(t.noRoom(), "Two may lead for a moment when a reply is late; give the elector other timings", "lock", l.Describe())
	}
}

// see returns what is seen of the elector's timings by now, and whether that is
// to be logged.
func (l *Lock) see(deadline time.Time) (t timings, report bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.elector
	if !s.renewing {
		return t, false
	}
	now := time.Now()
	s.left = max(s.left, deadline.Sub(now))
	if !s.round.IsZero() && !s.round.Equal(deadline) {
		if pause := now.Sub(s.returned); s.pauses == 0 || pause < s.pause {
			s.pause = pause
		}
		s.pauses++
	}
	s.round = deadline
	t = s.timings(l.lease)
	report = !s.reported && t.retry > 0 && t.operationTimeout() < minOperationTimeout
	s.reported = s.reported || report
	return t, report
}

// sawUpdate is called when an Update returns.
func (l *Lock) sawUpdate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.elector.returned = time.Now()
}

// checkTimings refuses what an elector writes whose timings are not those of
// WithTimings. What is left of a round is never more than RenewDeadline, so that
// nobody is refused for a late start; a RetryPeriod that seems longer may be due
// to a busy process.
func (l *Lock) checkTimings(r resourcelock.LeaderElectionRecord) error {
	t := l.options.timings
	if t == (timings{}) || r.HolderIdentity == "" {
		return nil
	}
	if time.Duration(r.LeaseDurationSeconds)*time.Second != t.lease {
		return fmt.Errorf("leaseDurationSeconds is %d, WithTimings says %v; give WithTimings the elector's own LeaseDuration", r.LeaseDurationSeconds, t.lease)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.elector.left > t.renewDeadline {
		return fmt.Errorf("RenewDeadline is %v, WithTimings says %v; give WithTimings the elector's own RenewDeadline", l.elector.timings(t.lease).renewDeadline, t.renewDeadline)
	}
	return nil
}

// renewDeadline is how long after its last renewal an elector has not given up
// yet: it gives up RetryPeriod and RenewDeadline after that, so that the longer of
// the two, as seen, is safe to go by. The caller holds l.mu.
func (l *Lock) renewDeadline() time.Duration {
	if t := l.elector.timings(l.lease); t.renewDeadline > 0 {
		return max(t.renewDeadline, t.retry)
	}
	if d := l.options.timings.renewDeadline; d != 0 {
		return d
	}
	return l.lease / 2
}

// noteLease remembers the lease duration for the deadline of what follows.
// client-go's release record says 1 s and has no holder; it must not count.
func (l *Lock) noteLease(record resourcelock.LeaderElectionRecord) {
	if record.HolderIdentity == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lease = time.Duration(record.LeaseDurationSeconds) * time.Second
}

// leaseDuration is that of the last record written here.
func (l *Lock) leaseDuration() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lease
}

// operationTimeout is how long an operation may take; see WithOperationTimeout.
func (l *Lock) operationTimeout() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.chosenTimeout()
	if t := l.elector.timings(l.lease); t.renewDeadline > 0 {
		d = min(d, max(t.operationTimeout(), minOperationTimeout))
	}
	return d
}

// chosenTimeout is what the options say, or what is assumed without them. The
// caller holds l.mu.
func (l *Lock) chosenTimeout() time.Duration {
	if l.options.operationTimeout > 0 {
		return l.options.operationTimeout
	}
	if l.options.timings != (timings{}) {
		return l.options.timings.operationTimeout()
	}
	for _, lease := range []time.Duration{l.lease, l.seen} {
		if lease > 0 {
			return min(lease/10, maxOperationTimeout)
		}
	}
	return maxOperationTimeout
}
