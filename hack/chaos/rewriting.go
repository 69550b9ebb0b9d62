package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/go-sql-driver/mysql"
)

// change is what is changed in statements on their way to the server.
type change struct {
	old, changed string
	statements   int // of so many of a lock's statements, at least
}

// withoutVersion makes of the compare-and-swap of a takeover, a renewal and a release one that does not compare. A
// renewal's own uid stays: nobody else has it.
var withoutVersion = []change{
	{"COALESCE(r.version, 0) = ?", "(r.version = ? OR 1 = 1)", 3},
	{"COALESCE(HEX(r.leader_uid), LEFT('-', 0)) = ", "'-' <> ", 2},
}

// rewriting is a connector that makes changes.
type rewriting struct {
	driver.Connector
	changes []change

	mu    sync.Mutex
	found map[string]map[string]bool // the statements that had a change's text
}

// newConnector is the driver's, without its log.
func newConnector(config *mysql.Config) (driver.Connector, error) {
	config = config.Clone()
	config.Logger = &mysql.NopLogger{}
	return mysql.NewConnector(config)
}

func newRewriting(connector driver.Connector, changes []change) *rewriting {
	r := &rewriting{Connector: connector, changes: changes, found: map[string]map[string]bool{}}
	for _, c := range changes {
		r.found[c.old] = map[string]bool{}
	}
	return r
}

func (r *rewriting) rewrite(query string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	rewritten := query
	for _, c := range r.changes {
		if strings.Contains(query, c.old) {
			r.found[c.old][query] = true
			rewritten = strings.ReplaceAll(rewritten, c.old, c.changed)
		}
	}
	return rewritten
}

// complete reports the texts that are in fewer statements than they should be, as the lock has others by now.
func (r *rewriting) complete() (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.changes {
		if n := len(r.found[c.old]); n < c.statements {
			err = errors.Join(err, fmt.Errorf("%d of a lock's statements have the text %q, which is to be changed in %d", n, c.old, c.statements))
		}
	}
	return err
}

func (r *rewriting) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := r.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	c, ok := conn.(whole)
	if !ok {
		return nil, fmt.Errorf("a %T lacks methods of the driver's connections", conn)
	}
	return &rewritingConn{c, r}, nil
}

// whole is what the driver's connections are.
type whole interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.NamedValueChecker
	driver.SessionResetter
	driver.Validator
}

type rewritingConn struct {
	whole
	by *rewriting
}

func (c *rewritingConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	return c.whole.PrepareContext(ctx, c.by.rewrite(query))
}

func (c *rewritingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.whole.ExecContext(ctx, c.by.rewrite(query), args)
}

func (c *rewritingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.whole.QueryContext(ctx, c.by.rewrite(query), args)
}
