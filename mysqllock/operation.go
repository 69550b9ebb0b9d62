package mysqllock

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// operation is one call of the elector. It has a deadline that it must not outlive, also if the
// caller's context has none, and runs on one session.
//
// Operations of one Lock don't overlap: what one observed is what the next compares with. That is
// kept in memory, which the operation has only while it has its turn.
type operation struct {
	ctx     context.Context
	started time.Time
	timeout time.Duration
	session session
	unready error // why this candidate is not ready; nil if it is: see WithReadiness
	*memory
}

// memory is what an operation leaves for the next one. It travels in Lock.turn, a channel of
// capacity one: who hasn't taken it can't touch it.
type memory struct {
	// observed is the row as the elector last saw it: through a successful Get, Create or Update
	// and by no other way, as the next Update may overwrite exactly this row. Nil before that.
	observed *row
	// sighting is for WithServerClock.
	sighting sighting
	// lastVersion is the version of the last write that was tried, and the version that it was to
	// follow.
	lastVersion struct{ after, version int64 }
	// standsDownUntil is until when this Lock begins no term, as it was asked to step down.
	standsDownUntil time.Time
	// reported is the uid that ErrDuplicateIdentity was last logged for.
	reported string
	// mariaDB is whether the last poll's server was one.
	mariaDB bool
	// plainRollback is whether the last session knew no other.
	plainRollback bool
	// engine is the last one that was asked; unknownEngine before.
	engine engine
	// clockless is whether it was logged that WithServerClock has no effect.
	clockless bool
}

// newVersion is larger than the observed version, and also larger than that of a row that was
// deleted and made again meanwhile, so that a stale compare-and-swap can't match. No two tries to
// follow one version have the same, so that a row shows which of them was applied, also where
// versions are ahead of this clock.
func (m *memory) newVersion(observed int64) int64 {
	next := max(observed+1, time.Now().UnixMicro())
	if m.lastVersion.after == observed {
		next = max(next, m.lastVersion.version+1)
	}
	m.lastVersion.after, m.lastVersion.version = observed, next
	return next
}

// operate runs f as one operation, as a whole again in another session if one turned out to be
// unfit. Waiting for the turn counts within the deadline.
func (l *Lock) operate(ctx context.Context, op string, f func(*operation) error) error {
	o := &operation{started: time.Now(), timeout: l.operationTimeout()}
	var cancel context.CancelFunc
	o.ctx, cancel = context.WithTimeout(ctx, o.timeout)
	defer cancel()
	select {
	case o.memory = <-l.turn:
		defer func() { l.turn <- o.memory }()
	case <-o.ctx.Done():
		return wrap(op, l.election, o.ctx.Err(), l.db)
	}
	o.session = session{db: l.db, mariaDB: o.mariaDB, plain: o.plainRollback}
	err := f(o)
	for o.session.settle(o.ctx, &err) {
		err = f(o)
	}
	o.plainRollback = o.session.plain
	l.reportUnfit(ctx, o.session.unfit)
	var status apierrors.APIStatus
	if cause := o.ctx.Err(); err != nil && cause != nil && !errors.Is(err, cause) && number(err) == 0 && !errors.As(err, &status) {
		// A driver may report a connection that it had to give up in words of its own.
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return wrap(op, l.election, err, l.db)
}

var errLate = fmt.Errorf("the reply came after the deadline: %w", context.DeadlineExceeded)

// late reports a reply that came too late. Timers may fire late in a process that was paused, so
// the context alone can't show it.
func (o *operation) late() error {
	if err := o.ctx.Err(); err != nil {
		return err
	}
	if time.Since(o.started) > o.timeout {
		return errLate
	}
	return nil
}

// accept records that next is now the row, unless the reply came too late to be trusted: then it is
// as good as a reply that was lost.
func (l *Lock) accept(o *operation, next *row) error {
	if err := o.late(); err != nil {
		return unanswered(err)
	}
	l.observe(o, next)
	return nil
}
