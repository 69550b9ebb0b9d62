package mysqllock_test

import (
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"pgregory.net/rapid"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Names are values, never SQL, however a session reads quotes and backslashes; and two names are
// one only if all their bytes are the same.
func TestNameIsPlainAndAnElectionOfItsOwn(t *testing.T) {
	names := []string{
		`'`, `''`, `\`, `\\`, `\'`, `\\'`, `"`, "`", `x' OR '1'='1`, `x'; DROP TABLE election_records; -- x`, `x\'; DELETE FROM election_records; -- x`,
		`x" OR ""="`, `/*`, `*/`, `/* x */`, `--`, `#`, `;`, `?`, `??`, `%`, `_`, `%s%d%v%!`, `{records}`, `{text}`, `{session}`, `$1`, `:name`, `@@autocommit`,
		`NULL`, `null`, `0`, `00`, `0x41`, `A`, `a`, `á`, "a\u0301", `ä`, `ae`, `æ`, `ss`, `ß`, `ẞ`, `ａ`, `１`, `ı`, `i`, `I`, `İ`, "a\u200b", "a\u00adb", `ab`,
		"\U0001f9ad", "\U0001f9ae", "\ufeff", "\ufffd", "\u202eabc", `a  b`, `a b`, `</script>`, `${jndi:ldap://x}`, `../..`, `\0`, `\n`, `\x00`, `\Z`, `\%`,
	}
	for _, parameters := range []string{
		"charset=utf8mb4",
		"charset=utf8mb4&interpolateParams=true",
		"charset=utf8mb4&sql_mode=%27NO_BACKSLASH_ESCAPES%27",
		"charset=utf8mb4&interpolateParams=true&sql_mode=%27NO_BACKSLASH_ESCAPES%2CANSI_QUOTES%27",
	} {
		t.Run(parameters, func(t *testing.T) {
			t.Parallel()
			admin, config := newTables(t)
			db := openDSN(t, config, parameters)
			for _, name := range names {
				lock := newLock(t, db, name, name)
				mustSucceed(t, "Create "+name, create(t.Context(), lock, record(name)))
				odd := record(name)
				odd.PreferredHolder = name
				mustSucceed(t, "Update "+name, update(t.Context(), lock, odd))
			}
			for _, name := range names {
				r, raw, err := newLock(t, db, name, "somebody").Get(t.Context())
				if err != nil {
					t.Errorf("Get of %q: %v", name, err)
					continue
				}
				if r.HolderIdentity != name || r.PreferredHolder != name || !json.Valid(raw) {
					t.Errorf("Get of %q: held by %q, prefers %q", name, r.HolderIdentity, r.PreferredHolder)
				}
			}
			for _, table := range []string{"election_records", "election_fences"} {
				var n int
				if err := admin.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM `+table).Scan(&n); err != nil || n != len(names) {
					t.Errorf("%s has %d rows, %v; want %d", table, n, err, len(names))
				}
			}
		})
	}
}

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

// The driver refuses collations that make its quoting unsafe, not character sets.
func TestNameIsNeverSQLInASessionWhoseCharacterSetMakesQuotingUnsafe(t *testing.T) {
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
func TestNameOfTheConnectionsDatabaseIsNeverSQL(t *testing.T) {
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

// Non-ASCII names travel in another way than others. They must lock no more rows than their own,
// and find them by the key.
func TestNameThatIsNonASCIILocksItsOwnRowsOnly(t *testing.T) {
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

// alike are pairs of names that some collation, normalisation, trimming or character set takes for
// one.
var alike = []struct{ what, a, b string }{
	{"case", "ns/Leader", "ns/leader"},
	{"case non-ASCII", "ÄPFEL", "äpfel"},
	{"Turkish case", "I", "ı"},
	{"sharp s", "straße", "strasse"},
	{"capital sharp s", "STRAẞE", "STRASSE"},
	{"Greek final sigma", "ς", "σ"},
	{"accent", "café", "cafe"},
	{"normalisation forms", "caf\u00e9", "cafe\u0301"},
	{"order of combining marks", "a\u0323\u0302", "a\u0302\u0323"},
	{"Hangul", "\uac00", "\u1100\u1161"},
	{"Ångström sign", "\u212b", "\u00c5"},
	{"ligature", "\ufb01n", "fin"},
	{"full width", "\uff41", "a"},
	{"superscript", "x\u00b2", "x2"},
	{"kana", "か", "カ"},
	{"voiced kana", "が", "か"},
	{"emoji", "👩", "👨"},
	{"emoji and none", "a👩", "a"},
	{"skin tone", "👍", "👍🏿"},
	{"joined emoji", "👩\u200d🚀", "👩🚀"},
	{"flags", "🇩🇪", "🇫🇷"},
	{"first of two planes", "\U00010000", "\U00020000"},
	{"beyond the BMP and a replacement", "a\U0001f600", "a\ufffd"},
	{"beyond the BMP and a question mark", "a\U0001f600", "a?"},
	{"zero-width space at the end", "a\u200b", "a"},
	{"byte order mark at the end", "a\ufeff", "a"},
	{"byte order mark at the beginning", "\ufeffa", "a"},
	{"Hangul filler at the end", "a\u3164", "a"},
	{"word joiner at the end", "a\u2060", "a"},
	{"Braille blank at the end", "a\u2800", "a"},
	{"no-break space inside", "a\u00a0b", "a b"},
	{"soft hyphen", "a\u00adb", "ab"},
	{"one space or two", "a b", "a  b"},
	{"variation selector", "\u2764\ufe0f", "\u2764"},
	{"bidi mark", "a\u200eb", "ab"},
	{"private use", "\ue000", "\uf8ff"},
	{"noncharacters", "\ufffe", "\uffff"},
	{"backslash", `a\b`, `a\\b`},
	{"backslash at the end", `a\`, `a`},
	{"quotes", `a''b`, `a'b`},
	{"wildcards", "a%", "ab"},
	{"wildcards", "a_", "ab"},
	{"numbers", "1", "1.0"},
	{"numbers", "0", "a"},
	{"exponent", "1e1", "10"},
	{"leading zero", "01", "1"},
	{"255 characters", strings.Repeat("ä", 254) + "x", strings.Repeat("ä", 254) + "y"},
	{"255 characters and 254", strings.Repeat("\U0001f600", 255), strings.Repeat("\U0001f600", 254)},
}

// twoElections checks that two names are two elections with leaders of their own.
func twoElections(t *testing.T, db *sql.DB, what, first, second string) (problem string) {
	t.Helper()
	ctx := t.Context()
	for _, name := range []string{first, second} {
		exec(t, db, `DELETE FROM election_records WHERE election_name = ?`, name)
		exec(t, db, `DELETE FROM election_fences WHERE election_name = ?`, name)
	}
	var tokens [2]int64
	var locks [2]*mysqllock.Lock
	for i, name := range []string{first, second} {
		// The names are identities as well: a holder is not another's.
		lock, err := mysqllock.New(db, name, resourcelock.ResourceLockConfig{Identity: name}, unhurried)
		if err != nil {
			return fmt.Sprintf("%s: %v", what, err)
		}
		if _, _, err := lock.Get(ctx); !apierrors.IsNotFound(err) {
			return fmt.Sprintf("%s: of %+q and %+q there is %+q already: %v", what, first, second, name, err)
		}
		if err := lock.Create(ctx, record(name)); err != nil {
			return fmt.Sprintf("%s: %+q can't be created besides the other of %+q and %+q: %v", what, name, first, second, err)
		}
		locks[i] = lock
		tokens[i], _ = lock.FencingToken()
	}
	for i, lock := range locks {
		if err := lock.Update(ctx, record(lock.Identity())); err != nil {
			return fmt.Sprintf("%s: renewal of %+q: %v", what, lock.Identity(), err)
		}
		found, _, err := lock.Get(ctx)
		if err != nil || found.HolderIdentity != lock.Identity() {
			return fmt.Sprintf("%s: the leader of %+q is %+v, %v", what, lock.Identity(), found, err)
		}
		if stored, _ := storedFence(t, db, lock.Identity()); stored != tokens[i] {
			return fmt.Sprintf("%s: the fence of %+q has token %d, its leader %d", what, lock.Identity(), stored, tokens[i])
		}
	}
	return ""
}

func TestNamesThatLookAlikeAreElectionsOfTheirOwn(t *testing.T) {
	db, config := newTables(t)
	unusual := openDSN(t, config, "sql_mode=''") // cuts and converts in silence
	for _, pair := range alike {
		if problem := twoElections(t, db, pair.what, pair.a, pair.b); problem != "" {
			t.Error(problem)
		}
		if problem := twoElections(t, unusual, pair.what, pair.b, pair.a); problem != "" {
			t.Errorf("sql_mode '': %s", problem)
		}
	}
}

// A name and what becomes of it by one change of one character.
func TestNamesThatDifferAreTwoElections(t *testing.T) {
	db, _ := newTables(t)
	rapid.Check(t, func(rt *rapid.T) {
		name := validName.Draw(rt, "name")
		runes := []rune(name)
		i := rapid.IntRange(0, len(runes)-1).Draw(rt, "at")
		changed := rapid.SampledFrom([]func() string{
			func() string { return strings.ToUpper(name) },
			func() string { return strings.ToLower(name) },
			func() string { return string(append(runes[:i:i], unicode.SimpleFold(runes[i]))) + string(runes[i+1:]) },
			func() string { return string(append(runes[:i:i], character.Draw(rt, "other"))) + string(runes[i+1:]) },
			func() string { return string(append(runes[:i:i], '\u0301')) + string(runes[i:]) },
			func() string { return string(append(runes[:i:i], '\u200b')) + string(runes[i:]) },
			func() string { return string(runes[:i]) + string(runes[i+1:]) },
			func() string { return name + "\u3164" },
		}).Draw(rt, "change")()
		other := strings.TrimSpace(changed)
		if _, err := mysqllock.New(db, other, resourcelock.ResourceLockConfig{Identity: "a"}); err != nil || other == name {
			other = "the other" // the change made it too long, empty or no different
		}
		if problem := twoElections(t, db, "by chance", name, other); problem != "" {
			rt.Fatal(problem)
		}
	})
}

func TestNamesInARecordAreNeverGarbledByASessionsCharacterSet(t *testing.T) {
	admin, config := newTables(t)
	const far = "日本 é"
	for _, parameters := range []string{"charset=latin1", "charset=latin1&interpolateParams=true"} {
		t.Run(parameters, func(t *testing.T) {
			defer exec(t, admin, `DELETE FROM election_records`)
			lock := newLock(t, openDSN(t, config, parameters), "e", "a")
			odd := record("a")
			odd.PreferredHolder = far
			mustRefuse(t, admin, "Create", "character set is latin1", create(t.Context(), lock, odd))
			mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
			mustRefuse(t, admin, "renewal", "character set is latin1", update(t.Context(), lock, odd))
			odd = record("a")
			odd.Strategy = far
			mustRefuse(t, admin, "renewal", "character set is latin1", update(t.Context(), lock, odd))
			mustSucceed(t, "Update", update(t.Context(), lock, record("a")))

			// Written by somebody with utf8mb4.
			other := newLock(t, admin, "e", far)
			odd = record(far)
			odd.PreferredHolder = far
			mustSucceed(t, "Get", get(t.Context(), other))
			mustSucceed(t, "Update", update(t.Context(), other, odd))
			r, _, err := lock.Get(t.Context())
			if err == nil && (r.HolderIdentity != far || r.PreferredHolder != far) {
				t.Errorf("Get: held by %q, prefers %q; want %q or an error", r.HolderIdentity, r.PreferredHolder, far)
			}
		})
	}
}
