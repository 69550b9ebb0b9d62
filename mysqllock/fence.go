package mysqllock

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

const (
	// guardSQL pins the current term: parameters (name, as hexadecimal UTF-8, as
	// the transaction's session may have any character set). The shared lock lasts
	// until the transaction ends, and a takeover needs the row for itself, so
	// that no term begins before. LOCK IN SHARE MODE is the spelling that both
	// MySQL and MariaDB know.
	guardSQL = `SELECT fencing_token, leader_uid FROM {fences} WHERE election_name = ` + hexName + ` LOCK IN SHARE MODE`

	// certifiedGuardSQL pins the current term on clusters in which several nodes
	// take writes: parameters (name, as above, token, uid). One row, or none if another
	// term has begun. There, a lock is known to its own node only, and a node
	// that is behind with applying has not seen a takeover that another node
	// committed; but the cluster certifies writes, and refuses the commit of the
	// later one of two transactions that changed the same row.
	certifiedGuardSQL = `UPDATE {fences} SET guards = guards + 1 WHERE election_name = ` + hexName + ` AND fencing_token = ? AND leader_uid = ?`

	// clusterSQL finds out about such clusters: Galera (wsrep_on is ON) and
	// Group Replication (it has a group's name), in whatever mode, as modes
	// change while a primary fails over.
	clusterSQL = `SHOW VARIABLES WHERE Variable_name IN ('wsrep_on', 'group_replication_group_name')`

	// sessionSQL reads what Transact changes of a session and puts back.
	sessionSQL = `SELECT @@autocommit, @@session.wait_timeout`

	// startSQL, endedSQL: a savepoint that is gone shows that the transaction
	// which it was set in is gone.
	startSQL = `SAVEPOINT mysqllock_transact`
	endedSQL = `RELEASE SAVEPOINT mysqllock_transact`
)

// FencingToken returns the token of the current term, and whether this Lock
// holds one. Every term of an election, also one of the same holder, has a
// token larger than all before, so that a resource that refuses tokens smaller
// than the largest it has seen refuses a stale leader:
//
//	UPDATE resource SET ..., fence = ? WHERE id = ? AND fence <= ?
//
// Read it once when a term begins, in OnStartedLeading, and use that value for
// the term's work. For tables in the same MySQL server use Transact, which needs
// no column.
func (l *Lock) FencingToken() (token int64, held bool) {
	token = l.currentToken()
	return token, token != 0
}

// Guard makes sure, inside the caller's transaction, that this Lock leads and
// that no other candidate can begin a term before that transaction ends. It
// returns ErrNotLeader if leadership has passed; then roll back.
//
// tx must be of the server that has the lock's tables. A guard as the first
// statement pins leadership for the whole transaction: what is read afterwards
// stays a leader's view until the commit, but nobody can take over meanwhile,
// whatever becomes of this process. A guard as the last statement before the
// commit pins it for the shortest time: prefer it, or Transact, which does it.
//
// A client that is cut off after its guard holds takeovers off until the server
// drops its session, after wait_timeout (8 hours by default): Transact lowers
// that, Guard does not. Renewals never wait for a guard.
//
// The guard is a shared lock, so that any number of a leader's transactions may
// be guarded at once. On Galera and Group Replication, which is detected, it is
// a write instead: guarded transactions of one election wait for each other
// there, a commit may fail with error 1213 or 3101, having committed nothing, and
// a read-only transaction can't be guarded. tx's account needs SELECT and UPDATE
// on election_fences.
//
// A server may end a transaction on its own after an error (a deadlock, 1213;
// MariaDB's 1020): roll back on every error. What follows in such a transaction
// would be committed statement by statement, unguarded; Transact notices that,
// Guard can't.
func (l *Lock) Guard(ctx context.Context, tx *sql.Tx) error {
	token, held := l.FencingToken()
	if !held {
		return wrap("guard", l.election, ErrNotLeader, nil)
	}
	return wrap("guard", l.election, l.guard(ctx, tx, token), nil)
}

func (l *Lock) guard(ctx context.Context, tx *sql.Tx, token int64) error {
	// The transaction may be of a pool with another default database.
	fill := tableNames(l.tables.Load().database).Replace
	name := hex.EncodeToString([]byte(l.election))
	certified, err := l.isCertified(ctx, tx)
	if err != nil {
		return err
	}
	if certified {
		result, err := tx.ExecContext(ctx, fill(certifiedGuardSQL), name, token, l.uid)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 1 {
			return err
		}
	}
	var found sql.NullInt64
	var uid sql.NullString
	err = tx.QueryRowContext(ctx, fill(guardSQL), name).Scan(&found, &uid)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return errors.New("the election has no row in election_fences, although this candidate holds a term: the transaction is not of the server and the database that have the lock's tables, or somebody deleted the row; give the pool of that server, or WithDatabase")
	case number(err) == errRecordChanged:
		return fmt.Errorf("%w: another term has begun since the transaction did: %w", ErrNotLeader, err)
	case err != nil:
		return err
	case found.Int64 != token || uid.String != l.uid:
		return fmt.Errorf("%w: another term has begun, with fencing token %d after %d", ErrNotLeader, found.Int64, token)
	case certified:
		return fmt.Errorf("%w: the row in election_fences is not as it was when the transaction began", ErrNotLeader)
	}
	return nil
}

// isCertified tells whether tx's server is part of a cluster that takes writes
// on several nodes. It asks once a term.
func (l *Lock) isCertified(ctx context.Context, tx *sql.Tx) (bool, error) {
	l.mu.Lock()
	known := l.cluster
	l.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	certified := false
	err := each(ctx, tx, clusterSQL, nil, func(scan scanner) error {
		var name, value string
		err := scan(&name, &value)
		certified = certified || (name == "wsrep_on" && value == "ON") || (name == "group_replication_group_name" && value != "")
		return err
	})
	if err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cluster = &certified
	return certified, nil
}

// Transact runs fn in a transaction of db and commits it only if this Lock still
// leads, in the same term as at the start: a stale leader's writes are never
// committed, whatever its clock, its garbage collector or its network did.
//
// db may be any pool of the server that has the lock's tables, and should not be
// the lock's own: renewals must not wait for a connection. fn must use tx for
// all that is to be guarded, must not commit it, and must not send statements
// that commit implicitly (DDL, LOCK TABLES, START TRANSACTION): what such a
// statement commits is unguarded, and Transact can only report it afterwards.
//
// Errors:
//   - fn's error is returned as it is, after a rollback. A panic is passed on,
//     after a rollback.
//   - ErrNotLeader: leadership has passed; nothing was committed.
//   - A *mysql.MySQLError with number 1213 (deadlock), 1020 (changed since the
//     snapshot), 1412 (a table was altered or replaced since the snapshot) or 3101
//     (Group Replication's certification), from fn, the guard or the commit: nothing
//     was committed, and the whole call may be tried again.
//   - A transaction that ended inside fn, as the server rolled it back and fn
//     went on all the same, is an error; what fn did since is rolled back.
//   - ErrOutcomeUnknown: the COMMIT was sent, but no answer came.
//
// A process that is cut off between guard and commit holds takeovers off no
// longer than about a lease: Transact sets the session's wait_timeout for that
// time.
func (l *Lock) Transact(ctx context.Context, db *sql.DB, opts *sql.TxOptions, fn func(context.Context, *sql.Tx) error) (err error) {
	const op = "transact"
	switch {
	case db == nil:
		return wrap(op, l.election, errors.New("db is nil; give a pool of the server that has the lock's tables"), nil)
	case fn == nil:
		return wrap(op, l.election, errors.New("fn is nil; give the function that does the work"), nil)
	}
	token, held := l.FencingToken()
	if !held {
		return wrap(op, l.election, ErrNotLeader, nil)
	}
	s, err := l.beginGuarded(ctx, db, opts)
	if err != nil {
		return wrap(op, l.election, err, db)
	}
	committed := false
	defer func() { s.end(committed) }()
	if err := fn(ctx, s.tx); err != nil {
		return err
	}
	if err := s.commit(ctx, token); err != nil {
		return wrap(op, l.election, err, db)
	}
	committed = true
	return nil
}

// guardedSession is a session while it serves one Transact.
type guardedSession struct {
	lock     *Lock
	conn     *sql.Conn
	tx       *sql.Tx
	cancelTx context.CancelFunc

	// timeout bounds each statement that Transact itself sends: a lease, as by
	// then somebody else may lead.
	timeout time.Duration

	// As found, to be put back.
	autocommit  bool
	waitTimeout int64
}

// beginGuarded takes a session and begins a transaction in it. Autocommit is
// off meanwhile: if the server ends the transaction on its own and fn goes on,
// what follows is another open transaction, not one committed statement after
// the other.
func (l *Lock) beginGuarded(ctx context.Context, db *sql.DB, opts *sql.TxOptions) (*guardedSession, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	s := &guardedSession{lock: l, conn: conn, timeout: l.leaseDuration()}
	if err := s.begin(ctx, opts); err != nil {
		if s.tx != nil {
			s.end(false)
		} else {
			s.discard()
		}
		return nil, err
	}
	return s, nil
}

func (s *guardedSession) begin(ctx context.Context, opts *sql.TxOptions) error {
	bounded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := s.conn.QueryRowContext(bounded, sessionSQL).Scan(&s.autocommit, &s.waitTimeout); err != nil {
		return err
	}
	if s.autocommit {
		if _, err := s.conn.ExecContext(bounded, `SET SESSION autocommit = 0`); err != nil {
			return err
		}
	}
	// The context of BeginTx is the transaction's for its whole life; bounded
	// only while it begins.
	txCtx, cancelTx := context.WithCancel(ctx)
	s.cancelTx = cancelTx
	bound := time.AfterFunc(s.timeout, cancelTx)
	tx, err := s.conn.BeginTx(txCtx, opts)
	bound.Stop()
	if err != nil {
		cancelTx()
		return err
	}
	s.tx = tx
	return s.exec(ctx, startSQL)
}

// exec sends one of Transact's own statements.
func (s *guardedSession) exec(ctx context.Context, statement string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, err := s.tx.ExecContext(ctx, statement)
	return err
}

// commit commits if the term is still the one with that token. Between guard
// and commit nobody can begin another: the guard's lock lasts until the
// transaction has ended.
func (s *guardedSession) commit(ctx context.Context, token int64) error {
	err := s.exec(ctx, endedSQL)
	switch {
	case number(err) == errNoSavepoint:
		return fmt.Errorf("the transaction ended before the function did: either the server rolled it back after an error that the function did not return (a deadlock, 1213, or 1020), "+
			"or a statement such as DDL or LOCK TABLES committed it, unguarded; what followed was rolled back: %w", err)
	case errors.Is(err, sql.ErrTxDone):
		return fmt.Errorf("the transaction was committed or rolled back by the function itself, unguarded; leave that to Transact: %w", err)
	case err != nil:
		return err
	}
	if s.lock.currentToken() != token {
		return fmt.Errorf("%w: the term ended meanwhile", ErrNotLeader)
	}
	// From here on this session holds takeovers off. Should the process be cut
	// off now, the server drops the session after about a lease.
	seconds := min(s.waitTimeout, max(1, int64((s.timeout+time.Second-1)/time.Second)))
	if err := s.exec(ctx, fmt.Sprintf(`SET SESSION wait_timeout = %d`, seconds)); err != nil {
		return err
	}
	guarded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := s.lock.guard(guarded, s.tx, token); err != nil {
		return err
	}
	// Not tx.Commit, which takes no context: without an answer it would wait
	// for ever.
	err = s.exec(ctx, `COMMIT`)
	if err != nil && !wasRefused(err) {
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return err
}

// wasRefused tells whether a failed COMMIT certainly committed nothing: it was
// not sent, or the server answered that it rolled back.
func wasRefused(err error) bool {
	switch number(err) {
	case errDeadlock, errRecordChanged, errLockWaitTimeout, errOptionPreventsWrite, errReadOnlyTransaction, errReadOnlyMode, errRolledBack:
		return true
	}
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrTxDone)
}

// end rolls back what was not committed and gives the session back as it was
// found, or discards it.
func (s *guardedSession) end(committed bool) {
	// Also when the caller's context has ended.
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	var err error
	if !committed {
		err = s.finally(ctx, `ROLLBACK`)
	}
	if err == nil {
		// Only after the rollback: turning autocommit on commits.
		err = s.finally(ctx, fmt.Sprintf(`SET SESSION wait_timeout = %d, autocommit = %t`, s.waitTimeout, s.autocommit))
	}
	// Rollback tells database/sql that the transaction is over. It takes no
	// context, so that a network that fails right here must not keep the caller.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.tx.Rollback() // of nothing, by now
		s.cancelTx()
		if err != nil {
			s.discard()
			return
		}
		_ = s.conn.Close() // back to the pool
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// finally sends a statement to the session whether or not the transaction is
// over for database/sql. While it is not, a sql.Conn must not be used: it waits
// for the transaction if the session turns out to be broken.
func (s *guardedSession) finally(ctx context.Context, statement string) error {
	_, err := s.tx.ExecContext(ctx, statement)
	if errors.Is(err, sql.ErrTxDone) {
		_, err = s.conn.ExecContext(ctx, statement)
	}
	return err
}

// discard closes the session: the pool must not hand it out again.
func (s *guardedSession) discard() {
	_ = s.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = s.conn.Close()
}
