package mysqllock_test

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// swallowers are beginnings of names after which the driver's backslash before a
// quote is no backslash in that character set, so that the quote ends the
// string: found out by trying.
func swallowers(t testing.TB, config *mysql.Config, charset string) (db *sql.DB, found []string) {
	t.Helper()
	db = openDSN(t, config, "interpolateParams=true&charset="+charset)
	if err := db.PingContext(t.Context()); err != nil {
		var unknown *mysql.MySQLError
		if errors.As(err, &unknown) && unknown.Number == 1115 {
			return nil, nil // MariaDB has no gb18030
		}
		t.Fatal(err)
	}
	for _, prefix := range []string{"é", "à", "你", "日", "日本", "ãあ", "é你", "\U0001f9ad", "aß"} {
		rows, err := db.QueryContext(t.Context(), `SELECT ?`, prefix+"', 1 -- ")
		if err != nil {
			continue // not even the other character set takes it
		}
		columns, err := rows.Columns()
		_ = rows.Close()
		if err != nil || rows.Err() != nil {
			t.Fatal(err, rows.Err())
		}
		if len(columns) == 2 {
			found = append(found, prefix)
		}
	}
	return db, found
}

func nop(context.Context, *sql.Tx) error { return nil }

// The driver refuses collations that make its quoting unsafe, not character sets.
func TestANameIsNeverSQLInASessionWhoseCharacterSetMakesQuotingUnsafe(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	for _, charset := range []string{"gbk", "sjis", "cp932", "big5", "gb18030"} {
		t.Run(charset, func(t *testing.T) {
			db, prefixes := swallowers(t, config, charset)
			if db == nil {
				return
			}
			if len(prefixes) == 0 {
				t.Fatal("nothing that is tried here makes quoting unsafe, so that this test shows nothing")
			}
			for _, prefix := range prefixes {
				t.Run(prefix, func(t *testing.T) { testUnsafeQuoting(t, admin, db, config, charset, prefix) })
			}
		})
	}
}

func testUnsafeQuoting(t *testing.T, admin, db *sql.DB, config *mysql.Config, charset, prefix string) {
	t.Helper()
	victim := newLock(t, admin, "victim", "victim")
	exec(t, admin, `DELETE FROM election_records`)
	mustSucceed(t, "Create", create(t.Context(), victim, record("victim")))
	number := func(s string) string { return "0x" + hex.EncodeToString([]byte(s)) } // a string without quotes
	// A poll that would show the attacker's record, and say that the session is fit.
	poll := prefix + "' WHERE 0 UNION SELECT 1, " + number("utf8mb4,utf8mb4,utf8mb4") + ", 1, 0x75, 0x61, 15, 0, 0, 0, 0x78, 0x78, NULL, NULL -- "
	// A write that would make the attacker the holder of every election.
	write := prefix + "', 1), leader_name = 0x61 WHERE 1 -- "
	for what, names := range map[string]struct{ election, identity string }{
		"the election's name": {poll + "1", "a"}, "the identity": {"2", write + "2"}, "both": {poll + "3", write + "3"},
	} {
		lock := newLock(t, db, names.election, names.identity)
		mustRefuse(t, admin, what+", Get", "the session's character set is "+charset, get(t.Context(), lock))
		mustRefuse(t, admin, what+", Create", "character set", create(t.Context(), lock, record(names.identity)))

		// A session that changes after the row was seen.
		changing := openOne(t, config, "interpolateParams=true")
		leader, standby := newLock(t, changing, names.election, names.identity), newLock(t, changing, names.election, names.identity+" 2")
		mustSucceed(t, what+", Create", create(t.Context(), leader, record(names.identity)))
		mustSucceed(t, what+", Get", get(t.Context(), standby))
		exec(t, changing, `SET NAMES `+charset)
		mustRefuse(t, admin, what+", a renewal", "character set", update(t.Context(), leader, record(names.identity)))
		mustRefuse(t, admin, what+", a takeover", "character set", update(t.Context(), standby, record(names.identity+" 2")))
		mustRefuse(t, admin, what+", a release", "character set", update(t.Context(), leader, recordFor("", 1)))
	}

	// In a record beside ASCII names.
	odd := record("a")
	odd.PreferredHolder = write + "x"
	mustRefuse(t, admin, "the preferred holder", "character set", create(t.Context(), newLock(t, db, "odd", "a"), odd))

	// A guard, which no character set can harm: it is of the leader or of nobody.
	forged := prefix + "' UNION SELECT fencing_token, leader_uid FROM election_fences WHERE 1 -- x"
	leader := newLock(t, admin, forged, "a")
	mustSucceed(t, "Create", create(t.Context(), leader, record("a")))
	guard := func() error { return leader.Transact(t.Context(), db, nil, nop) }
	mustSucceed(t, "Transact", guard)
	takeOver(t, newLock(t, admin, forged, "b"))
	if err := guard(); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("Transact of a stale leader: %v", err)
	}

	for _, database := range []string{prefix + "`", prefix + "'", prefix + `"`, prefix + `\`} {
		_, err := mysqllock.GetElection(t.Context(), db, "victim", mysqllock.WithDatabase(database))
		if err == nil || !strings.Contains(err.Error(), "beside characters beyond ASCII") {
			t.Errorf("the database %q: %v", database, err)
		}
	}
	mustSucceed(t, "a renewal", update(t.Context(), victim, record("victim")))
}

// Names beyond ASCII travel in another way than others. They must lock no more
// rows than their own, and find them by the key.
func TestAnElectionBeyondASCIILocksItsOwnRowsOnly(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	db := openDSN(t, config, "innodb_lock_wait_timeout=1")
	names := []string{"e", "é", "é2", "日本", "ß"}
	for _, held := range names {
		for _, name := range names {
			exec(t, admin, `DELETE FROM election_records`)
			exec(t, admin, `DELETE FROM election_fences`)
			for _, other := range names {
				mustSucceed(t, "Create", create(t.Context(), newLock(t, admin, other, "a"), record("a")))
			}
			if name == held {
				continue
			}
			tx, err := admin.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, table := range []string{"election_records", "election_fences"} {
				if _, err := tx.ExecContext(t.Context(), `SELECT * FROM `+table+` WHERE election_name = ? FOR UPDATE`, held); err != nil {
					t.Fatal(err)
				}
			}
			what := fmt.Sprintf("%s while %s is locked: ", name, held)
			lock := newLock(t, db, name, "b", unhurried)
			mustSucceed(t, what+"Get", get(t.Context(), lock))
			mustSucceed(t, what+"takeover", update(t.Context(), lock, record("b")))
			mustSucceed(t, what+"renewal", update(t.Context(), lock, record("b")))
			mustSucceed(t, what+"Transact", func() error { return lock.Transact(t.Context(), db, nil, nop) })
			mustSucceed(t, what+"release", update(t.Context(), lock, recordFor("", 1)))
			mustSucceed(t, "Rollback", tx.Rollback)
		}
	}
}
