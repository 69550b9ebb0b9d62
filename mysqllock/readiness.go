package mysqllock

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// Leadership follows the ability to work. A leader that can't work says so in its row, and goes on
// renewing: if nobody can work, nobody loses the lease. A follower that can work asks it to step
// down.

// WithReadiness lets leadership follow the ability to work, where that is more than to reach the
// database: for an operator f may ask its API server's /readyz.
//
// f is asked before a takeover and before each renewal. Its context has the deadline of an
// operation, at most a quarter of RenewDeadline, as the renewal comes after it. A call that hangs
// counts as an error, and f isn't called again before it has returned. A candidate that is not
// ready takes over nothing. A leader that is not ready goes on renewing, and its row says that it
// isn't ready. A follower that has been ready for two retry periods (as [WithTimings] says, else a
// third of the lease), in which the leader has renewed without being ready, asks it to step down:
// see [WithStepDown]. So an outage for all costs nobody the lease, and a leader that is cut off
// alone is replaced.
//
// If nobody is ready and the leader's process ends, nobody leads until somebody is. Under a
// MultiLock this lock must be the primary one.
func WithReadiness(f func(context.Context) error) Option {
	return func(o *options) error {
		if f == nil {
			return errors.New("WithReadiness: the function is nil; give one that returns an error while this candidate can't work")
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

// askReady returns why this candidate is not ready; nil if it is.
func (l *Lock) askReady(ctx context.Context) error {
	r := &l.readiness
	if r.f == nil {
		return nil
	}
	err := errStillAsked
	if r.running.CompareAndSwap(false, true) {
		bounded, cancel := context.WithTimeout(ctx, l.readinessTimeout(ctx))
		defer cancel()
		answer := make(chan error, 1)
		go func() {
			err := r.f(bounded)
			r.running.Store(false)
			answer <- err
		}()
		select {
		case err = <-answer:
		case <-bounded.Done():
			err = bounded.Err()
		}
	}
	if err != nil && ctx.Err() != nil {
		return err // says nothing of this candidate: it was the database that took the time, or the caller ended
	}
	if r.unready.Swap(err != nil) != (err != nil) {
		log := klog.FromContext(ctx).WithValues("lock", l.Describe(), "identity", l.config.Identity)
		if err != nil {
			log.Info("This candidate is not ready", "reason", oneLine(publicText(err)))
		} else {
			log.Info("This candidate is ready again")
		}
	}
	return err
}

// readinessTimeout leaves enough of an elector's round for the renewal, and for a second try.
func (l *Lock) readinessTimeout(ctx context.Context) time.Duration {
	timeout := l.operationTimeout()
	if limit := l.renewDeadline(); limit > 0 {
		timeout = min(timeout, limit/4)
	}
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline)/2)
	}
	return timeout
}

// mayTakeOver reports whether this candidate can work, if it has to be asked: a term of its own is
// gone on with, so that nobody loses the lease if nobody can work.
func (l *Lock) mayTakeOver(o *operation, old *row) error {
	if o.unready != nil && old.uid != l.uid {
		return fmt.Errorf("not taken over, as this candidate is not ready: %w", o.unready)
	}
	return nil
}

// askReadiness is called before an operation that renews or takes over, and is no part of it.
func (l *Lock) askReadiness(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if record.HolderIdentity == "" {
		return nil
	}
	return l.askReady(ctx)
}

// succession is what a follower has seen of a leader that is not ready.
type succession struct {
	mu      sync.Mutex
	uid     string    // of that leader; "": none
	version int64     // of its row, when this follower was first ready
	since   time.Time // when that was
}

// isDue reports whether the leader of r is to be asked to step down by a follower that is ready,
// with r.ready being false: for as long as apart, the leader has been seen like that, and renewed
// meanwhile.
func (s *succession) isDue(r *row, apart time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uid != r.uid {
		s.uid, s.version, s.since = r.uid, r.version, time.Now()
		return false
	}
	return r.version != s.version && time.Since(s.since) >= apart
}

// startAnew is called for any other answer of the leader's or of this follower's own, for none, and
// when this candidate takes over itself.
func (s *succession) startAnew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uid = ""
}

// succeed asks the leader of a row that Get has just read to step down, if that one can't work and
// this candidate can. What goes wrong is left to the next poll.
func (l *Lock) succeed(ctx context.Context, r *row) {
	if l.readiness.f == nil || r.isAsked() {
		return
	}
	if !r.isHeld() || r.uid == l.uid || r.ready || l.askReady(ctx) != nil {
		l.succession.startAnew()
		return
	}
	if !l.succession.isDue(r, l.twoRetries(r)) {
		return
	}
	var asked int64
	err := l.operate(ctx, "request step-down", func(o *operation) (err error) {
		if _, err := l.learn(o); err != nil {
			return err
		}
		asked, err = o.session.write(o.ctx, l.tables.Load().ascii.requestUnready(l.election, r.uid))
		return err
	})
	log := klog.FromContext(ctx).WithValues("lock", l.Describe(), "identity", l.config.Identity, "leader", r.record.HolderIdentity)
	switch {
	case err != nil:
		log.Error(err, "The leader is not ready, and could not be asked to step down")
	case asked == 1: // or it is ready again, or was asked by another
		log.Info("Asked the leader to step down, as it is not ready")
	}
}

// requestUnreadySQL asks the leader with that uid to step down, if it still isn't ready.
const requestUnreadySQL = requestStepDownSQL + ` AND ready = 0`

func (s *statements) requestUnready(election, uid string) statement {
	return statement{s.expand(requestUnreadySQL), []any{hex.EncodeToString([]byte(election)), hex.EncodeToString([]byte(uid))}}
}
