package mysqllock

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Batch lets Locks of one pool send their renewals, and their polls, together:
// one statement and one commit for many elections. See WithBatch. The zero Batch
// is ready; it must not be copied once it is in use.
type Batch struct {
	mu       sync.Mutex
	db       *sql.DB // that of the Locks, nil before the first
	database string  // their WithDatabase

	// tables is where the statements go to; nil before the first.
	tables  atomic.Pointer[tables]
	mariaDB atomic.Bool // what the last poll's server was

	polls, renewals queue
}

// WithBatch is for a process that campaigns in hundreds of elections with one
// pool: Locks that are given the same Batch send what they have to renew, or to
// poll, in one statement for up to 100 elections, so that the server has far
// fewer statements to run and commits to write. A process with a few elections
// gains nothing.
//
// Each operation waits for others up to a tenth of its deadline, at most 150 ms,
// which counts within that deadline: what the elector and its followers may rely
// on stays the same. Each row of a statement is compared and swapped by itself.
// One that another session has locked is passed over, not waited for, and then
// renewed alone, so that no election holds up another; takeovers, releases and
// guards are never shared.
//
// The Locks must have the same *sql.DB and the same WithDatabase. The server
// must know SKIP LOCKED: MySQL 8.0, MariaDB 10.6. Don't use it with
// binlog_format=STATEMENT.
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
	// maxBatchWait bounds how long an operation waits for others, a tenth of its
	// deadline: that of client-go's defaults.
	maxBatchWait = maxOperationTimeout / 10

	// batchPollSQL reads many elections: parameters (names). A row for each that
	// there is; see pollSQL.
	batchPollSQL = pollColumns + `, CAST(r.election_name AS BINARY) FROM {records} AS r WHERE r.election_name IN ({name}{more})` + everyRow
	nextName     = `, {name}`

	// batchRenewSQL is renewSQL for many elections: parameters of each of
	// batchRow. As many rows as were as observed and were not locked. The inner
	// select locks exactly those, by primary key, without waiting; the limit
	// keeps it a select of its own, as MySQL would otherwise merge it into the
	// update, which waits.
	batchRenewSQL = `UPDATE (SELECT b.* FROM (SELECT ` + batchRow + `{more}) AS b` +
		` STRAIGHT_JOIN {records} AS r ON r.election_name = b.name WHERE r.version = b.observed AND r.leader_uid = b.uid AND {session}` +
		` LIMIT 1000 FOR UPDATE SKIP LOCKED) AS b STRAIGHT_JOIN {records} AS r ON r.election_name = b.name` +
		` SET r.lease_duration_seconds = b.lease, r.acquire_time = b.acquired, r.renew_time = b.renewed, r.leader_transitions = b.transitions,` +
		` r.strategy = b.strategy, r.preferred_holder = b.preferred, r.version = b.version, r.last_update = UTC_TIMESTAMP(6), r.server = {server}`

	// batchRow are the values of one renewal, the first of which name them and
	// give the types for the others. Names and uids get the columns' collation,
	// or comparing would depend on the session's.
	batchRow = binary + ` AS name, ` + binaryUID + ` AS uid, ? AS observed, ? AS lease, ? AS acquired, ? AS renewed,` +
		` ? AS transitions, {text} AS strategy, {text} AS preferred, ? AS version`
	nextBatchRow = ` UNION ALL SELECT ` + binary + `, ` + binaryUID + `, ?, ?, ?, ?, ?, {text}, {text}, ?`
	binary       = `CONVERT({name} USING utf8mb4) COLLATE utf8mb4_bin`
	binaryUID    = `CONVERT(? USING utf8mb4) COLLATE utf8mb4_bin`
)

// serve makes b that of a pool's Locks.
func (b *Batch) serve(db *sql.DB, database string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.db == nil {
		b.db, b.database = db, database
		b.tables.Store(tablesOf(database, true))
		b.polls.run, b.renewals.run = b.sendPolls, b.sendRenewals
	}
	if b.db != db || b.database != database {
		return errors.New("WithBatch: the Batch serves Locks of another pool or database; give each a Batch of its own")
	}
	return nil
}

// queue is what waits to be sent together.
type queue struct {
	run     func(context.Context, []*batched)
	mu      sync.Mutex
	waiting []*batched
	due     time.Time // when they are sent, at the latest
}

// batched is one operation in a queue.
type batched struct {
	lock *Lock
	o    *operation

	old, next *row       // what a renewal compares with and writes
	found     *row       // what a poll found
	outcome   chan error // has room for one, as nobody may be waiting any more
}

// What becomes of a renewal, besides errors that end it.
var (
	errNotSent = errors.New("not sent")
	errPassed  = errors.New("one of many was passed over, and it is not known which")
)

// wait sends m together with others and returns what became of it.
func (q *queue) wait(m *batched) error {
	m.outcome = make(chan error, 1)
	q.mu.Lock()
	q.waiting = append(q.waiting, m)
	wait := min(m.o.timeout/10, maxBatchWait)
	switch due := time.Now().Add(wait); {
	case len(q.waiting) == maxBatch:
		go q.flush()
	case len(q.waiting) == 1 || due.Before(q.due):
		q.due = due
		time.AfterFunc(wait, q.flush)
	}
	q.mu.Unlock()
	select {
	case err := <-m.outcome:
		return err
	case <-m.o.ctx.Done():
		return m.o.ctx.Err()
	}
}

func (q *queue) flush() {
	q.mu.Lock()
	waiting := q.waiting
	q.waiting = nil
	q.mu.Unlock()
	// The statement ends with the last of those who wait for it, whose own
	// contexts may end before.
	var last time.Time
	live := waiting[:0]
	for _, m := range waiting {
		if m.o.ctx.Err() != nil {
			continue // given up
		}
		live = append(live, m)
		if end := m.o.started.Add(m.o.timeout); end.After(last) {
			last = end
		}
	}
	if len(live) == 0 {
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), last)
	defer cancel()
	for len(live) > 0 {
		n := min(len(live), maxBatch)
		q.run(ctx, live[:n])
		live = live[n:]
	}
}

// poll is Lock.read, together with others.
func (b *Batch) poll(l *Lock, o *operation) (*row, error) {
	m := &batched{lock: l, o: o}
	if err := b.polls.wait(m); err != nil {
		return nil, err
	}
	if !l.tables.Load().known {
		l.tables.Store(b.tables.Load().with(l.options.serverClock))
	}
	l.mariaDB = b.mariaDB.Load()
	o.session.mariaDB = l.mariaDB
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
		m.found, refused = p.row(m.lock)
		m.outcome <- refused
	}
}

// inFitSession calls f with a session, and again with another if that one turns
// out to be unfit.
func (b *Batch) inFitSession(ctx context.Context, members []*batched, f func(*session) error) error {
	s := session{db: b.db, mariaDB: b.mariaDB.Load()}
	err := f(&s)
	for s.settle(ctx, &err) {
		err = f(&s)
	}
	members[0].lock.reportUnfit(ctx, s.unfit)
	return err
}

// read returns the rows by their elections' names, and what is known of the
// session for elections without a row.
func (b *Batch) read(ctx context.Context, s *session, members []*batched) (found map[string]*polled, asked *polled, err error) {
	if t := b.tables.Load(); !t.known {
		if t, asked, err = t.learn(ctx, s); err != nil {
			return nil, nil, err
		}
		b.tables.Store(t)
	}
	statements, w := b.wording(members, func(m *batched) bool { return m.lock.ascii })
	names := make([]any, len(members))
	for i, m := range members {
		names[i] = statements.text(m.lock.election)
	}
	found = make(map[string]*polled, len(members))
	err = s.query(ctx, w.fill(strings.Replace(batchPollSQL, "{more}", strings.Repeat(nextName, len(members)-1), 1)), names, func(scan scanner) error {
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

// wording is that of a statement for all members: if it carries one string
// beyond ASCII, all travel as that one must.
func (b *Batch) wording(members []*batched, plain func(*batched) bool) (*statements, wording) {
	t := b.tables.Load()
	w := wording{database: t.database, serverClock: true, unicode: !isASCII(t.database)}
	for _, m := range members {
		w.unicode = w.unicode || !plain(m)
	}
	if w.unicode {
		return t.forUnicode, w
	}
	return t.forASCII, w
}

// renew is Lock.swap for a renewal, together with others. It tells whether next
// was written; if not, and there is no error, the Lock has to do it alone.
func (b *Batch) renew(l *Lock, o *operation, old, next *row) (written bool, err error) {
	err = b.renewals.wait(&batched{lock: l, o: o, old: old, next: next})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, errNotSent):
		return false, nil
	case errors.Is(err, errPassed):
		now, err := l.read(o)
		if err != nil {
			return false, err
		}
		return now != nil && now.version == next.version && now.uid == l.uid, nil
	}
	if o.ctx.Err() != nil {
		err = unanswered(err) // it may be under way, for the others
	}
	return false, err
}

// sendRenewals writes many rows. Each is compared and swapped by itself, so that
// as many rows as members means that each was as observed. No two members have
// the same row in the same state, as only the Lock that holds it knows its uid.
func (b *Batch) sendRenewals(ctx context.Context, members []*batched) {
	err := errNotSent
	if len(members) > 1 {
		var n int64
		err = b.inFitSession(ctx, members, func(s *session) (err error) {
			n, err = b.write(ctx, s, members)
			return err
		})
		switch {
		case number(err) != 0:
			err = errNotSent // the server did nothing: a deadlock, a version that doesn't know the statement
		case err == nil && n != int64(len(members)):
			err = errPassed
		}
	}
	for _, m := range members {
		m.outcome <- err
	}
}

func (b *Batch) write(ctx context.Context, s *session, members []*batched) (int64, error) {
	statements, w := b.wording(members, func(m *batched) bool {
		return m.lock.ascii && isASCII(string(m.next.record.Strategy)) && isASCII(m.next.record.PreferredHolder)
	})
	args := make([]any, 0, 10*len(members))
	for _, m := range members {
		r := m.next.record
		args = append(args, statements.text(m.lock.election), m.lock.uid, m.old.version, r.LeaseDurationSeconds, datetime(r.AcquireTime), datetime(r.RenewTime),
			r.LeaderTransitions, statements.text(string(r.Strategy)), statements.text(r.PreferredHolder), m.next.version)
	}
	return s.write(ctx, w.fill(strings.Replace(batchRenewSQL, "{more}", strings.Repeat(nextBatchRow, len(members)-1), 1)), args...)
}
