package mysqllock

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"k8s.io/klog/v2"
)

// A session is fit for a lock if what it writes is committed at once, to the tables that the lock
// began with, under the names that were meant. A pool that others use as well may hand out one that
// is not: with autocommit off, with an open transaction (a BEGIN by Exec, whose COMMIT went to
// another session), with another character set or database, with locked tables, on a server that
// became read-only or left its cluster. What such a session does must not count, and it must not go
// back to the pool, which would hand it out again first.
//
// So each operation of a lock runs on one session, looks whether that is fit, and otherwise closes
// it and begins anew in another.

const (
	// stateSQL is what a session says of itself in each poll, as the bits below. MySQL takes the
	// first comment for a comment, MariaDB the second.
	stateSQL = `@@autocommit /*M! + 2 + 4 * @@in_transaction */ /*!80000 + 8 * (@@transaction_isolation = 'SERIALIZABLE') */`

	// sessionCheckSQL asks the session for its state, its character sets and its database.
	sessionCheckSQL = `SELECT ` + stateSQL + `, ` + charsetsSQL + `, CAST(DATABASE() AS BINARY)`

	// writableSession keeps a write from being "done" in a transaction that nobody commits.
	writableSession = `@@autocommit = 1 /*M! AND @@in_transaction = 0 */`

	// rollbackSQL ends an open transaction on MySQL, which has no variable that shows one. It
	// ignores completion_type, and does nothing if no transaction is open. (SET TRANSACTION fails
	// inside of a transaction and so would show one, but vtgate, TiDB and ProxySQL let it pass.)
	rollbackSQL = `ROLLBACK AND NO CHAIN NO RELEASE`

	// plainRollbackSQL is for vtgate, which knows neither completion_type nor that.
	plainRollbackSQL = `ROLLBACK`
)

// sessionState is the value of stateSQL.
type sessionState int64

const (
	stateAutocommit sessionState = 1 << iota
	stateMariaDB
	stateInTransaction // known on MariaDB only
	stateSerializable  // asked on MySQL only
)

func (s sessionState) has(bit sessionState) bool { return s&bit != 0 }

// unfit is what makes the session unfit, apart from its character set.
func (s sessionState) unfit() error {
	switch {
	case !s.has(stateAutocommit):
		return sessionError("the session has autocommit off, so that no write would ever be committed; remove autocommit=0 from the DSN, the server's configuration or init_connect")
	case s.has(stateInTransaction):
		return sessionError("the session has an open transaction, so that no write would be committed; begin transactions by BeginTx and end each, or give the lock a pool of its own")
	}
	return nil
}

// sessionError is what makes a session unfit for a lock.
type sessionError string

func (e sessionError) Error() string { return string(e) }

func charsetError(charset string) error {
	return sessionError("the session's character set is " + charset + ", in which the election's name, the identity or another name is another; set charset=utf8mb4 in the DSN")
}

// isUnfit reports whether err is about the session or its server, and the statement was not
// executed: another session may do better. driver.ErrBadConn says that nothing was sent, or, with
// rejectReadOnly, that the server is read-only.
func isUnfit(err error) bool {
	var unfit sessionError
	if errors.As(err, &unfit) || errors.Is(err, driver.ErrBadConn) || isReadOnly(err) {
		return true
	}
	switch number(err) {
	case errUnknownCommand, errShutdown, errOffline, // not in its cluster, or on its way out
		errTableReadLocked, errTableNotLocked, errReadLocked, // LOCK TABLES, FLUSH TABLES WITH READ LOCK
		errXA,
		errConnectionKilled, errSessionKilled, errIdleDisconnect:
		return true
	}
	return false
}

// maxSessions bounds how many sessions one operation tries.
const maxSessions = 3

// session is what one operation runs on: a connection, taken when it is first needed. An operation
// that a Batch does needs none.
type session struct {
	db      *sql.DB
	mariaDB bool // as far as known: its statements look for an open transaction themselves
	plain   bool // as far as known: it takes plainRollbackSQL alone
	conn    *sql.Conn
	tracked *preparedConn // conn's, in a pool of Open
	ready   bool          // no transaction is open

	tries int
	unfit error // what the last session was discarded for
}

// settle ends the use of the connection, after an operation with that outcome. It reports whether
// the operation is to be done again, as a whole, in another session: not after maxSessions, or when
// ctx has ended.
func (s *session) settle(ctx context.Context, err *error) (again bool) {
	conn := s.conn
	s.conn, s.tracked, s.ready = nil, nil, false
	if !isUnfit(*err) {
		if conn != nil {
			_ = conn.Close() // back to the pool; nothing to lose
		}
		if cause := ctx.Err(); s.unfit != nil && cause != nil && errors.Is(*err, cause) {
			*err = fmt.Errorf("%w: %w", *err, s.unfit) // what took the time
		}
		return false
	}
	if conn != nil {
		discard(conn)
	}
	s.tries++
	s.unfit = *err
	return s.tries < maxSessions && ctx.Err() == nil
}

func (s *session) connect(ctx context.Context) error {
	if s.conn != nil {
		return nil
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	s.conn = conn
	return conn.Raw(func(c any) error {
		if s.tracked, _ = c.(*preparedConn); s.tracked != nil {
			s.tracked.operating = true
		}
		return nil
	})
}

// discard closes a session in place of giving it back to its pool.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // fails if it is closed already
	_ = conn.Close()
}

// queryRow reads one row into dest: sql.ErrNoRows if there is none.
func (s *session) queryRow(ctx context.Context, q statement, dest ...any) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	return s.conn.QueryRowContext(ctx, q.text, q.args...).Scan(dest...)
}

// query calls f for each row.
func (s *session) query(ctx context.Context, q statement, f func(scanner) error) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	return each(ctx, s.conn, q.text, q.args, f)
}

// write runs a statement that may write, or lock, and returns how many rows it changed.
func (s *session) write(ctx context.Context, w statement) (int64, error) {
	if err := s.endTransaction(ctx); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	result, err := s.conn.ExecContext(ctx, w.text, w.args...)
	if err != nil {
		return 0, unanswered(err)
	}
	return result.RowsAffected()
}

// endTransaction makes sure that no transaction is open, once for each operation: nobody else uses
// the session meanwhile. It sends something only to MySQL, and, in a pool of Open, only if somebody
// other than a lock has used the connection.
func (s *session) endTransaction(ctx context.Context) error {
	if err := s.connect(ctx); err != nil || s.ready || s.mariaDB {
		return err
	}
	if s.tracked == nil || s.tracked.foreign {
		if err := s.rollback(ctx); err != nil {
			return err
		}
		if s.tracked != nil {
			s.tracked.foreign = false
		}
	}
	s.ready = true
	return nil
}

func (s *session) rollback(ctx context.Context) error {
	if !s.plain {
		_, err := s.conn.ExecContext(ctx, rollbackSQL)
		if n := number(err); n != errUnknown && n != errSyntax {
			return err
		}
		s.plain = true
	}
	_, err := s.conn.ExecContext(ctx, plainRollbackSQL)
	return err
}

// mayBeStale reports whether what was read may be the view of a transaction that somebody left
// open: its snapshot is as old as that.
func (s *session) mayBeStale() bool {
	return !s.mariaDB && !s.ready && (s.tracked == nil || s.tracked.foreign)
}

// check asks the session for its state, its character sets and its database.
func (s *session) check(ctx context.Context) (p *polled, database string, err error) {
	p = &polled{}
	var name sql.NullString
	if err := s.queryRow(ctx, statement{text: sessionCheckSQL}, &p.state, &p.charsets, &name); err != nil {
		return nil, "", err
	}
	return p, name.String, s.note(ctx, sessionState(p.state.Int64))
}

// note takes what a poll said of the session.
func (s *session) note(ctx context.Context, state sessionState) error {
	s.mariaDB = state.has(stateMariaDB)
	if err := state.unfit(); err != nil {
		return err
	}
	if state.has(stateSerializable) && s.mayBeStale() {
		// There, a poll in an open transaction locks the row that the leader renews, until that
		// transaction ends.
		return s.endTransaction(ctx)
	}
	return nil
}

// reportUnfit logs, once for each reason, that a session was discarded.
func (l *Lock) reportUnfit(ctx context.Context, why error) {
	if why == nil || errors.Is(why, driver.ErrBadConn) {
		return // a dead connection is no news
	}
	text := publicText(why)
	kind := text
	if n := number(why); n != 0 {
		kind = strconv.Itoa(int(n)) // the server's words differ with the statement
	}
	if !l.unfit.isNews(kind) {
		return
	}
	if remedy := remedy("update", why, nil); remedy != "" {
		text += "; " + remedy
	}
	klog.FromContext(ctx).Info("Closed a session of the pool that is unfit for elections", "lock", l.Describe(), "reason", text)
}

// unfitReports is what sessions were discarded for, as far as it was logged.
type unfitReports struct {
	mu     sync.Mutex
	logged map[string]bool
}

func (r *unfitReports) isNews(kind string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := !r.logged[kind]
	if r.logged == nil {
		r.logged = map[string]bool{}
	}
	r.logged[kind] = true
	return news
}
