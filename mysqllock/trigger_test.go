package mysqllock_test

import (
	"database/sql"
	"fmt"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Triggers are an auditor's, or those by which a tool changes a table under traffic. They may make
// the server leave the insert id out of its reply, or put that of the audit's row there.
func TestTriggersOnTheTablesChangeNothingForTheLock(t *testing.T) {
	for _, moment := range []string{"BEFORE", "AFTER"} {
		for _, body := range []string{`INSERT INTO audit (entry) VALUES ('written')`, `SET @written = 1`} {
			for _, tables := range [][]string{{"election_records"}, {"election_fences"}, {"election_records", "election_fences"}} {
				t.Run(fmt.Sprintf("%s, %s, on %v", moment, body, tables), func(t *testing.T) {
					t.Parallel()
					admin, config := newTables(t)
					exec(t, admin, `CREATE TABLE audit (id BIGINT AUTO_INCREMENT PRIMARY KEY, entry VARCHAR(60) NOT NULL) ENGINE=InnoDB`)
					for _, table := range tables {
						for _, event := range []string{"INSERT", "UPDATE"} {
							exec(t, admin, fmt.Sprintf(`CREATE TRIGGER %s_%s %s %s ON %s FOR EACH ROW %s`, table, event, moment, event, table, body))
						}
					}
					for _, pool := range ownAndOpened {
						t.Run(pool.name, func(t *testing.T) { testTermsWithTriggers(t, admin, pool.open(t, config), pool.name) })
					}
					var audited int
					if err := admin.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM audit`).Scan(&audited); err != nil {
						t.Fatal(err)
					}
					if wanted := body[0] == 'I'; wanted != (audited > 0) {
						t.Errorf("the triggers wrote %d entries", audited)
					}
				})
			}
		}
	}
}

// testTermsWithTriggers leads through three terms of two candidates.
func testTermsWithTriggers(t *testing.T, admin, db *sql.DB, election string) {
	t.Helper()
	first, second := newLock(t, db, election, "a"), newLock(t, db, election, "b")
	largest := int64(0)
	begun := func(what string, lock *mysqllock.Lock) {
		t.Helper()
		token, held := lock.FencingToken()
		if stored, uid := storedFence(t, admin, election); !held || token <= largest || token != stored || uid == "" {
			t.Errorf("%s: token %d (held: %t) after %d; the table has %d of %q", what, token, held, largest, stored, uid)
		}
		if holder := holderOf(t, admin, election); holder != lock.Identity() {
			t.Errorf("%s: held by %q", what, holder)
		}
		largest = token
	}
	renewed := func(lock *mysqllock.Lock) {
		t.Helper()
		before := versionOf(t, admin, election)
		mustSucceed(t, "renewal", update(t.Context(), lock, record(lock.Identity())))
		if token, held := lock.FencingToken(); !held || token != largest {
			t.Errorf("after a renewal the token is %d (held: %t), not %d", token, held, largest)
		}
		if versionOf(t, admin, election) <= before {
			t.Error("a renewal did not change the version")
		}
	}
	takeOver(t, first)
	begun("Create", first)
	renewed(first)
	renewed(first)

	takeOver(t, second)
	begun("takeover", second)
	if err := first.Update(t.Context(), record("a")); !apierrors.IsConflict(err) {
		t.Errorf("the deposed leader's renewal: %v", err)
	}
	renewed(second)

	mustSucceed(t, "release", update(t.Context(), second, recordFor("", 1)))
	if holder := holderOf(t, admin, election); holder != "" {
		t.Errorf("released, and held by %q", holder)
	}
	takeOver(t, first)
	begun("takeover of a released election", first)
	renewed(first)
}
