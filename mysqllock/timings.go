package mysqllock

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// How long an operation may take follows from the elector's timings: those of WithTimings, and
// those that the elector's own calls show.

// timings are those of an elector, in client-go's words.
type timings struct {
	leaseDuration, renewDeadline, retryPeriod time.Duration
}

// operationTimeout is the time that an operation may take so that neither a renewal whose success
// arrives late (trusted from its arrival on, for LeaseDuration, while followers count from when it
// was applied) nor the second budget of a release makes a leader outlive its lease.
func (t timings) operationTimeout() time.Duration {
	return (t.leaseDuration - t.renewDeadline - t.retryPeriod) / 2
}

// minOperationTimeout is the least time for an operation that WithTimings accepts: with less, an
// ordinary hiccup of network or disk costs the lease.
const minOperationTimeout = 50 * time.Millisecond

// maxOperationTimeout is (LeaseDuration - RenewDeadline - RetryPeriod) / 2 of client-go's defaults:
// 15 s, 10 s and 2 s.
const maxOperationTimeout = 1500 * time.Millisecond

// noRoom is what is wrong with timings that leave too little time for an operation, and which would
// be right: client-go's proportions on whole seconds.
func (t timings) noRoom() error {
	lease := max((t.leaseDuration + time.Second - 1).Truncate(time.Second), time.Second)
	renewDeadline, retry := (lease * 2 / 3).Truncate(time.Millisecond), (lease * 2 / 15).Truncate(time.Millisecond)
	return fmt.Errorf("LeaseDuration %v, RenewDeadline %v and RetryPeriod %v don't leave %v for an operation: (LeaseDuration - RenewDeadline - RetryPeriod) / 2 must be at least that, "+
		"RenewDeadline more than %.1f times RetryPeriod, and LeaseDuration whole seconds; %v, %v and %v would work",
		t.leaseDuration, t.renewDeadline, t.retryPeriod, minOperationTimeout, leaderelection.JitterFactor, lease, renewDeadline, retry)
}

// WithTimings gives the lock the elector's LeaseDuration, RenewDeadline and RetryPeriod. They are
// checked at the start, and from the first operation on the deadline of each is as long as is safe:
//
//	(LeaseDuration - RenewDeadline - RetryPeriod) / 2
//
// which is 1.5 s for client-go's defaults of 15 s, 10 s and 2 s. Timings that leave less than 50 ms
// are refused, and so is a LeaseDuration that is not whole seconds: client-go stores whole seconds,
// and followers wait no longer than what is stored.
//
// An elector that has others is found out: a record with another lease duration is refused, and so
// is every renewal of an elector whose RenewDeadline is seen to be longer, from the first one on.
// Without this option the lock goes by what it sees of the elector; see WithOperationTimeout.
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

// WithOperationTimeout bounds each operation of the lock (Get, Create, Update) by d: no answer by
// then is an error, and so is an answer that comes later, even one that says OK. What an option has
// called before an operation takes its time besides: the function of [WithReadiness] up to d, that
// of [WithBeforeRelease] up to what is left of the lease.
//
// With neither this option nor WithTimings, d is a tenth of the lease duration, at most 1.5 s. To
// be safe d must be at most (LeaseDuration - RenewDeadline - RetryPeriod) / 2 of the elector: an
// answer that arrives late would extend the leader's trust in its lease beyond the lease.
//
// A leader's own elector shows its timings: the context of a renewal ends RenewDeadline after the
// elector began with it, and RetryPeriod lies between two renewals. Whatever the options say, d is
// never longer than what is safe by what was seen, but at least 50 ms; timings that leave less are
// logged, once a term, as an error. RenewDeadline is seen with the first renewal, RetryPeriod with
// the fourth. An elector shows nothing if its calls have no deadline, or if a wrapper around the
// lock doesn't pass RecordEvent on.
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
// client-go renews in rounds. A round has one context for all of its tries, which ends
// RenewDeadline after the round began, or earlier with the caller's own. It ends with a success,
// and RetryPeriod lies between that and the next round.
type seenTimings struct {
	mu sync.Mutex
	// renewing lasts from the event "became leader" to "stopped leading". A candidate's context has
	// no deadline, or the caller's own, which may be hours away and says nothing about the elector.
	renewing bool
	// left is the longest time that an Update found left of its round: never more than
	// RenewDeadline, and less by what had passed since the round began.
	left time.Duration
	// pause is the shortest time between two rounds: never less than RetryPeriod, and more by what
	// a timer or a busy process was late.
	pause  time.Duration
	pauses int // how many were seen

	round    time.Time // when the context of the current round ends
	returned time.Time // when the last Update returned

	reported bool // it is logged that they leave no room, in this term
}

// seenResolution is what is seen rounded to. Nobody sets timings more finely, and what is seen is
// off by far less.
const seenResolution = 10 * time.Millisecond

// enoughPauses are so many that the shortest is taken for RetryPeriod. A single one may be longer
// by a stall of the process, just when its work begins; d would shrink, and renewals that take
// longer than that would never show another pause.
const enoughPauses = 3

// with are the elector's timings, as far as they were seen: 0 if not. RenewDeadline is rounded up,
// as less would make d longer.
func (s *seenTimings) with(leaseDuration time.Duration) timings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.timings(leaseDuration)
}

// timings is with for those who hold s.mu.
func (s *seenTimings) timings(leaseDuration time.Duration) timings {
	t := timings{leaseDuration: leaseDuration, renewDeadline: (s.left + seenResolution - 1).Truncate(seenResolution)}
	if s.pauses >= enoughPauses {
		t.retryPeriod = s.pause.Round(seenResolution)
	}
	return t
}

// longestLeft is what RenewDeadline is at least.
func (s *seenTimings) longestLeft() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}

// event is called with each event that the elector records.
func (s *seenTimings) event(event string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch event {
	case "became leader":
		s.renewing, s.round, s.reported = true, time.Time{}, false
	case "stopped leading":
		s.renewing = false
	}
}

// updateBegins is called when an Update begins that has that deadline. It returns what is seen of
// the elector's timings by now, and whether that is to be logged.
func (s *seenTimings) updateBegins(deadline time.Time, leaseDuration time.Duration) (t timings, report bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
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
	t = s.timings(leaseDuration)
	report = !s.reported && t.retryPeriod > 0 && t.operationTimeout() < minOperationTimeout
	s.reported = s.reported || report
	return t, report
}

// updateReturns is called when an Update returns.
func (s *seenTimings) updateReturns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.returned = time.Now()
}

// seeUpdate has l.elector see an Update that begins, and logs timings that leave no room.
func (l *Lock) seeUpdate(ctx context.Context, record resourcelock.LeaderElectionRecord) {
	deadline, ok := ctx.Deadline()
	if !ok || record.HolderIdentity == "" { // a release has a context of its own
		return
	}
	if t, report := l.elector.updateBegins(deadline, l.term.leaseDuration()); report {
		klog.FromContext(ctx).Error(t.noRoom(), "Two may lead for a moment when a reply is late; give the elector other timings", "lock", l.Describe())
	}
}

// checkTimings refuses what an elector writes whose timings are not those of WithTimings. What is
// left of a round is never more than RenewDeadline, so that nobody is refused for a late start; a
// RetryPeriod that seems longer may be due to a busy process.
func (l *Lock) checkTimings(r resourcelock.LeaderElectionRecord) error {
	told := l.options.timings
	if told == (timings{}) || r.HolderIdentity == "" {
		return nil
	}
	if time.Duration(r.LeaseDurationSeconds)*time.Second != told.leaseDuration {
		return fmt.Errorf("leaseDurationSeconds is %d, WithTimings says %v; give WithTimings the elector's own LeaseDuration", r.LeaseDurationSeconds, told.leaseDuration)
	}
	if l.elector.longestLeft() > told.renewDeadline {
		return fmt.Errorf("RenewDeadline is %v, WithTimings says %v; give WithTimings the elector's own RenewDeadline", l.elector.with(told.leaseDuration).renewDeadline, told.renewDeadline)
	}
	return nil
}

// renewDeadline is how long after its last renewal an elector has not given up yet: it gives up
// RetryPeriod and RenewDeadline after that, so that the longer of the two, as seen, is safe to go
// by.
func (l *Lock) renewDeadline() time.Duration {
	leaseDuration := l.term.leaseDuration()
	if seen := l.elector.with(leaseDuration); seen.renewDeadline > 0 {
		return max(seen.renewDeadline, seen.retryPeriod)
	}
	if d := l.options.timings.renewDeadline; d != 0 {
		return d
	}
	return leaseDuration / 2
}

// noteLease remembers the lease duration for the deadline of what follows. client-go's release
// record says 1 s and has no holder; it must not count.
func (l *Lock) noteLease(record resourcelock.LeaderElectionRecord) {
	if record.HolderIdentity != "" {
		l.term.setLeaseDuration(time.Duration(record.LeaseDurationSeconds) * time.Second)
	}
}

// operationTimeout is how long an operation may take; see WithOperationTimeout.
func (l *Lock) operationTimeout() time.Duration {
	d := l.chosenTimeout()
	if seen := l.elector.with(l.term.leaseDuration()); seen.renewDeadline > 0 {
		d = min(d, max(seen.operationTimeout(), minOperationTimeout))
	}
	return d
}

// chosenTimeout is what the options say, or what is assumed without them.
func (l *Lock) chosenTimeout() time.Duration {
	if l.options.operationTimeout > 0 {
		return l.options.operationTimeout
	}
	if l.options.timings != (timings{}) {
		return l.options.timings.operationTimeout()
	}
	for _, lease := range []time.Duration{l.term.leaseDuration(), time.Duration(l.followedLease.Load())} {
		if lease > 0 {
			return min(lease/10, maxOperationTimeout)
		}
	}
	return maxOperationTimeout
}

// twoRetries is a time in which the live leader of r has renewed.
func (l *Lock) twoRetries(r *row) time.Duration {
	if retry := l.options.timings.retryPeriod; retry > 0 {
		return 2 * retry
	}
	return r.leaseDuration() / 3
}
