package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// This file is about locks that share their pool with an application, which leaves its mark on
// sessions.

// A fault is what the application did to one session before it gave that back.
type fault struct {
	name       string
	statements []string // {id} is the session's, {other} another database
	// isTransaction: MySQL lets a session be rid of it, so that it may stay.
	isTransaction bool
	// isUse: before the first poll it is what the pool's owner meant, and later it does no harm, as
	// each statement names the database.
	isUse bool
}

var faults = []fault{
	{name: "BEGIN", statements: []string{`BEGIN`}, isTransaction: true},
	{name: "BEGIN at SERIALIZABLE", statements: []string{`SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE`, `BEGIN`}, isTransaction: true},
	{name: "COMMIT under CHAIN", statements: []string{`SET completion_type = 'CHAIN'`, `BEGIN`, `COMMIT`}, isTransaction: true},
	{name: "XA START", statements: []string{`XA START 'mysqllock {id}'`}, isTransaction: true},
	{name: "USE", statements: []string{`USE {other}`}, isUse: true},
	{name: "LOCK TABLES", statements: []string{`LOCK TABLES ledger READ`}},
	{name: "autocommit off", statements: []string{`SET autocommit = 0`}},
}

// spoil makes a session unfit and returns its id.
func (f fault) spoil(t testing.TB, session *sql.Conn, other string) (id int64) {
	t.Helper()
	if err := session.QueryRowContext(t.Context(), `SELECT CONNECTION_ID()`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	for _, statement := range f.statements {
		statement = strings.NewReplacer("{id}", fmt.Sprint(id), "{other}", other).Replace(statement)
		if _, err := session.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	return id
}

// isIn reports whether a session is still there, and as unfit as it was.
func (f fault) isIn(t testing.TB, admin *sql.DB, id int64) bool {
	t.Helper()
	if f.isUse || countSessions(t, admin, `ID = ?`, id) == 0 {
		return false
	}
	if server.MariaDB() || !f.isTransaction {
		return true
	}
	var open int
	err := admin.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM performance_schema.events_transactions_current JOIN performance_schema.threads USING (THREAD_ID)`+
		` WHERE PROCESSLIST_ID = ? AND STATE = 'ACTIVE' AND AUTOCOMMIT = 'NO'`, id).Scan(&open)
	if err != nil {
		t.Fatal(err)
	}
	return open > 0
}

// otherDatabase is one with tables of the same names, as each has that a fleet of applications
// uses.
func otherDatabase(t testing.TB) string {
	t.Helper()
	_, config := newTables(t)
	return config.DBName
}

// openOne is a user's own pool with one connection, so that what a test sets in its session stays
// set.
func openOne(t testing.TB, config *mysql.Config, parameters string) *sql.DB {
	t.Helper()
	db := openDSN(t, config, parameters)
	db.SetMaxOpenConns(1)
	return db
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

// snapshot is what another session sees in the two tables.
func snapshot(t testing.TB, db *sql.DB) []string {
	t.Helper()
	var all []string
	for _, query := range []string{
		`SELECT CONCAT_WS('|', HEX(election_name), HEX(leader_name), last_update, leader_uid, lease_duration_seconds,` +
			` acquire_time, renew_time, leader_transitions, strategy, HEX(preferred_holder), server, version) FROM election_records ORDER BY 1`,
		`SELECT CONCAT_WS('|', HEX(election_name), fencing_token, leader_uid) FROM election_fences ORDER BY 1`,
	} {
		rows, err := db.QueryContext(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }() // rows.Err tells
		for rows.Next() {
			var row string
			if err := rows.Scan(&row); err != nil {
				t.Fatal(err)
			}
			all = append(all, row)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// mustRefuse makes a call that must fail with words about the session, and must write nothing that
// another session sees.
func mustRefuse(t testing.TB, admin *sql.DB, what, why string, call func() error) {
	t.Helper()
	before := snapshot(t, admin)
	err := call()
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("%s: error %v, want one that says: %s", what, err, why)
	}
	if apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		t.Errorf("%s: error %v, which the elector takes for the election's state", what, err)
	}
	if diff := cmp.Diff(before, snapshot(t, admin)); diff != "" {
		t.Errorf("%s wrote:\n%s", what, diff)
	}
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

// liveThrough is the life of an election of ASCII names: each operation, each outcome.
func liveThrough(t testing.TB, a, b *mysqllock.Lock) (outcomes []string) {
	t.Helper()
	outcome := func(what string, err error) {
		switch {
		case err == nil:
			what += ": ok"
		case apierrors.IsNotFound(err):
			what += ": not found"
		case apierrors.IsAlreadyExists(err):
			what += ": already exists"
		case apierrors.IsConflict(err):
			what += ": conflict"
		default:
			// Versions and uids differ from run to run; nothing else may.
			what += ": " + strings.NewReplacer(a.Identity(), "<a>", b.Identity(), "<b>").Replace(err.Error())
		}
		outcomes = append(outcomes, what)
	}
	seen := func(what string, lock *mysqllock.Lock) {
		r, _, err := lock.Get(t.Context())
		if err == nil {
			what += fmt.Sprintf(" sees %q", strings.NewReplacer(a.Identity(), "<a>", b.Identity(), "<b>").Replace(r.HolderIdentity))
		}
		outcome(what, err)
	}
	ra, rb := record(a.Identity()), record(b.Identity())
	seen("a", a)
	outcome("a creates", a.Create(t.Context(), ra))
	outcome("b creates", b.Create(t.Context(), rb))
	outcome("a renews", a.Update(t.Context(), ra))
	outcome("a renews with the same values", a.Update(t.Context(), ra))
	outcome("b updates blindly", b.Update(t.Context(), rb))
	seen("b", b)
	outcome("a renews", a.Update(t.Context(), ra))
	outcome("b takes over too late", b.Update(t.Context(), rb))
	seen("b", b)
	outcome("b takes over", b.Update(t.Context(), rb))
	outcome("a renews too late", a.Update(t.Context(), ra))
	outcome("a releases too late", a.Update(t.Context(), recordFor("", 1)))
	seen("a", a)
	outcome("b renews", b.Update(t.Context(), rb))
	outcome("b releases", b.Update(t.Context(), recordFor("", 1)))
	seen("a", a)
	outcome("a takes over", a.Update(t.Context(), ra))
	outcome("a releases", a.Update(t.Context(), recordFor("", 1)))
	seen("b", b)
	return outcomes
}

// lifeOfAnElection are the outcomes of liveThrough.
var lifeOfAnElection = []string{
	"a: not found",
	"a creates: ok",
	"b creates: already exists",
	"a renews: ok",
	"a renews with the same values: ok",
	`b updates blindly: mysqllock: update "e": no row was observed yet; call Get or Create first`,
	`b sees "<a>": ok`,
	"a renews: ok",
	"b takes over too late: conflict",
	`b sees "<a>": ok`,
	"b takes over: ok",
	"a renews too late: conflict",
	`a releases too late: mysqllock: update "e": not released, as this candidate does not hold the election: it is held by "<b>"`,
	`a sees "<b>": ok`,
	"b renews: ok",
	"b releases: ok",
	`a sees "": ok`,
	"a takes over: ok",
	"a releases: ok",
	`b sees "": ok`,
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
