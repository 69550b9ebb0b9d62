package mysqllock

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync/atomic"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Lock is a resourcelock.Interface on one row of the table election_records. One Lock serves one
// elector, also for several of its runs; it is safe to call from several goroutines. Make it with
// [New].
type Lock struct {
	db       *sql.DB
	election string
	config   resourcelock.ResourceLockConfig
	options  options
	uid      string   // which Lock this is; stored with the lease
	encoding encoding // of election and identity

	// tables is where the statements go to; once the database is known, it is part of them.
	tables atomic.Pointer[tables]
	// turn has what one operation leaves for the next, while none is under way.
	turn chan *memory
	// What follows may be asked without the turn.
	term    term
	elector seenTimings
	// followedLease is the LeaseDuration of the observed row, in nanoseconds, if that has a holder.
	followedLease atomic.Int64
	readiness     readiness
	succession    succession
	unfit         unfitReports
}

var _ resourcelock.Interface = (*Lock)(nil)

// New makes the lock of the candidate config.Identity in the named election. It takes the place of
// the expression that makes a resourcelock.LeaseLock: identity, recorder and elector stay as they
// are.
//
// It does no I/O; [Migrate], or whoever applies [Schema], makes the tables. The pool stays the
// caller's: New doesn't configure it, and nothing here closes it. Keep it open until the elector
// has returned, or it can't release its lease.
//
// The election's name and the identity must have 1 to 255 characters of valid UTF-8, without
// control characters and without a space at either end. With an EventRecorder, see
// [WithEventTarget] for the namespace that events are in.
func New(db *sql.DB, election string, config resourcelock.ResourceLockConfig, opts ...Option) (*Lock, error) {
	fail := func(err error) (*Lock, error) { return nil, wrap("new", election, err, nil) }
	if db == nil {
		return fail(errNoPool)
	}
	if err := validateName("election name", election, maxNameLength); err != nil {
		return fail(err)
	}
	if err := validateName("identity", config.Identity, maxNameLength); err != nil {
		return fail(err)
	}
	o, err := applyOptions(opts)
	if err != nil {
		return fail(err)
	}
	if o.batch != nil {
		if err := o.batch.serve(db, o.database); err != nil {
			return fail(err)
		}
	}
	uid := make([]byte, 16)
	if _, err := rand.Read(uid); err != nil {
		return fail(err)
	}
	l := &Lock{
		db:       db,
		election: election,
		config:   config,
		options:  o,
		uid:      hex.EncodeToString(uid),
		encoding: encodingOf(election, config.Identity),
		turn:     make(chan *memory, 1),
	}
	l.readiness.f = o.readiness
	l.turn <- &memory{}
	l.tables.Store(tablesIn(o.database, o.serverClock))
	return l, nil
}

// Identity returns the candidate's name.
func (l *Lock) Identity() string { return l.config.Identity }

// Describe returns "election_records/<election>", for logs.
func (l *Lock) Describe() string { return "election_records/" + l.election }

// Get reads the election's record. The bytes are the record's JSON with the row's version: every
// renewal changes them, also two within one second, and client-go's followers take nothing else for
// a sign of life.
//
// A row that another Lock holds under this one's identity is reported as held by "<identity>
// (another candidate, uid <uid>)", or both would lead; this Lock's own row, after a term that it
// was asked to end, as held by "<identity> (asked to step down)". With [WithReadiness], a Get that
// finds a leader that is not ready may ask that one to step down.
//
// Errors: apierrors.IsNotFound if the election has no row; an error about the session if it has
// autocommit off, or if a name is non-ASCII and the session's character set is not utf8mb4.
func (l *Lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	var record resourcelock.LeaderElectionRecord
	var raw []byte
	var r *row
	err := l.operate(ctx, "get", func(o *operation) (err error) {
		if r, err = l.poll(o); err != nil {
			return err
		}
		if err := o.late(); err != nil {
			return err
		}
		if r == nil {
			l.term.end()
			return notFound(l.election)
		}
		if l.options.serverClock {
			if r, err = l.expire(o, r); err != nil {
				return err
			}
		}
		l.observe(o, r)
		if r.uid != l.uid {
			// Someone took over meanwhile, or this Lock never led.
			l.term.end()
		}
		record = r.record
		record.HolderIdentity = l.shownHolder(o, r)
		raw, err = r.raw(record)
		return err
	})
	if err != nil {
		l.succession.startAnew()
		return nil, nil, err
	}
	l.succeed(ctx, r)
	return &record, raw, nil
}

// Create makes the election's row, held as record says.
//
// Errors: apierrors.IsAlreadyExists if the row is there already, also if another candidate was
// faster; an error that says so if this candidate is not ready (see [WithReadiness]), or was asked
// to step down less than a lease ago (see [WithStepDown]).
func (l *Lock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	record.LeaderTransitions = storable(record.LeaderTransitions)
	if err := l.validate(record); err != nil {
		return wrap("create", l.election, err, nil)
	}
	l.noteLease(record)
	unready := l.askReadiness(ctx, record)
	return l.operate(ctx, "create", func(o *operation) error {
		o.unready = unready
		if record.HolderIdentity != "" {
			if err := l.mayBegin(o, &row{}); err != nil {
				return err
			}
		}
		if _, err := l.learn(o); err != nil {
			return err
		}
		made, err := l.insert(o, record)
		if err != nil {
			return err
		}
		if record.HolderIdentity == "" {
			return l.accept(o, made)
		}
		err = l.takeOver(o, made, record)
		var lost *lostError
		if errors.As(err, &lost) {
			return alreadyExists(l.election)
		}
		return err
	})
}

// insert makes the election's row, that of record as released. It is then taken over, so that
// beginning a term is one statement, the same for a new election and an old one. A candidate that
// dies in between leaves an election that anyone can take.
func (l *Lock) insert(o *operation, record resourcelock.LeaderElectionRecord) (*row, error) {
	released := &row{record: record, version: o.newVersion(0), ready: true}
	released.record.HolderIdentity = ""
	n, err := o.session.write(o.ctx, l.statements(record).insert(l.election, released))
	switch {
	case number(err) == errDuplicateKey:
		return nil, alreadyExists(l.election)
	case hasChanged(err):
		if now, readErr := l.read(o); readErr == nil && now != nil {
			return nil, alreadyExists(l.election)
		}
		return nil, err
	case number(err) == errNotNull, err == nil && n != 1:
		return nil, l.refused(o, record, "the server did not insert the election's row")
	case err != nil:
		return nil, err
	}
	return released, nil
}

// Update writes record if the row is still as the elector last saw it: a renewal while this Lock
// holds a term, a takeover that begins a term otherwise, a release if the record has no holder.
//
// The outcome of a write that had no answer is unknown: the server may still apply the statement.
// That is harmless, as it is a compare-and-swap, and a later Get recognises a row that this Lock
// wrote itself.
//
// Errors: apierrors.IsConflict if the row is not as last seen (with [ErrDuplicateIdentity] if
// another candidate of the same identity holds it); apierrors.IsNotFound if it is gone. A takeover
// fails as Create does if this candidate is not ready or was asked to step down; so does a renewal
// by a leader that was asked and has no [WithStepDown]. A release by a Lock that no longer holds
// the row is refused by an error that is no conflict, as client-go would retry a conflict without a
// pause; so is one by a leader that did not renew for RenewDeadline (half a lease where that is not
// known), whose work has not ended yet unless [WithBeforeRelease]'s function did that.
func (l *Lock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	l.seeUpdate(ctx, record)
	defer l.elector.updateReturns()
	record.LeaderTransitions = storable(record.LeaderTransitions)
	if err := l.validate(record); err != nil {
		return wrap("update", l.election, err, nil)
	}
	if record.HolderIdentity == "" {
		if err := l.drain(ctx); err != nil {
			return wrap("update", l.election, err, nil)
		}
	}
	l.noteLease(record)
	unready := l.askReadiness(ctx, record)
	return l.operate(ctx, "update", func(o *operation) error {
		o.unready = unready
		old, token := o.observed, l.term.current()
		switch {
		case old == nil:
			return errors.New("no row was observed yet; call Get or Create first")
		case record.HolderIdentity == "":
			return l.release(o, old, record)
		case old.uid == l.uid && token != 0:
			return l.renew(o, old, record, token)
		case old.isHeld() && old.uid != l.uid && !l.mayTakeOverNamesake(old) && !record.AcquireTime.Equal(&record.RenewTime):
			// The record goes on with a term, the row is a successor's: the caller hasn't noticed.
			// A takeover has equal times.
			return conflict(l.election, "the row is held by "+strconv.Quote(old.record.HolderIdentity)+", and the record does not begin a term")
		default:
			return l.takeOver(o, old, record)
		}
	})
}

// renew goes on with the term that has that token. No other candidate can have a term at that
// moment: beginning one changes version and uid, and then no row matches.
func (l *Lock) renew(o *operation, old *row, record resourcelock.LeaderElectionRecord, token int64) error {
	if err := l.mayRenew(); err != nil {
		return err
	}
	next := l.next(o, old, record)
	alone := func() error { return l.renewAlone(o, old, next) }
	var err error
	if b := l.options.batch; b != nil && !l.term.isAsked() { // or all others would be passed over
		err = b.renew(l, o, old, next, alone)
	} else {
		err = alone()
	}
	if err != nil {
		return err
	}
	if err := o.late(); err != nil {
		return unanswered(err)
	}
	if !l.term.renew(token, o.started) {
		return fmt.Errorf("%w: the term ended while it was being renewed", ErrNotLeader)
	}
	l.observe(o, next)
	return nil
}

// takeOver begins a term. A row that is this Lock's own without a held token (a takeover whose
// reply was lost, an earlier run of the elector) is taken over like any other, with another token.
func (l *Lock) takeOver(o *operation, old *row, record resourcelock.LeaderElectionRecord) error {
	l.term.end()
	l.succession.startAnew()
	if err := l.mayBegin(o, old); err != nil {
		return err
	}
	s := l.statements(record)
	if err := o.session.endTransaction(o.ctx); err != nil {
		return err // or the probe would leave the row locked
	}
	engine, err := o.session.askEngine(o.ctx)
	if err != nil {
		return err
	}
	o.engine = engine
	var last sql.NullInt64
	var clock int64
	err = o.session.queryRow(o.ctx, s.probe(l.election), &last, &clock)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return l.refused(o, record, "the server did not answer with its clock; check it with Preflight")
	case hasChanged(err):
		return l.changed(o, old, record, err)
	case isBusy(err):
		return fmt.Errorf("a transaction guards the current term, or takes over, until it ends: %w", err)
	case err != nil:
		return err
	case last.Int64 == math.MaxInt64:
		return errors.New("the election's row in election_fences has the largest fencing token there is, so that no term can begin; delete that row, once nothing compares with this token any more")
	case !last.Valid:
		if err := l.insertFence(o, record); err != nil {
			return err
		}
	}
	// Larger than the last one, which the statement compares with, and, as the server's clock goes
	// on, than those of a fence row that was lost.
	token := max(last.Int64+1, clock)
	next := l.next(o, old, record)
	if err := l.swap(o, old, next, s.takeOver(l.election, last.Int64, token, old, next)); err != nil {
		return err
	}
	if err := l.accept(o, next); err != nil {
		return err
	}
	l.term.begin(token, o.started, engine)
	return nil
}

// mayBegin reports what keeps this candidate from beginning a term by a takeover of old.
func (l *Lock) mayBegin(o *operation, old *row) error {
	if err := o.standsDown(); err != nil {
		return err
	}
	return l.mayTakeOver(o, old)
}
