package mysqllock

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync"
)

// maxPrepared bounds what one connection keeps prepared: a server allows 16,382
// statements in all (max_prepared_stmt_count). An application has one poll for
// each database of WithDatabase, with and without WithServerClock, and another
// of each if some names are beyond ASCII.
const maxPrepared = 4

// pollTexts has the text of each Lock's poll.
var pollTexts sync.Map

// driverConn is what the driver's connection can do.
type driverConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// preparedConn is a connection that keeps the polls that it was asked for
// prepared, until it ends: a follower sends the same statement every few seconds,
// and its text is most of what it costs the server. Where the server refuses, or
// a proxy before it that knows no prepared statements, or that has forgotten one,
// the text is sent after all: a poll changes nothing and locks nothing, so that
// it may be sent twice.
type preparedConn struct {
	driverConn

	polls   map[string]driver.StmtQueryContext // by their text
	refused bool                               // texts only, from now on
}

func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.queryPrepared(ctx, query, args)
	refused := number(err) != 0
	if !refused && !errors.Is(err, driver.ErrSkip) {
		return rows, err
	}
	rows, err = c.driverConn.QueryContext(ctx, query, args)
	if refused && err == nil {
		c.refused = true // for it was not the statement's fault
	}
	return rows, err
}

// queryPrepared fails with driver.ErrSkip, and has sent nothing, if the query is
// none to prepare.
func (c *preparedConn) queryPrepared(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if c.refused {
		return nil, driver.ErrSkip
	}
	poll, ok := c.polls[query]
	if !ok {
		if _, ok := pollTexts.Load(query); !ok || len(c.polls) == maxPrepared {
			return nil, driver.ErrSkip
		}
		stmt, err := c.PrepareContext(ctx, query)
		if err != nil {
			return nil, err
		}
		if poll, ok = stmt.(driver.StmtQueryContext); !ok {
			return nil, driver.ErrSkip
		}
		if c.polls == nil {
			c.polls = map[string]driver.StmtQueryContext{}
		}
		c.polls[query] = poll
	}
	return poll.QueryContext(ctx, args)
}
