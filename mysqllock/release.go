package mysqllock

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Giving a lease up: first the work ends (drain), then the term, and then the row is released.

// WithBeforeRelease makes the lock call f before it releases the lease (ReleaseOnCancel), so that
// work in hand can end while nobody else can lead: client-go releases before it cancels the context
// of OnStartedLeading.
//
// f is called once a term, while the fencing token is still valid. Its context ends one operation
// before the lease does, counted from the last renewal: there are no renewals meanwhile. If f
// returns an error, or has not returned by then, or if this Lock had lost sight of its lease when f
// was due, nothing is released and the lease is left to expire; the elector goes on without waiting
// for f, and ends the context of OnStartedLeading. Newer versions of client-go (0.37) read the row
// before they release, and neither release nor call f if the database does not answer.
//
// f must stop the work itself. It can't wait for OnStartedLeading's context, which may end before f
// (the elector was cancelled) or only after it (the lease was lost).
func WithBeforeRelease(f func(context.Context) error) Option {
	return func(o *options) error {
		if f == nil {
			return errors.New("WithBeforeRelease: the function is nil; give one that ends the work")
		}
		o.beforeRelease = f
		return nil
	}
}

// drain runs WithBeforeRelease's function, once a term and only while this Lock holds one. The
// lease isn't renewed meanwhile, so that the function must end one operation, the release, before
// followers may take over; one that goes on isn't waited for, as the elector ends its leader's
// context only afterwards.
func (l *Lock) drain(ctx context.Context) error {
	f := l.options.beforeRelease
	if f == nil {
		return nil
	}
	if due, err := l.term.toDrain(); !due {
		return err
	}
	ctx, cancel := context.WithDeadline(ctx, l.term.expires().Add(-l.operationTimeout()))
	defer cancel()
	returned := make(chan error, 1)
	go func() { returned <- f(ctx) }()
	var err error
	select {
	case err = <-returned:
		if err != nil {
			err = fmt.Errorf("failed: %w", err)
		}
	case <-ctx.Done():
	}
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("took too long: %w", ctx.Err())
	}
	if err != nil {
		err = fmt.Errorf("not released, the lease is left to expire: the function of WithBeforeRelease %w", err)
		l.term.end()
	}
	l.term.setDrained(err)
	return err
}

// release gives the lease up, if it is this Lock's own. The term, and with it the token, ends
// before anything is sent: once the row is released, anybody may begin the next one.
//
// A release is refused, and the lease left to expire, if
//
//   - the lease has ended: the elector calls itself leader until Update returns, and has already
//     spent a deadline on the Get before it;
//   - the elector gave up for want of renewals: it stops its work only after the release, so that a
//     successor would lead beside it for as long as the reply takes;
//   - WithBeforeRelease's function did not run, because this Lock had lost sight of its row, and
//     with it the term, when the function was due.
func (l *Lock) release(o *operation, old *row, record resourcelock.LeaderElectionRecord) error {
	limit := l.renewDeadline()
	gaveUp := l.term.pastRenewDeadline(limit)
	notDrained := l.options.beforeRelease != nil && !l.term.isDrained()
	leaseEnd := l.term.expires()
	l.term.end()

	whole := o.ctx
	defer func() { o.ctx = whole }()
	var cancel context.CancelFunc
	o.ctx, cancel = context.WithDeadline(whole, leaseEnd)
	defer cancel()
	for {
		switch {
		case old.uid != l.uid:
			return fmt.Errorf("not released, as this candidate does not hold the election: it is held by %s", old.holder())
		case gaveUp:
			return fmt.Errorf("not released, the lease is left to expire: it was not renewed for %v, and an elector that gives up ends its work only after the release", limit)
		case notDrained:
			return errors.New("not released, the lease is left to expire: it was not known to be held when the function of WithBeforeRelease was due, so that work may still go on")
		}
		next := &row{record: record, version: o.newVersion(old.version), ready: true}
		err := l.swap(o, old, next, l.statements(record).release(l.election, old, next))
		var lost *lostError
		switch {
		case err == nil:
			return l.accept(o, next)
		case errors.As(err, &lost) && lost.now != nil:
			// A late renewal of this Lock's own: released in the next round, as older versions of
			// client-go don't try again. Held by another: refused there.
			old = lost.now
		default:
			return err
		}
	}
}
