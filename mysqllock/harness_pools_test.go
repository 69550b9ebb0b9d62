package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"

	"github.com/go-sql-driver/mysql"
)

// Pools that a user may have made, and that a test can watch or spoil.

// pools are the two kinds of pools that a lock may be given.
var pools = map[string]func(testing.TB, *mysql.Config) *sql.DB{
	"Open":      open,
	"plain DSN": func(t testing.TB, c *mysql.Config) *sql.DB { return openDSN(t, c, "") },
}

// openOne is a user's own pool with one connection, so that what a test sets in its session stays
// set.
func openOne(t testing.TB, config *mysql.Config, parameters string) *sql.DB {
	t.Helper()
	db := openDSN(t, config, parameters)
	db.SetMaxOpenConns(1)
	return db
}

// openOnlyOne is a pool of Open with one connection.
func openOnlyOne(t testing.TB, config *mysql.Config) *sql.DB {
	t.Helper()
	db := open(t, config)
	db.SetMaxOpenConns(1)
	return db
}

// openForMany is a pool like Open's that gives each of n goroutines a connection at once, whose
// statements wait for a lock as long as it takes.
func openForMany(t testing.TB, config *mysql.Config, n int) *sql.DB {
	t.Helper()
	config = config.Clone()
	params := map[string]string{"innodb_lock_wait_timeout": "120"}
	maps.Copy(params, config.Params)
	config.Params = params
	db := open(t, config)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db
}

// connectorOf makes sessions like those of openDSN.
func connectorOf(t testing.TB, config *mysql.Config, parameters string) driver.Connector {
	t.Helper()
	config, err := mysql.ParseDSN(fmt.Sprintf("%s:%s@tcp(%s)/%s?%s", config.User, config.Passwd, config.Addr, config.DBName, parameters))
	if err != nil {
		t.Fatal(err)
	}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	return connector
}

// ownAndOpened are the two kinds of pool that a Lock may have: one with the driver's defaults, and
// one of Open.
var ownAndOpened = []struct {
	name string
	open func(testing.TB, *mysql.Config) *sql.DB
}{
	{"a pool of one's own", func(t testing.TB, config *mysql.Config) *sql.DB { t.Helper(); return openDSN(t, config, "") }},
	{"a pool of Open", open},
}

// otherDatabase is one with tables of the same names, as each has that a fleet of applications
// uses.
func otherDatabase(t testing.TB) string {
	t.Helper()
	_, config := newTables(t)
	return config.DBName
}

// spoilable makes sessions like those of openDSN, and, once spoilt, with a SET more.
type spoilable struct {
	driver.Connector
	set atomic.Pointer[string]
}

func (c *spoilable) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if set := c.set.Load(); set != nil && err == nil {
		_, err = conn.(driver.ExecerContext).ExecContext(ctx, *set, nil)
	}
	return conn, err
}

// openSpoilable is openOne, and how to make this session and all that follow unfit, and fit again.
func openSpoilable(t testing.TB, config *mysql.Config, parameters string) (db *sql.DB, spoil func(set string), heal func(set string)) {
	t.Helper()
	c := &spoilable{Connector: connectorOf(t, config, parameters)}
	db = sql.OpenDB(c)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return db, func(set string) {
			t.Helper()
			exec(t, db, set)
			c.set.Store(&set)
		}, func(set string) {
			t.Helper()
			c.set.Store(nil)
			exec(t, db, set)
		}
}

// hookedPool is a pool with Open's interpolation and an ear: before is called with each statement,
// and an error that it returns is the statement's.
func hookedPool(t testing.TB, config *mysql.Config, before func(query string, args []driver.NamedValue) error) *sql.DB {
	t.Helper()
	config = config.Clone()
	config.InterpolateParams = true
	connector, err := mysql.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(hookedConnector{connector, before})
	t.Cleanup(func() { _ = db.Close() })
	return db
}

type hookedConnector struct {
	driver.Connector
	before func(string, []driver.NamedValue) error
}

func (c hookedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return hookedConn{conn.(driversConn), c.before}, nil
}

// driversConn is what database/sql uses of a connection of the driver.
type driversConn interface {
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

type hookedConn struct {
	driversConn
	before func(string, []driver.NamedValue) error
}

func (c hookedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.before(query, args); err != nil {
		return nil, err
	}
	return c.driversConn.ExecContext(ctx, query, args)
}

func (c hookedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.before(query, args); err != nil {
		return nil, err
	}
	return c.driversConn.QueryContext(ctx, query, args)
}
