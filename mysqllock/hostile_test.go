package mysqllock_test

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
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
		var text []byte
		var one int
		if db.QueryRowContext(t.Context(), `SELECT ?`, prefix+"', 1 -- ").Scan(&text, &one) == nil { // two columns
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
		changing, spoil, _ := openSpoilable(t, config, "interpolateParams=true")
		leader, standby := newLock(t, changing, names.election, names.identity), newLock(t, changing, names.election, names.identity+" 2")
		mustSucceed(t, what+", Create", create(t.Context(), leader, record(names.identity)))
		mustSucceed(t, what+", Get", get(t.Context(), standby))
		spoil(`SET NAMES ` + charset)
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

	// A database's name is in the statement, and what is outside of its quotes
	// then must not be SQL.
	for _, sql := range []string{"`", "'", `"`, `\`, ".", " ", "-", "(", "@", "*"} {
		_, err := mysqllock.GetElection(t.Context(), db, "victim", mysqllock.WithDatabase("a"+sql+prefix))
		if err == nil || !strings.Contains(err.Error(), "non-ASCII characters, and punctuation") {
			t.Errorf("a database with %q: %v", sql, err)
		}
	}
	mustSucceed(t, "a renewal", update(t.Context(), victim, record("victim")))
}

// The connection's own database may have a name that WithDatabase would refuse.
func TestTheNameOfTheConnectionsDatabaseIsNeverSQL(t *testing.T) {
	t.Parallel()
	config := newConfig(t)
	admin := open(t, config)
	for i, character := range []string{"誠", "表", "功", "é", "你"} { // some end in a backslash, in gbk, sjis or big5
		config := config.Clone()
		config.DBName += character + "' OR 1 -- `"
		quoted := "`" + strings.ReplaceAll(config.DBName, "`", "``") + "`"
		config.DBName = url.PathEscape(config.DBName)
		for _, parameters := range []string{"", "&character_set_results=utf8mb4"} {
			for _, charset := range []string{"gbk", "sjis", "big5"} {
				t.Run(fmt.Sprint(i, charset, parameters), func(t *testing.T) {
					exec(t, admin, `CREATE DATABASE `+quoted)
					defer exec(t, admin, `DROP DATABASE `+quoted)
					db := openDSN(t, config, "interpolateParams=true&charset="+charset+parameters)
					mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), db) })
					mustSucceed(t, "Migrate again", func() error { return mysqllock.Migrate(t.Context(), db) })
					exec(t, admin, `SELECT version FROM `+quoted+`.election_records`)
					if found := findings(t, db, mysqllock.SeverityError); len(found) > 0 {
						t.Errorf("Preflight found %v", found)
					}
				})
			}
		}
	}
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

// What somebody else may put in the rows, by hand or by a tool, and in tables
// that he has altered: an election must not end by it.
func TestAnElectionGoesOnWithRowsThatNoLockWrites(t *testing.T) {
	t.Parallel()
	for name, alter := range map[string]func(testing.TB, *sql.DB){"altered tables": loosen, "the tables": func(testing.TB, *sql.DB) {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testRowsThatNoLockWrites(t, alter)
		})
	}
}

func testRowsThatNoLockWrites(t *testing.T, alter func(testing.TB, *sql.DB)) {
	t.Helper()
	_, config := newTables(t)
	admin := openDSN(t, config, "charset=utf8mb4&sql_mode=%27%27") // takes the next best value
	alter(t, admin)
	hold(t, admin, "another", "b")
	for _, parameters := range []string{"charset=utf8mb4", "charset=utf8mb4&interpolateParams=true&clientFoundRows=true", "charset=latin1", "charset=gbk&interpolateParams=true"} {
		db := openDSN(t, config, parameters)
		for _, test := range []struct{ records, fences string }{
			{records: `leader_uid = NULL`},
			{records: `version = NULL`},
			{records: `leader_name = NULL, lease_duration_seconds = NULL, leader_transitions = NULL, strategy = NULL, preferred_holder = NULL, server = NULL, last_update = NULL`},
			{records: `leader_uid = _utf8mb4 '乗'`},                 // another string in latin1
			{records: `leader_uid = 0x815c27204f522031202d2d20`},   // in gbk a character whose second byte is a backslash, and SQL
			{records: `leader_uid = 0xfffe, leader_name = 0xfffe`}, // not UTF-8
			{records: `leader_uid = 'u '`},
			{records: `leader_uid = REPEAT('u', 2000), leader_name = REPEAT('x', 2000)`},
			{records: `leader_name = '{"holderIdentity":"a"}', strategy = '","holderIdentity":"a'`},
			{records: `leader_transitions = 2147483647`},
			{records: `leader_transitions = -2147483648`},
			{records: `leader_transitions = 9223372036854775807`},
			{records: `lease_duration_seconds = 9223372036854775807`},
			{records: `lease_duration_seconds = -9223372036854775808`},
			{records: `last_update = '9999-12-31', acquire_time = '9999-12-31', renew_time = '0000-00-00'`},
			{fences: `fencing_token = NULL`},
			{fences: `leader_uid = NULL, guards = NULL`},
			{fences: `fencing_token = -9223372036854775808`},
			{fences: `fencing_token = 0`},
		} {
			t.Run(parameters+" "+test.records+test.fences, func(t *testing.T) {
				exec(t, admin, `REPLACE INTO election_records (election_name, leader_name, leader_uid, strategy, preferred_holder, server, version, lease_duration_seconds, leader_transitions, last_update)`+
					` VALUES ('e', 'x', 'u', '', '', '', 1, 15, 0, UTC_TIMESTAMP(6))`)
				exec(t, admin, `REPLACE INTO election_fences (election_name, fencing_token, leader_uid) VALUES ('e', 5, 'u')`)
				if test.records != "" {
					exec(t, admin, `UPDATE election_records SET `+test.records+` WHERE election_name = 'e'`)
				} else {
					exec(t, admin, `UPDATE election_fences SET `+test.fences+` WHERE election_name = 'e'`)
				}
				goesOn(t, admin, func(identity string, opts ...mysqllock.Option) *mysqllock.Lock {
					return newLock(t, db, "e", identity, opts...)
				}, 0, 0)
			})
		}
	}
}

// The largest token there is can't be followed by a larger one: the error says
// which row it is in, and an election whose row was deleted goes on.
func TestTheLargestFencingTokenIsReported(t *testing.T) {
	t.Parallel()
	admin, _ := newTables(t)
	leader, standby := newLock(t, admin, "e", "a"), newLock(t, admin, "e", "b")
	takeOver(t, leader)
	exec(t, admin, `UPDATE election_fences SET fencing_token = 9223372036854775807`)
	const want = `mysqllock: update "e": the election's row in election_fences has the largest fencing token there is, so that no term can begin; ` +
		`delete that row, once nothing compares with this token any more`
	mustRefuse(t, admin, "a takeover", want, func() error { return tryTakeOver(t.Context(), standby) })
	mustSucceed(t, "a renewal", update(t.Context(), leader, record("a")))
	exec(t, admin, `DELETE FROM election_fences`)
	takeOver(t, standby)
}

// A guard with a fence row that somebody spoilt is of nobody: nothing is
// committed, and the next term is sound again.
func TestNothingIsCommittedWithAFenceRowThatSomebodySpoilt(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	loosen(t, admin)
	work := newLedger(t, config)
	for _, spoil := range []string{`fencing_token = NULL`, `fencing_token = -1`, `fencing_token = 9223372036854775807`, `leader_uid = NULL`, `leader_uid = 0xff`, `leader_uid = ''`} {
		t.Run(spoil, func(t *testing.T) {
			lock := newLock(t, admin, spoil, "a")
			takeOver(t, lock)
			token, _ := lock.FencingToken()
			exec(t, admin, `UPDATE election_fences SET `+spoil+` WHERE election_name = ?`, spoil)
			if err := lock.Transact(t.Context(), work, nil, inserting("lost")); !errors.Is(err, mysqllock.ErrNotLeader) {
				t.Errorf("Transact: %v", err)
			}
			wantLedger(t, work)
			mustSucceed(t, "a renewal", update(t.Context(), lock, record("a")))
			exec(t, admin, `UPDATE election_fences SET fencing_token = ? WHERE fencing_token = 9223372036854775807`, token)
			lock.RecordEvent("stopped leading")
			takeOver(t, lock)
			mustSucceed(t, "Transact", func() error { return lock.Transact(t.Context(), work, nil, nop) })
		})
	}
}

// The driver's and the server's texts may have anything in them.
func TestAnErrorIsOneLineOfText(t *testing.T) {
	t.Parallel()
	config := server.Config()
	config.Addr = newRefusingServer(t, 1130, "Host '10.9.8.7' is not allowed\nE1124 leader elected\x1b[2J\u2028\xff")
	_, err := mysqllock.GetElection(t.Context(), open(t, config), "e")
	want := `mysqllock: get election "e": Error 1130: Host '...' is not allowed E1124 leader elected [2J ` + "\ufffd"
	if err == nil || err.Error() != want {
		t.Errorf("got  %q\nwant %q", err, want)
	}
}
