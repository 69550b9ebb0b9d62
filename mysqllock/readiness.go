package mysqllock

import (
	"context"
	"encoding/hex"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// Leadership follows the ability to work. A leader that can't work says so in its row, and goes on
// renewing: if nobody can work, nobody loses the lease. A follower that can work asks it to step down.

// WithReadiness lets leadership follow the ability to work, where that is more than to reach the
// database: for an operator f may ask its API server's /readyz.
//
// f is asked before a takeover and before each renewal. Its context has the deadline of an operation;
// a call that hangs counts as an error, and f isn't called again before it has returned. A candidate
// that is not ready takes over nothing. A leader that is not ready goes on renewing, and its row says
// that it isn't ready. A follower that has been ready for two retry periods (as [WithTimings] says,
// else a third of the lease), in which the leader has renewed without being ready, asks it to step
// down: see [WithStepDown]. So an outage for all costs nobody the lease, and a leader that is cut off
// alone is replaced.
//
// If nobody is ready and the leader's process ends, nobody leads until somebody is. Under a MultiLock
// this lock must be the primary one.
func WithReadiness(f func(context.Context) error) Option {
	return func(o *options) error {
		if f == nil {
			return errors.New("WithReadiness: the function is nil")
		}
		o.readiness = f
		return nil
	}
}

// readiness asks WithReadiness's function, with one call at a time.
type readiness struct {
	f       func(context.Context) error // nil: always ready
	running atomic.Bool
	unready atomic.Bool // at the last answer
}

var errStillAsked = errors.New("the function of WithReadiness has not returned since it was called before")

// ask returns why this candidate is not ready; nil if it is.
func (r *readiness) ask(ctx context.Context, timeout time.Duration) error {
	if r.f == nil {
		return nil
	}
	err := errStillAsked
	if r.running.CompareAndSwap(false, true) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		answer := make(chan error, 1)
		go func() {
			err := r.f(ctx)
			r.running.Store(false)
			answer <- err
		}()
		select {
		case err = <-answer:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if r.unready.Swap(err != nil) != (err != nil) {
		if err != nil {
			klog.FromContext(ctx).Info("This candidate is not ready", "reason", err.Error())
		} else {
			klog.FromContext(ctx).Info("This candidate is ready again")
		}
	}
	return err
}

// askReadiness is called before an operation that renews or takes over, and is no part of it.
func (l *Lock) askReadiness(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if record.HolderIdentity == "" {
		return nil
	}
	return l.readiness.ask(ctx, l.operationTimeout())
}

// succession is what a follower has seen of a leader that is not ready.
type succession struct {
	mu      sync.Mutex
	uid     string    // of that leader; "": none
	version int64     // of its row, when this follower was first ready
	since   time.Time // when that was
	asked   string    // the uid of the leader that was asked to step down last
}

// isDue reports whether the leader of r is to be asked to step down by a follower that is ready, with
// r.ready being false: for as long as apart, the leader has been seen like that, and renewed meanwhile.
func (s *succession) isDue(r *row, apart time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uid != r.uid {
		s.uid, s.version, s.since = r.uid, r.version, time.Now()
		return false
	}
	return s.asked != r.uid && r.version != s.version && time.Since(s.since) >= apart
}

func (s *succession) noteAsked(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = uid
}

// startAnew is called for any other answer of the leader's or of this follower's own.
func (s *succession) startAnew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uid = ""
}

// succeed asks the leader of a row that Get has just read to step down, if that one can't work and
// this candidate can. What goes wrong is left to the next poll.
func (l *Lock) succeed(ctx context.Context, r *row) {
	if l.readiness.f == nil {
		return
	}
	if !r.isHeld() || r.uid == l.uid || r.ready || l.readiness.ask(ctx, l.operationTimeout()) != nil {
		l.succession.startAnew()
		return
	}
	if !l.succession.isDue(r, l.twoRetries(r)) {
		return
	}
	err := l.operate(ctx, "request step-down", func(o *operation) error {
		if _, err := l.learn(o); err != nil {
			return err
		}
		_, err := o.session.write(o.ctx, l.tables.Load().ascii.requestUnready(l.election, r.uid))
		return err
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "The leader is not ready, and could not be asked to step down", "lock", l.Describe())
		return
	}
	l.succession.noteAsked(r.uid)
	klog.FromContext(ctx).Info("Asked the leader to step down, as it is not ready", "lock", l.Describe(), "leader", r.record.HolderIdentity)
}

// requestUnreadySQL asks the leader with that uid to step down, if it still isn't ready.
const requestUnreadySQL = requestStepDownSQL + ` AND ready = 0`

func (s *statements) requestUnready(election, uid string) statement {
	return statement{s.expand(requestUnreadySQL), []any{hex.EncodeToString([]byte(election)), hex.EncodeToString([]byte(uid))}}
}

// twoRetries is a time in which the live leader of r has renewed.
func (l *Lock) twoRetries(r *row) time.Duration {
	if retry := l.options.timings.retryPeriod; retry > 0 {
		return 2 * retry
	}
	return r.leaseDuration() / 3
}
