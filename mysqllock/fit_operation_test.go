package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// Whatever the operation, it is done at once, in another session, and another
// session sees it.
func TestAnOperationThatMeetsAnUnfitSessionIsDoneInAnother(t *testing.T) {
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
				// MySQL doesn't say what it rolled back, and the driver, with rejectReadOnly,
				// not why it gave a session up.
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
func TestAPoolOfUnfitSessionsOnlyIsAnErrorAfterThree(t *testing.T) {
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
