package mysqllock

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// Connections of Open, which keep polls and renewals prepared.

// maxPrepared bounds what one connection keeps prepared: a server allows 16,382 statements in all
// (max_prepared_stmt_count). An application has a poll and a renewal for each database of
// WithDatabase, with and without WithServerClock, and others if some names are non-ASCII.
const maxPrepared = 8

// keptTexts has the statements that electors send every few seconds.
var keptTexts sync.Map

// keepPrepared has the connections of Open keep that statement prepared.
func keepPrepared(text string) { keptTexts.Store(text, nil) }

// driverConn is what the driver's connection can do.
type driverConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.Execer //nolint:staticcheck // what the driver documents for sql.Conn.Raw
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.Queryer //nolint:staticcheck // as above
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// driverStmt is what the driver's prepared statement can do.
type driverStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// preparedConn is a connection that prepares the statements of keepPrepared once and keeps them
// until it ends: their text is a large part of what they cost a server. Where the server refuses
// that, or a proxy before it that knows no prepared statements, or forgets them, the text is sent
// after all. A statement may be sent twice then, which is harmless: a poll only reads, and of two
// equal compare-and-swaps the second matches no row if the first was done.
type preparedConn struct {
	driverConn

	pool *atomic.Int32         // what preparing does for all of the pool: see below
	kept map[string]driverStmt // by their text
	text bool                  // nothing is prepared any more

	// database is what the connection began with.
	database string
	// operating is set while a lock uses the connection, foreign once somebody else did, who may
	// have left a transaction open: see session.
	operating, foreign bool
	// guarded is set while a Transact does, which ends its transaction by itself: see BeginTx.
	guarded bool

	opened     time.Time
	successors *successors
}

// used notes who uses the connection.
func (c *preparedConn) used() { c.foreign = c.foreign || !c.operating }

// BeginTx sends nothing to begin the plain transaction of a Transact, which has turned autocommit
// off, so that the first statement begins one. It does where somebody may have left a transaction
// open: to begin another ends that.
func (c *preparedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	c.used()
	if !c.guarded {
		return c.driverConn.BeginTx(ctx, opts)
	}
	if c.foreign || opts != (driver.TxOptions{}) {
		if _, err := c.driverConn.BeginTx(ctx, opts); err != nil {
			return nil, err
		}
		c.foreign = false
	}
	return guardedTx{}, nil
}

// guardedTx is the driver's part of a Transact's transaction, which is told by statements when it
// ends.
type guardedTx struct{}

func (guardedTx) Commit() error {
	return errors.New("mysqllock: nothing was committed; leave that to Transact, which commits when the function has returned nil")
}
func (guardedTx) Rollback() error { return nil }

func (c *preparedConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	c.used()
	return c.driverConn.PrepareContext(ctx, query)
}

const (
	untried int32 = iota
	works
	// fails: the first try of the pool had no answer. A proxy may hang up, or say nothing, with
	// whatever it doesn't know.
	fails
)

// ResetSession is called when c is taken from the pool. If c is old and its successor is open, c
// becomes it: to database/sql it is the same connection, so that nothing has to be tried again.
func (c *preparedConn) ResetSession(ctx context.Context) error {
	if next := c.successors.of(c.opened); next != nil {
		_ = c.Close()
		*c = *next
	}
	c.operating, c.guarded = false, false
	return c.driverConn.ResetSession(ctx)
}

func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c.used()
	return send(ctx, c, query,
		func(stmt driverStmt) (driver.Rows, error) { return stmt.QueryContext(ctx, args) },
		func() (driver.Rows, error) { return c.driverConn.QueryContext(ctx, query, args) })
}

func (c *preparedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c.used()
	return send(ctx, c, query,
		func(stmt driverStmt) (driver.Result, error) { return stmt.ExecContext(ctx, args) },
		func() (driver.Result, error) { return c.driverConn.ExecContext(ctx, query, args) })
}

// send sends a statement as prepared on c, or else its text.
func send[T any](ctx context.Context, c *preparedConn, query string, prepared func(driverStmt) (T, error), text func() (T, error)) (T, error) {
	stmt, err := c.prepare(ctx, query)
	var result T
	switch {
	case err == nil:
		result, err = prepared(stmt)
		if n := number(err); n != errUnknownStatement && n != errNeedsReprepare {
			return result, err
		}
	case errors.Is(err, driver.ErrSkip):
		return text()
	case number(err) == 0 || wasInterrupted(err):
		return result, err
	}
	if result, err = text(); err == nil {
		c.text = true // for it was not the statement's fault
	}
	return result, err
}

// prepare returns the statement as prepared on c. It fails with driver.ErrSkip, and has sent
// nothing, if the statement is to be sent as text.
func (c *preparedConn) prepare(ctx context.Context, query string) (driverStmt, error) {
	if stmt, ok := c.kept[query]; ok && !c.text {
		return stmt, nil
	}
	if _, ok := keptTexts.Load(query); !ok || c.text || len(c.kept) == maxPrepared || c.pool.Load() == fails {
		return nil, driver.ErrSkip
	}
	made, err := c.driverConn.PrepareContext(ctx, query)
	if err != nil {
		if number(err) == 0 && !errors.Is(err, driver.ErrBadConn) && !errors.Is(err, context.Canceled) {
			c.pool.CompareAndSwap(untried, fails)
		}
		return nil, err
	}
	c.pool.CompareAndSwap(untried, works)
	stmt, ok := made.(driverStmt)
	if !ok {
		c.text = true
		return nil, errors.Join(driver.ErrSkip, made.Close())
	}
	if c.kept == nil {
		c.kept = map[string]driverStmt{}
	}
	c.kept[query] = stmt
	return stmt, nil
}
