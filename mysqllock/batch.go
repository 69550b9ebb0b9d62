package mysqllock

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"
)

// Renewals and polls of many elections in one statement.

// Batch lets Locks of one pool send their renewals, and their polls, together: one statement and
// one commit for many elections. See [WithBatch]. The zero Batch is ready for use; it must not be
// copied once it is in use.
type Batch struct {
	mu       sync.Mutex
	db       *sql.DB // that of the Locks, nil before the first
	database string  // their WithDatabase

	// tables is where the statements go to; nil before the first.
	tables  atomic.Pointer[tables]
	mariaDB atomic.Bool // what the last poll's server was
	plain   atomic.Bool // whether it takes plainRollbackSQL alone
	refused atomic.Bool // the server has no such statement as batchRenewSQL

	polls, renewals queue
}

// WithBatch is for a process that campaigns in hundreds of elections with one pool. Locks that are
// given the same [Batch] send their renewals, or polls, in one statement for up to 100 elections.
// The server then has far fewer statements to run and commits to write. A process with a few
// elections gains nothing.
//
// Each operation waits for others up to a tenth of its deadline, at most 150 ms. That counts within
// the deadline, so that the elector and its followers may rely on what they could before. Each row
// of a statement is compared and swapped by itself. A row that another session has locked is passed
// over, not waited for, and then renewed alone: no election holds up another. Takeovers, releases
// and guards are never shared.
//
// The Locks must have the same *sql.DB and the same WithDatabase. Don't use it with
// binlog_format=STATEMENT. A server that refuses the statement (MariaDB before 10.6, Vitess with
// shards, TiDB) is asked once: each renewal is then sent alone, as without the option, and the log
// says so.
func WithBatch(b *Batch) Option {
	return func(o *options) error {
		if b == nil {
			return errors.New("WithBatch: the Batch is nil; give the Locks of one pool the address of one Batch")
		}
		o.batch = b
		return nil
	}
}

const (
	// maxBatch bounds a statement: its text has some 30 kB then.
	maxBatch = 100
	// maxBatchWait bounds how long an operation waits for others, a tenth of its deadline: that of
	// client-go's defaults.
	maxBatchWait = maxOperationTimeout / 10
)

// batchPollSQL reads many elections: a row for each that there is; see pollSQL.
const batchPollSQL = `
SELECT ` + pollColumns + `, CAST(r.election_name AS BINARY)
  FROM {records} AS r
 WHERE r.election_name IN ({name}{more})` + everyRow

const nextName = `, {name}`

func (s *statements) pollMany(members []*batched) statement {
	args := make([]any, len(members))
	for i, m := range members {
		args[i] = s.encode(m.lock.election)
	}
	return statement{s.expandMany(batchPollSQL, nextName, len(members)), args}
}

// batchRenewSQL is renewSQL for many elections: as many rows as were as observed and were not
// locked. The inner select locks exactly those, by primary key, without waiting; the limit keeps it
// a select of its own, as MySQL would otherwise merge it into the update, which waits.
const batchRenewSQL = `
UPDATE (SELECT b.* FROM (SELECT ` + batchRow + `{more}) AS b
          STRAIGHT_JOIN {records} AS r ON r.election_name = b.name
         WHERE r.version = b.observed AND r.leader_uid = b.uid AND NOT (r.step_down_uid <=> r.leader_uid) AND {session}
         LIMIT 1000 FOR UPDATE SKIP LOCKED) AS b
       STRAIGHT_JOIN {records} AS r ON r.election_name = b.name
   SET r.lease_duration_seconds = b.lease, r.acquire_time = b.acquired, r.renew_time = b.renewed, r.leader_transitions = b.transitions,
       r.strategy = b.strategy, r.preferred_holder = b.preferred, r.ready = b.ready, r.version = b.version, r.last_update = UTC_TIMESTAMP(6), r.server = {server}`

// batchRow are the values of one renewal, the first of which name them and give the types for the
// others. Names and uids get the columns' collation, or comparing would depend on the session's.
const (
	batchRow = binary + ` AS name, ` + binaryUID + ` AS uid, ? AS observed, ? AS lease, ? AS acquired, ? AS renewed,
       ? AS transitions, {text} AS strategy, {text} AS preferred, ? AS ready, ? AS version`
	nextBatchRow = ` UNION ALL SELECT ` + binary + `, ` + binaryUID + `, ?, ?, ?, ?, ?, {text}, {text}, ?, ?`
	binary       = `CONVERT({name} USING utf8mb4) COLLATE utf8mb4_bin`
	binaryUID    = `CONVERT(? USING utf8mb4) COLLATE utf8mb4_bin`
)

func (s *statements) renewMany(members []*batched) statement {
	args := make([]any, 0, 11*len(members))
	for _, m := range members {
		r := m.next.record
		args = append(args, s.encode(m.lock.election), m.lock.uid, m.old.version, r.LeaseDurationSeconds, datetime(r.AcquireTime), datetime(r.RenewTime),
			r.LeaderTransitions, s.encode(string(r.Strategy)), s.encode(r.PreferredHolder), m.next.ready, m.next.version)
	}
	return statement{s.expandMany(batchRenewSQL, nextBatchRow, len(members)), args}
}

// expandMany expands a text whose {more} is n-1 times next.
func (s *statements) expandMany(text, next string, n int) string {
	return s.holes.Replace(strings.Replace(fold(text), "{more}", strings.Repeat(next, n-1), 1))
}

// serve makes b that of a pool's Locks.
func (b *Batch) serve(db *sql.DB, database string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.db == nil {
		b.db, b.database = db, database
		b.tables.Store(tablesIn(database, true))
		b.polls.run, b.renewals.run = b.sendPolls, b.sendRenewals
	}
	if b.db != db || b.database != database {
		return errors.New("WithBatch: the Batch serves Locks of another pool or database; give each a Batch of its own")
	}
	return nil
}

// What becomes of a renewal, besides errors that end it.
var (
	errNotSent = errors.New("not sent")
	errPassed  = errors.New("one of many was passed over, and it is not known which")
)

// refusedManyError is what a server has against the statement for many.
type refusedManyError struct{ error }

// poll is Lock.read, together with others.
func (b *Batch) poll(l *Lock, o *operation) (*row, error) {
	m := &batched{lock: l, o: o}
	if err := b.polls.wait(m); err != nil {
		return nil, err
	}
	if !l.tables.Load().known {
		l.tables.Store(b.tables.Load().with(l.options.serverClock))
	}
	o.mariaDB = b.mariaDB.Load()
	o.session.mariaDB = o.mariaDB
	return m.found, nil
}

func (b *Batch) sendPolls(ctx context.Context, members []*batched) {
	var found map[string]*polled
	var asked *polled
	err := b.inFitSession(ctx, members, func(s *session) (err error) {
		found, asked, err = b.read(ctx, s, members)
		return err
	})
	for _, m := range members {
		if err != nil {
			m.outcome <- err
			continue
		}
		p := found[m.lock.election]
		if p == nil {
			p = asked
		}
		var refused error
		m.found, refused = p.row(b.tables.Load().in(m.lock.encoding).encoding)
		m.outcome <- refused
	}
}

// inFitSession calls f with a session, and again with another if that one turns out to be unfit.
func (b *Batch) inFitSession(ctx context.Context, members []*batched, f func(*session) error) error {
	s := session{db: b.db, mariaDB: b.mariaDB.Load(), plain: b.plain.Load()}
	err := f(&s)
	for s.settle(ctx, &err) {
		err = f(&s)
	}
	b.plain.Store(s.plain)
	members[0].lock.reportUnfit(ctx, s.unfit)
	return err
}

// read returns the rows by their elections' names, and what is known of the session for elections
// without a row.
func (b *Batch) read(ctx context.Context, s *session, members []*batched) (found map[string]*polled, asked *polled, err error) {
	if t := b.tables.Load(); !t.known {
		if t, asked, err = t.learn(ctx, s); err != nil {
			return nil, nil, err
		}
		b.tables.Store(t.with(true))
	}
	statements := b.statements(members, func(m *batched) encoding { return m.lock.encoding })
	found = make(map[string]*polled, len(members))
	err = s.query(ctx, statements.pollMany(members), func(scan scanner) error {
		var p polled
		var name sql.NullString
		if err := scan(append(p.fields(), &name)...); err != nil {
			return err
		}
		asked = &polled{state: p.state, charsets: p.charsets}
		// A row that someone made by hand may end in spaces, which the key ignores.
		found[strings.TrimRight(name.String, " ")] = &p
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if asked == nil {
		if asked, _, err = s.check(ctx); err != nil {
			return nil, nil, err
		}
	}
	if err := s.note(ctx, sessionState(asked.state.Int64)); err != nil {
		return nil, nil, err
	}
	b.mariaDB.Store(s.mariaDB)
	return found, asked, nil
}

// statements are those for all members: if one carries a non-ASCII string, all travel as that must.
func (b *Batch) statements(members []*batched, of func(*batched) encoding) *statements {
	e := asciiEncoding
	for _, m := range members {
		e = max(e, of(m))
	}
	return b.tables.Load().in(e)
}

// renew is Lock.swap for a renewal, together with others where that goes, else alone.
func (b *Batch) renew(l *Lock, o *operation, old, next *row, alone func() error) error {
	if b.refused.Load() {
		return alone()
	}
	err := b.renewals.wait(&batched{lock: l, o: o, old: old, next: next})
	var refused refusedManyError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		// It may be away, or a column missing: it has no such statement if it takes that for one row.
		err := alone()
		if err == nil && !b.refused.Swap(true) {
			klog.FromContext(o.ctx).Info("Renews each election by a statement of its own, as this server refuses one for many",
				"reason", publicText(refused.error))
		}
		return err
	case errors.Is(err, errNotSent):
		return alone()
	case errors.Is(err, errPassed):
		now, err := l.read(o)
		if err != nil || now != nil && now.version == next.version && now.uid == l.uid {
			return err
		}
		return alone()
	}
	if o.ctx.Err() != nil {
		err = unanswered(err) // it may be under way, for the others
	}
	return err
}

// sendRenewals writes many rows. Each is compared and swapped by itself, so that as many rows as
// members means that each was as observed. No two members have the same row in the same state, as
// only the Lock that holds it knows its uid.
func (b *Batch) sendRenewals(ctx context.Context, members []*batched) {
	err := errNotSent
	if len(members) > 1 {
		var n int64
		err = b.inFitSession(ctx, members, func(s *session) (err error) {
			n, err = b.write(ctx, s, members)
			return err
		})
		switch {
		case mayBeUnknownStatement(err):
			err = refusedManyError{err}
		case number(err) != 0:
			err = errNotSent // the server did nothing: a deadlock, say
		case err == nil && n != int64(len(members)):
			err = errPassed
		}
	}
	for _, m := range members {
		m.outcome <- err
	}
}

func (b *Batch) write(ctx context.Context, s *session, members []*batched) (int64, error) {
	statements := b.statements(members, func(m *batched) encoding {
		return max(m.lock.encoding, encodingOf(string(m.next.record.Strategy), m.next.record.PreferredHolder))
	})
	return s.write(ctx, statements.renewMany(members))
}
