package mysqllock

import (
	"database/sql/driver"
	"errors"
	"fmt"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// What a compare-and-swap that matched nothing means, and one that had no answer. A takeover
// without an answer is done again by takeOver (lock.go), for a token that is known.

// swap writes next over old by a compare-and-swap.
func (l *Lock) swap(o *operation, old, next *row, s statement) error {
	n, err := o.session.write(o.ctx, s)
	switch {
	case hasChanged(err):
		return l.changed(o, old, next.record, err)
	case err != nil:
		return err
	case n == 0:
		return l.lost(o, old, next.record)
	}
	return nil
}

// lostError is a lost compare-and-swap: cause is what the elector is told, now the row that was
// found instead, nil if it is gone or couldn't be read.
type lostError struct {
	cause error
	now   *row
}

func (e *lostError) Error() string { return e.cause.Error() }
func (e *lostError) Unwrap() error { return e.cause }

// lost finds out why a compare-and-swap with old matched no row. What it reads is not made
// o.observed: the elector hasn't seen it, and an optimistic update that the elector still believes
// in must not overwrite a successor.
func (l *Lock) lost(o *operation, old *row, record resourcelock.LeaderElectionRecord) error {
	now, err := l.read(o)
	switch {
	case isUnfit(err):
		// Nothing is lost: the session was changed after the row was observed.
		return err
	case err != nil:
		l.term.end()
		return &lostError{cause: conflict(l.election, "the row has changed since it was observed")}
	case now == nil:
		l.term.end()
		return &lostError{cause: notFound(l.election)}
	case now.version == old.version && now.uid == l.uid && now.isAsked() && l.term.current() != 0:
		return l.stepDown(o)
	case now.version == old.version && now.uid == old.uid:
		why := "the server changed nothing, although the row is as it was observed; try again"
		if record.HolderIdentity != "" && l.term.current() == 0 { // a takeover
			why = "the election's row in election_fences was changed or deleted meanwhile; try again"
		}
		return l.refused(o, record, why)
	case now.uid == l.uid:
		// A write of this Lock whose reply was lost. The term goes on: only a takeover changes the
		// fence, and it would have changed the uid as well.
		return &lostError{conflict(l.election, "an earlier write of this candidate was applied late"), now}
	}
	l.term.end()
	cause := conflict(l.election, fmt.Sprintf("the row has changed since it was observed and is held by %s", now.holder()))
	if l.isNamesake(now) {
		l.reportNamesake(o, now)
		cause = fmt.Errorf("%w: %w", ErrDuplicateIdentity, cause)
	}
	return &lostError{cause, now}
}

// refused finds out why a statement with record's strings did nothing. If the session doesn't
// explain it, the error is otherwise.
func (l *Lock) refused(o *operation, record resourcelock.LeaderElectionRecord, otherwise string) error {
	p, _, err := o.session.check(o.ctx)
	if err != nil {
		return err
	}
	if charset := p.charset(); charset != "" && l.statements(record).encoding == unicodeEncoding {
		return charsetError(charset)
	}
	return errors.New(otherwise)
}

// changed finds out what error 1020 means: MariaDB's SERIALIZABLE answers with it where the other
// isolation levels find that no row matches, but also if only a neighbour was written. The
// statement did nothing.
func (l *Lock) changed(o *operation, old *row, record resourcelock.LeaderElectionRecord, err error) error {
	var lost *lostError
	if found := l.lost(o, old, record); errors.As(found, &lost) || errors.Is(found, errAskedToStepDown) {
		return found
	}
	return err
}

// unansweredError is the error of a write that was sent and had no answer: the server may have done
// it, or may do it yet. All other errors leave nothing open.
type unansweredError struct{ error }

func (e unansweredError) Unwrap() error { return e.error }

// unanswered marks err, of a write that was sent, unless it is an answer or the driver says that it
// sent nothing.
func unanswered(err error) error {
	if err == nil || number(err) != 0 || errors.Is(err, driver.ErrBadConn) {
		return err
	}
	return unansweredError{err}
}
