package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// This file is about sessions that are unfit for an operation: they are discarded, and an error if
// all are.

// Whatever the operation, it is done at once, in another session, and another session sees it.
func TestSessionThatIsUnfitIsDiscardedAndTheOperationDoneInAnother(t *testing.T) {
	admin, config := newTables(t)
	newLedger(t, config)
	other := otherDatabase(t)
	readOnly := fault{name: "READ ONLY", statements: []string{`SET SESSION TRANSACTION READ ONLY`}}
	for _, f := range append(slices.Clone(faults), readOnly) {
		for _, pool := range ownAndOpened {
			t.Run(f.name+", "+pool.name, func(t *testing.T) {
				db := newSharedPool(pool.open(t, config), 1)
				election := f.name + pool.name
				lock, rival := newLock(t, db.DB, election, "a"), newLock(t, admin, election, "b")
				logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
				ctx := klog.NewContext(t.Context(), logger)
				poll := func() error {
					_, _, err := lock.Get(ctx)
					if apierrors.IsNotFound(err) {
						return nil
					}
					return err
				}
				for i, step := range []struct {
					what, holder string // afterwards
					call         func() error
				}{
					{"poll", "", poll},
					{"Create", "a", create(ctx, lock, record("a"))},
					{"renewal", "a", update(ctx, lock, record("a"))},
					{"renewal", "a", update(ctx, lock, record("a"))},
					{"poll", "b", func() error { takeOver(t, rival); return poll() }},
					{"takeover", "a", update(ctx, lock, record("a"))},
					{"release", "", update(ctx, lock, recordFor("", 1))},
				} {
					if i == 0 && f.isUse {
						mustSucceed(t, "the first poll", poll)
					}
					if n := len(db.unfit); n == 0 || !f.isIn(t, admin, db.unfit[n-1]) { // as a poll may leave it
						db.spoil(t, f, other)
					}
					mustSucceed(t, step.what, step.call)
					holder := table(t, admin, `SELECT leader_name FROM election_records WHERE election_name = ?`, election)
					if holder != step.holder {
						t.Errorf("after the %s the election is held by %q, not by %q", step.what, holder, step.holder)
					}
					if step.what != "poll" {
						isGone := func() bool {
							return !slices.ContainsFunc(db.unfit, func(id int64) bool { return f.isIn(t, admin, id) })
						}
						eventually(t, 10*time.Second, "the session was given up by the "+step.what, isGone)
					}
				}
				lines := logger.GetSink().(ktesting.Underlier).GetBuffer().Data()
				// MySQL doesn't say what it rolled back, and the driver, with rejectReadOnly, not
				// why it gave a session up.
				silent := f.isUse || f.isTransaction && !server.MariaDB() || f.name == readOnly.name
				if n := len(lines); n > 1 || n == 0 && !silent {
					t.Errorf("logged %d times, want once: %v", n, lines)
				}
			})
		}
	}
}

// unfitConnector makes sessions that are all unfit.
type unfitConnector struct {
	driver.Connector
	statement string
	made      atomic.Int64
}

func (c *unfitConnector) Connect(ctx context.Context) (driver.Conn, error) {
	c.made.Add(1)
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	_, err = conn.(driver.ExecerContext).ExecContext(ctx, c.statement, nil)
	return conn, err
}

// As with init_connect: no other session is better, and nobody may try for ever.
func TestSessionsThatAreAllUnfitAreAnErrorAfterThree(t *testing.T) {
	admin, config := newTables(t)
	newLedger(t, config)
	leader := newLock(t, admin, "e", "leader")
	takeOver(t, leader)
	for statement, why := range map[string]string{
		`SET autocommit = 0`:                "autocommit",
		`LOCK TABLES ledger READ`:           "1100",
		`SET SESSION TRANSACTION READ ONLY`: "1792",
	} {
		t.Run(statement, func(t *testing.T) {
			connector := &unfitConnector{Connector: connectorOf(t, config, ""), statement: statement}
			db := sql.OpenDB(connector)
			t.Cleanup(func() { _ = db.Close() })
			lock := newLock(t, db, "e", "a")
			_ = get(t.Context(), lock)() // fails as well, unless it is a read-only session
			before := connector.made.Load()
			mustRefuse(t, admin, "Create", why, create(t.Context(), lock, record("a")))
			if n := connector.made.Load() - before; n > 3 {
				t.Errorf("%d sessions for one operation", n)
			}
		})
	}
}

// oddOneOut makes the sessions of a pool; one of them is unfit.
type oddOneOut struct {
	driver.Connector // of good sessions
	unfit            driver.Connector
	odd              int64
	made             atomic.Int64
}

func (c *oddOneOut) Connect(ctx context.Context) (driver.Conn, error) {
	if c.made.Add(1) == c.odd {
		return c.unfit.Connect(ctx)
	}
	return c.Connector.Connect(ctx)
}

// Sessions of one pool may differ, as after a SET by another user of the pool: whichever of its
// statements an operation would have sent to the unfit one, it is done in another.
func TestSessionOfAnOperationIsFitWhicheverIsUnfit(t *testing.T) {
	admin, config := newTables(t)
	for parameters, election := range map[string]string{"autocommit=0": "e", "charset=latin1": "é"} {
		t.Run(parameters, func(t *testing.T) {
			good, unfit := connectorOf(t, config, ""), connectorOf(t, config, parameters)
			met := 0
			for n := range int64(12) {
				election := fmt.Sprint(election, n)
				sessions := &oddOneOut{Connector: good, unfit: unfit, odd: n + 1}
				pool := sql.OpenDB(sessions)
				pool.SetMaxIdleConns(-1) // a session for each operation
				lock, other := newLock(t, pool, election, "a"), newLock(t, admin, election, "b")
				for _, step := range []struct {
					call   func() error
					holder string
				}{
					{create(t.Context(), lock, record("a")), "a"},
					{update(t.Context(), lock, record("a")), "a"},
					{func() error {
						return errors.Join(get(t.Context(), other)(), update(t.Context(), other, record("b"))())
					}, "b"},
					{get(t.Context(), lock), "b"},
					{update(t.Context(), lock, record("a")), "a"},
					{update(t.Context(), lock, record("a")), "a"},
					{update(t.Context(), lock, recordFor("", 1)), ""},
				} {
					mustSucceed(t, fmt.Sprint("with session ", n, " unfit"), step.call)
					if holder := holderOf(t, admin, election); holder != step.holder {
						t.Fatalf("session %d: done, but it is held by %q, not by %q", n, holder, step.holder)
					}
				}
				if sessions.made.Load() >= sessions.odd {
					met++
				}
				mustSucceed(t, "Close", pool.Close)
			}
			if met < 6 {
				t.Errorf("only %d sessions were met", met)
			}
		})
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

// With autocommit off every write is "done", and gone when the session ends.
func TestSessionWithAutocommitOffIsRefusedAndWritesNothing(t *testing.T) {
	for _, parameters := range []string{"", "interpolateParams=true", "clientFoundRows=true"} {
		t.Run(parameters, func(t *testing.T) {
			admin, config := newTables(t)
			t.Run("by the DSN", func(t *testing.T) {
				lock := newLock(t, openDSN(t, config, parameters+"&autocommit=0"), "new", "a")
				want := `mysqllock: get "new": the session has autocommit off, so that no write would ever be committed; ` +
					`remove autocommit=0 from the DSN, the server's configuration or init_connect`
				mustRefuse(t, admin, "Get", want, get(t.Context(), lock))
				mustRefuse(t, admin, "Create", "autocommit", create(t.Context(), lock, record("a")))
				mustRefuse(t, admin, "Create of a released election", "autocommit", create(t.Context(), lock, recordFor("", 1)))
			})
			t.Run("by SET, before a takeover", func(t *testing.T) {
				db, spoil, heal := openSpoilable(t, config, parameters)
				leader, standby := newLock(t, admin, "takeover", "a"), newLock(t, db, "takeover", "b")
				mustSucceed(t, "Create", create(t.Context(), leader, record("a")))
				mustSucceed(t, "Get", get(t.Context(), standby))
				spoil(`SET SESSION autocommit = 0`)
				mustRefuse(t, admin, "Get", "autocommit", get(t.Context(), standby))
				mustRefuse(t, admin, "Update", "autocommit", update(t.Context(), standby, record("b")))
				// What the refused sessions did must hold nobody up.
				third := newLock(t, admin, "takeover", "c")
				mustSucceed(t, "a renewal", update(t.Context(), leader, record("a")))
				mustSucceed(t, "Get", get(t.Context(), third))
				mustSucceed(t, "a takeover", update(t.Context(), third, record("c")))
				heal(`SET SESSION autocommit = 1`)
				mustSucceed(t, "Get", get(t.Context(), standby))
				mustSucceed(t, "Update", update(t.Context(), standby, record("b")))
			})
			t.Run("by SET, in a term", func(t *testing.T) {
				db, spoil, heal := openSpoilable(t, config, parameters)
				lock := newLock(t, db, "term", "a")
				mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
				spoil(`SET SESSION autocommit = 0`)
				mustRefuse(t, admin, "renewal", "autocommit", update(t.Context(), lock, record("a")))
				mustRefuse(t, admin, "release", "autocommit", update(t.Context(), lock, recordFor("", 1)))
				heal(`SET SESSION autocommit = 1`)
				mustSucceed(t, "Get", get(t.Context(), lock))
				mustSucceed(t, "Update", update(t.Context(), lock, record("a")))
			})
		})
	}
}

// In another character set a name is another one: Get would find nothing, and Create succeed.
func TestSessionWithAnotherCharacterSetRefusesANonASCIIName(t *testing.T) {
	admin, config := newTables(t)
	for _, name := range []struct{ election, identity string }{{"élection", "a"}, {"e", "é"}, {"日本", "日本"}, {"🦭", "a"}} {
		t.Run(name.election+" "+name.identity, func(t *testing.T) {
			t.Run("by the DSN", func(t *testing.T) {
				lock := newLock(t, openDSN(t, config, "charset=latin1"), name.election, name.identity)
				want := `mysqllock: get "` + name.election + `": the session's character set is latin1, in which the election's name`
				mustRefuse(t, admin, "Get", want, get(t.Context(), lock))
				mustRefuse(t, admin, "Create", "character set", create(t.Context(), lock, record(name.identity)))
				mustRefuse(t, admin, "Create of a released election", "character set", create(t.Context(), lock, recordFor("", 1)))
			})
			for _, set := range []string{
				"NAMES latin1", "NAMES utf8", "NAMES gbk", "NAMES binary", "CHARACTER SET latin1",
				"character_set_connection = latin1", "character_set_client = latin1", "character_set_results = latin1",
			} {
				t.Run("by SET "+set, func(t *testing.T) {
					db, spoil, heal := openSpoilable(t, config, "interpolateParams=true")
					defer exec(t, admin, `DELETE FROM election_records`)
					leader := newLock(t, db, name.election, name.identity)
					mustSucceed(t, "Create", create(t.Context(), leader, record(name.identity)))
					standby := newLock(t, db, name.election, name.identity+" 2")
					mustSucceed(t, "Get", get(t.Context(), standby))

					spoil(`SET ` + set)
					mustRefuse(t, admin, "Get", "character set", get(t.Context(), standby))
					if set != "character_set_results = latin1" { // in which a write reads nothing
						mustRefuse(t, admin, "renewal", "character set", update(t.Context(), leader, record(name.identity)))
						mustRefuse(t, admin, "takeover", "character set", update(t.Context(), standby, record(name.identity+" 2")))
						mustRefuse(t, admin, "release", "character set", update(t.Context(), leader, recordFor("", 1)))
					}
					heal(`SET NAMES utf8mb4`)
					mustSucceed(t, "Get", get(t.Context(), leader))
					mustSucceed(t, "Update", update(t.Context(), leader, record(name.identity)))
				})
			}
		})
	}
}

// A session's sql_select_limit cuts what has no limit of its own, without a word.
func TestSessionWithASelectLimitLosesNothing(t *testing.T) {
	for _, parameters := range []string{"sql_select_limit=1", "sql_select_limit=3&interpolateParams=true"} {
		t.Run(parameters, func(t *testing.T) {
			admin, config := newTables(t)
			const n = 8
			for i := range n {
				hold(t, admin, fmt.Sprint("e", i), "leader")
			}
			db := openDSN(t, newAccount(t, config, ordinary...), parameters)
			mustSucceed(t, "Migrate of current tables", func() error { return mysqllock.Migrate(t.Context(), db) })
			all, err := mysqllock.ListElections(t.Context(), db)
			if err != nil || len(all) != n {
				t.Errorf("ListElections returned %d of %d (%v)", len(all), n, err)
			}
			batch := &mysqllock.Batch{}
			var polls calls
			for i := range n {
				lock := newLock(t, db, fmt.Sprint("e", i), "follower", mysqllock.WithBatch(batch))
				polls.start(func() {
					if err := get(t.Context(), lock)(); err != nil {
						t.Error(err)
					}
				})
			}
			polls.Wait()
		})
	}
}

// With a limit of 0 every table looks empty. That must not pass for an election without a row, nor
// for a table without elections.
func TestSessionThatReturnsNoRowsIsRefused(t *testing.T) {
	admin, config := newTables(t)
	hold(t, admin, "e", "leader")
	db := openDSN(t, config, "sql_select_limit=0")
	err := get(t.Context(), newLock(t, db, "e", "a"))()
	if err == nil || apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "sql_select_limit") {
		t.Errorf("Get returned %v", err)
	}
	if all, err := mysqllock.ListElections(t.Context(), db); err != nil || len(all) != 1 {
		t.Errorf("ListElections returned %v, %v", all, err)
	}
	if got := getElection(t, db, "e"); got.Holder != "leader" {
		t.Errorf("GetElection returned %+v", got)
	}
}

func TestSessionWithoutInterpolationLeaksNoPreparedStatement(t *testing.T) {
	admin, config := newTables(t)
	prepared := func() (n int) {
		var name string
		if err := admin.QueryRowContext(t.Context(), `SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'`).Scan(&name, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	db := openDSN(t, config, "")
	lock := newLock(t, db, "e", "a")
	mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
	before := prepared()
	for range 100 {
		mustSucceed(t, "Get", get(t.Context(), lock))
		mustSucceed(t, "Update", update(t.Context(), lock, record("a")))
	}
	// The server closes the last ones after it was told, which nobody waits for.
	eventually(t, 20*time.Second, "the server has no more prepared statements than before", func() bool { return prepared() <= before })
}
