package mysqllock

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"
)

// A guarded transaction, and what is done to the session that it runs in.

const (
	// borrowSQL notes in the session itself what Transact changes of it, and changes that: see
	// begin. The CAST is for MySQL, which takes no other expression for a number.
	borrowSQL = `SET @mysqllock_autocommit = @@autocommit, @mysqllock_wait_timeout = @@session.wait_timeout, ` +
		`SESSION autocommit = 0, SESSION wait_timeout = CAST(LEAST(@@session.wait_timeout, %d) AS SIGNED)`

	// giveBackSQL fails, so that the session is discarded, if what was noted is not there.
	giveBackSQL = `SET SESSION wait_timeout = CAST(@mysqllock_wait_timeout AS SIGNED), SESSION autocommit = @mysqllock_autocommit, ` +
		`@mysqllock_wait_timeout = NULL, @mysqllock_autocommit = NULL`

	// savepointSQL, releaseSavepointSQL: a savepoint that is gone shows that the transaction which
	// it was set in is gone.
	savepointSQL        = `SAVEPOINT mysqllock_transact`
	releaseSavepointSQL = `RELEASE SAVEPOINT mysqllock_transact`
)

// Transact runs fn in a transaction of db. It commits only if this Lock still leads, in the same
// term as at the start: a stale leader's writes are never committed, whatever its clock, its
// garbage collector or its network did.
//
// db may be any pool of the server that has the lock's tables, and should not be the lock's own:
// renewals must not wait for a connection. fn must use tx for all that is to be guarded, must not
// commit it, and must not send statements that commit implicitly (DDL, LOCK TABLES, START
// TRANSACTION): what such a statement commits is unguarded, and Transact can only report it
// afterwards. Between two statements fn must not pause for as long as a lease: see below.
//
// In a pool of [Open], Transact adds five round trips to those of fn and the COMMIT, and one more
// after somebody else has used the connection; in another pool seven.
//
// Errors:
//   - fn's error is returned as it is, after a rollback. A panic is passed on, after a rollback.
//   - [ErrNotLeader]: leadership has passed; nothing was committed. An error of fn comes with it if
//     the session was lost, which is what a leader that was paused meets first.
//   - A *mysql.MySQLError with number 1213 (deadlock), 1020 (changed since the snapshot), 1412 (a
//     table was altered or replaced since the snapshot), 3101 (Group Replication's certification)
//     or 9007 (TiDB's write conflict), from fn, the guard or the commit: nothing was committed, and
//     the whole call may be tried again.
//   - A transaction that ended inside fn, as the server rolled it back and fn went on all the same,
//     is an error; what fn did since is rolled back.
//   - [ErrOutcomeUnknown]: the COMMIT was sent, but no answer came.
//
// A process that is cut off holds nothing for longer than about a lease, neither takeovers nor the
// rows that fn has locked: Transact lowers the session's wait_timeout to a lease, and gives the
// session back as it was found. The server ends a session that is idle for longer, and rolls back.
// On Vitess, which ignores that, it is the tablets' transaction timeout, 30 s by default.
//
// On Vitess a guarded transaction writes to the shard that has the election's rows alone: what
// would write to another one fails, and so does the whole call. (Transact sets the session's
// transaction_mode to 'single' for that time.) Without the driver's interpolateParams vtgate may
// ask another shard about a SELECT that is prepared, and then refuses the transaction, too. What a
// START TRANSACTION of fn commits there is not reported, as a savepoint outlives it.
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
	defer func() { s.restore(committed) }()
	if err := fn(ctx, s.tx); err != nil {
		if passed := l.hasPassed(ctx, db, token, err); passed != nil {
			return wrap(op, l.election, fmt.Errorf("%w: %w", passed, err), db)
		}
		return err
	}
	if err := s.commit(ctx, db, token); err != nil {
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

	// timeout bounds each statement that Transact itself sends: a lease, as by then somebody else
	// may lead.
	timeout time.Duration

	transactionMode string // vtgate's as found; "" elsewhere
}

// beginGuarded takes a session and begins a transaction in it. Autocommit is off meanwhile: if the
// server ends the transaction on its own and fn goes on, what follows is another open transaction,
// not one committed statement after the other.
func (l *Lock) beginGuarded(ctx context.Context, db *sql.DB, opts *sql.TxOptions) (*guardedSession, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	s := &guardedSession{lock: l, conn: conn, timeout: l.term.leaseDuration()}
	if err := s.begin(ctx, opts); err != nil {
		if s.tx != nil {
			s.restore(false)
		} else {
			discard(s.conn)
		}
		return nil, err
	}
	return s, nil
}

func (s *guardedSession) begin(ctx context.Context, opts *sql.TxOptions) error {
	bounded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err := s.conn.Raw(func(c any) error {
		if tracked, ok := c.(*preparedConn); ok {
			tracked.operating, tracked.guarded = true, true
		}
		return nil
	})
	if err != nil {
		return err
	}
	if _, on := s.lock.term.fence(); on.isSharded() {
		if err := s.keepToOneShard(bounded); err != nil {
			return err
		}
	}
	seconds := max(1, int64((s.timeout+time.Second-1)/time.Second))
	if _, err := s.conn.ExecContext(bounded, fmt.Sprintf(borrowSQL, seconds)); err != nil {
		return err
	}
	// The context of BeginTx is the transaction's for its whole life; bounded only while it begins.
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
	_, err = tx.ExecContext(bounded, savepointSQL)
	return err
}

// keepToOneShard makes vtgate refuse writes of the transaction to another shard than those before:
// shards commit one after the other, and the guard's lock ends with its own shard's commit. The
// guard is a write, so that it counts.
func (s *guardedSession) keepToOneShard(ctx context.Context) error {
	if err := s.conn.QueryRowContext(ctx, transactionModeSQL).Scan(&s.transactionMode); err != nil {
		return err
	}
	_, err := s.conn.ExecContext(ctx, `SET SESSION transaction_mode = 'single'`)
	return err
}

// commit commits if the term is still the one with that token. Between guard and commit nobody can
// begin another: the guard's lock lasts until the transaction has ended.
func (s *guardedSession) commit(ctx context.Context, db *sql.DB, token int64) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, err := s.tx.ExecContext(ctx, releaseSavepointSQL)
	switch {
	case number(err) == errNoSavepoint:
		return fmt.Errorf("the transaction ended before the function did: either the server rolled it back after an error that the function did not return (a deadlock, 1213, or 1020), "+
			"or a statement such as DDL or LOCK TABLES committed it, unguarded; what followed was rolled back: %w", err)
	case errors.Is(err, sql.ErrTxDone):
		return fmt.Errorf("the function itself called Commit or Rollback; leave that to Transact (what a pool that is not of Open committed is unguarded): %w", err)
	case isLost(err):
		if passed := s.lock.hasPassed(ctx, db, token, err); passed != nil {
			return passed
		}
		return fmt.Errorf("the session ended before the function did, and nothing was committed: the function paused for longer than a lease, or the server or the network failed: %s", publicText(err))
	case err != nil:
		return err
	}
	if s.lock.term.current() != token {
		return fmt.Errorf("%w: the term ended meanwhile", ErrNotLeader)
	}
	// From here on this session holds takeovers off. Should the process be cut off now, the server
	// drops the session after about a lease: wait_timeout.
	if err := s.lock.guard(ctx, s.tx, token); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // or it would be unknown whether a COMMIT that is never sent has committed
	}
	// Not tx.Commit, which takes no context: without an answer it would wait for ever.
	_, err = s.tx.ExecContext(ctx, `COMMIT`)
	if err != nil && !wasRefused(err) {
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return err
}

// wasRefused reports whether a failed COMMIT certainly committed nothing: it was not sent, or the
// server answered that it rolled back.
func wasRefused(err error) bool {
	switch number(err) {
	case errDeadlock, errRecordChanged, errWriteConflict, errLockWaitTimeout, errRolledBack:
		return true
	}
	return isReadOnly(err) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrTxDone)
}

// restore rolls back what was not committed and gives the session back as it was found, or discards
// it.
func (s *guardedSession) restore(committed bool) {
	// Also when the caller's context has ended.
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	var err error
	if !committed {
		err = s.sendLast(ctx, `ROLLBACK`)
	}
	if err == nil {
		// Only after the rollback: turning autocommit on commits.
		err = s.sendLast(ctx, giveBackSQL)
	}
	if err == nil && s.transactionMode != "" {
		err = s.sendLast(ctx, `SET SESSION transaction_mode = '`+s.transactionMode+`'`)
	}
	// Rollback tells database/sql that the transaction is over. It takes no context, so that a
	// network that fails right here must not keep the caller.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.tx.Rollback() // of nothing, by now
		s.cancelTx()
		if err != nil {
			discard(s.conn)
			return
		}
		_ = s.conn.Close() // back to the pool
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// sendLast sends a statement to the session whether or not the transaction is over for
// database/sql. While it is not, a sql.Conn must not be used: it waits for the transaction if the
// session turns out to be broken.
func (s *guardedSession) sendLast(ctx context.Context, statement string) error {
	_, err := s.tx.ExecContext(ctx, statement)
	if errors.Is(err, sql.ErrTxDone) {
		_, err = s.conn.ExecContext(ctx, statement)
	}
	return err
}
