package mysqllock

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"
)

// Stepping down on request. A request names the leader's uid in step_down_uid and changes nothing
// else: it is no sign of life of a leader that is dead, and dies with that leader's term.
//
// What heeds it elsewhere: renewSQL misses a row with a request, and takeOverSQL clears it
// (statements.go); a miss is told apart in Lock.lost (outcome.go); a candidate that is ready makes
// a request of its own (succeed, readiness.go); a candidate that was asked may lead again once it
// has seen another leader (observe, row.go); Get shows its row as somebody else's (namesake.go).

// WithStepDown makes the lock call stop when somebody asks this leader to step down: another
// candidate (see [WithReadiness]) or a person (see [RequestStepDown]). Usually stop cancels the
// context of the elector, or of controller-runtime's manager: the work ends, the lease is released
// (ReleaseOnCancel), and the next candidate leads within a retry or two.
//
// stop is called once a term, in a goroutine of its own, at the next renewal after the request. The
// lease is renewed for as long as the elector goes on: controller-runtime's does until the
// controllers have ended, or GracefulShutdownTimeout has passed, and [ElectLeader]'s until the work
// has ended. A stop that ends nothing so hands nothing over. client-go's own elector releases as
// soon as its context is cancelled: [WithBeforeRelease] is for work that takes its time to end.
// Without WithStepDown a leader that was asked renews no more, and its elector stops at its
// RenewDeadline.
//
// A Lock that was asked begins no term until it has seen another holder, or until one LeaseDuration
// has passed since it noticed the request: the others come first.
func WithStepDown(stop func()) Option {
	return func(o *options) error {
		if stop == nil {
			return errors.New("WithStepDown: the function is nil; give one that cancels the elector's context")
		}
		o.stepDown = stop
		return nil
	}
}

// RequestStepDown asks the leader of an election to step down, and returns without waiting for
// that. The leader notices at its next renewal: see [WithStepDown]. [GetElection] shows who leads
// then. A leader of a version before this function existed ignores the request.
//
// Errors: apierrors.IsNotFound if the election has no row; an error that says so if nobody leads,
// or if another leader has begun a term meanwhile. A leader that was asked already is no error. The
// account needs SELECT and UPDATE on election_records. See [Option] for those that it uses; without
// [WithOperationTimeout] it may take 10 s.
func RequestStepDown(ctx context.Context, db *sql.DB, election string, opts ...Option) error {
	const op = "request step-down"
	if db == nil {
		return wrap(op, election, errNoPool, nil)
	}
	if err := validateName("election name", election, maxNameLength); err != nil {
		return wrap(op, election, err, nil)
	}
	o, err := applyOptions(opts)
	if err != nil {
		return wrap(op, election, err, nil)
	}
	timeout := inspectTimeout
	if o.operationTimeout > 0 {
		timeout = o.operationTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s := &session{db: db}
	request := func() error { return requestStepDown(ctx, s, statementsFor(placement{database: o.database}), election) }
	err = request()
	for s.settle(ctx, &err) {
		err = request()
	}
	return wrap(op, election, err, db)
}

func requestStepDown(ctx context.Context, s *session, statements *statements, election string) error {
	if _, _, err := s.check(ctx); err != nil {
		return err
	}
	var holder, uid, asked sql.NullString
	err := s.queryRow(ctx, statements.stepDownState(election), &holder, &uid, &asked)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return notFound(election)
	case err != nil:
		return err
	case holder.String == "":
		return errors.New("nobody leads, so that nobody can step down; ask again when somebody does")
	case uid.String == "":
		return errors.New("the leader's row has no leader_uid, as no Lock wrote it, so that this leader can't be asked; end its process")
	case asked.String == uid.String:
		return nil
	}
	switch n, err := s.write(ctx, statements.requestStepDown(election, uid.String)); {
	case err != nil:
		return err
	case n == 1:
		return nil
	}
	// Somebody else may have asked meanwhile.
	asking := uid.String
	err = s.queryRow(ctx, statements.stepDownState(election), &holder, &uid, &asked)
	switch {
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return err
	case err == nil && uid.String == asking && asked.String == asking:
		return nil
	}
	return errors.New("the leader that was to be asked has ceased to lead meanwhile; see who leads now, and ask again if need be")
}

// stepDownStateSQL reads who leads, and whether that leader was asked.
const stepDownStateSQL = `
SELECT CAST(leader_name AS BINARY), CAST(leader_uid AS BINARY), CAST(step_down_uid AS BINARY)
  FROM {records}
 WHERE election_name = ` + hexName

func (s *statements) stepDownState(election string) statement {
	return statement{s.expand(stepDownStateSQL), []any{hex.EncodeToString([]byte(election))}}
}

// requestStepDownSQL asks the leader with that uid to step down: one row, or none if it leads no
// more or was asked already.
const requestStepDownSQL = `
UPDATE {records}
   SET step_down_uid = leader_uid
 WHERE election_name = ` + hexName + ` AND leader_uid = ` + hexName + ` AND NOT (step_down_uid <=> leader_uid) AND ` + writableSession

func (s *statements) requestStepDown(election, uid string) statement {
	return statement{s.expand(requestStepDownSQL), []any{hex.EncodeToString([]byte(election)), hex.EncodeToString([]byte(uid))}}
}

// errAskedToStepDown is the error of renewals in a term whose leader was asked and has no
// WithStepDown.
var errAskedToStepDown = errors.New("not renewed: this leader was asked to step down; give the lock WithStepDown, so that it ends its work at once")

// stepDown is called when a renewal missed because this leader was asked to step down. That is once
// a term: what is sent afterwards, if anything, is renewAskedSQL.
func (l *Lock) stepDown(o *operation) error {
	l.term.ask()
	o.standsDownUntil = time.Now().Add(l.term.leaseDuration())
	klog.FromContext(o.ctx).Info("Asked to step down", "lock", l.Describe(), "identity", l.config.Identity)
	if stop := l.options.stepDown; stop != nil {
		go stop()
	}
	return errAskedToStepDown
}

// mayRenew reports what keeps a leader from renewing. One that was asked goes on if WithStepDown's
// function ends its work: nobody begins beside that work before the elector gives the lease up.
func (l *Lock) mayRenew() error {
	if !l.term.isAsked() || l.options.stepDown != nil {
		return nil
	}
	if time.Now().After(l.term.expires()) {
		// The elector has stopped by now, also where a wrapper keeps its events from this Lock.
		l.term.end()
	}
	return errAskedToStepDown
}

// renewAlone writes next by a statement of its own, which goes on under a request to step down that
// has been noticed.
func (l *Lock) renewAlone(o *operation, old, next *row) error {
	s := l.statements(next.record)
	err := l.swap(o, old, next, s.renew(l.election, old, next, l.term.isAsked()))
	if errors.Is(err, errAskedToStepDown) && l.mayRenew() == nil { // noticed just now
		err = l.swap(o, old, next, s.renew(l.election, old, next, true))
	}
	return err
}

// standsDown reports whether this candidate begins no term, as it was asked to step down.
func (m *memory) standsDown() error {
	if left := time.Until(m.standsDownUntil); left > 0 {
		return fmt.Errorf("not taken over: this candidate was asked to step down, and lets others lead for %v more", left.Round(time.Millisecond))
	}
	return nil
}
