package mysqllock_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// fuzzSessions are the pools that a fuzz target chooses from by a number, with whether they carry
// non-ASCII names.
func fuzzSessions(f *testing.F, config *mysql.Config) func(byte) (db *sql.DB, unicode bool) {
	f.Helper()
	type session struct {
		db      *sql.DB
		unicode bool
	}
	all := []session{{open(f, config), true}}
	for _, parameters := range []string{
		"charset=utf8mb4",
		"charset=utf8mb4&interpolateParams=true&sql_mode=%27NO_BACKSLASH_ESCAPES%2CANSI_QUOTES%2CPIPES_AS_CONCAT%27",
		"charset=utf8mb4&interpolateParams=true&sql_mode=%27%27&clientFoundRows=true",
		"charset=gbk&interpolateParams=true", "charset=sjis&interpolateParams=true", "charset=big5&interpolateParams=true",
		"charset=latin1", "charset=latin1&interpolateParams=true&sql_mode=%27%27",
	} {
		all = append(all, session{openDSN(f, config, parameters), strings.Contains(parameters, "utf8mb4")})
	}
	return func(n byte) (*sql.DB, bool) {
		s := all[int(n)%len(all)]
		return s.db, s.unicode
	}
}

// isPublic fails if a text could not stand in a log as one line.
func isPublic(t *testing.T, text string) {
	t.Helper()
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }) {
		t.Errorf("not a line of text: %q", text)
	}
}

func isASCII(names ...string) bool {
	return !strings.ContainsFunc(strings.Join(names, ""), func(r rune) bool { return r > unicode.MaxASCII })
}

// FuzzNames checks that a name is refused, or is what is in the table and in the events; and that
// nothing else is ever read or written because of it.
func FuzzNames(f *testing.F) {
	admin, config := newTables(f)
	session := fuzzSessions(f, config)
	hold(f, admin, "another", "b")
	others := snapshot(f, admin)
	for _, name := range []string{
		"", " ", "default/my-controller", "a\x00b", "a\nb", "\u202eabc", "a\u200bb", "\ufeff", "\u2028", "\U0001f9ad", "é", "e\u0301", "\xff", "\xed\xa0\x80",
		`'`, `\`, `\'`, `"`, "`", "x' OR '1'='1", "x'; DROP TABLE election_records; -- ", "你' OR 1 -- x", "ãあ' OR 1 -- x", "日本\\", "%s%d%!", "{name}{text}?",
		"another", "Another", "another ", strings.Repeat("é", 255), strings.Repeat("é", 256), strings.Repeat("a", 255), strings.Repeat("\U0001f9ad", 255),
	} {
		for n := range byte(9) {
			f.Add(name, "a", "", n)
			f.Add("e", name, name, n)
		}
	}
	f.Fuzz(func(t *testing.T, election, identity, preferred string, n byte) {
		db, isUnicode := session(n)
		var events eventRecorder
		lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: identity, EventRecorder: &events}, unhurried)
		if err != nil {
			isPublic(t, err.Error())
			return
		}
		if election == "another" {
			return
		}
		lock.RecordEvent("became leader")
		if say := events.events[0].Say; say != identity+" became leader" {
			t.Errorf("the event says %q", say)
		}
		if err := takenByAnAPIServer(events.events[0].Object); err != nil {
			t.Error(err)
		}
		defer func() {
			for _, table := range []string{"election_records", "election_fences"} {
				exec(t, admin, `DELETE FROM `+table+` WHERE election_name <> 'another'`)
			}
			if diff := cmp.Diff(others, snapshot(t, admin)); diff != "" {
				t.Fatalf("another election has changed:\n%s", diff)
			}
		}()

		_, _, err = lock.Get(t.Context())
		isPublic(t, err.Error())
		if fit := isUnicode || isASCII(election, identity); fit != apierrors.IsNotFound(err) {
			t.Fatalf("Get: %v", err)
		}
		held := record(identity)
		held.PreferredHolder = preferred
		if err := lock.Create(t.Context(), held); err != nil {
			isPublic(t, err.Error())
			if (isUnicode || isASCII(election, identity, preferred)) && !strings.Contains(err.Error(), ": preferredHolder ") {
				t.Fatalf("Create: %v", err)
			}
			if diff := cmp.Diff(others, snapshot(t, admin)); diff != "" {
				t.Fatalf("a refused Create wrote:\n%s", diff)
			}
			return
		}
		mustSucceed(t, "a renewal", update(t.Context(), lock, held))
		got, raw, err := lock.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.HolderIdentity != identity || got.PreferredHolder != preferred || !json.Valid(raw) {
			t.Errorf("Get: held by %q, prefers %q: %s", got.HolderIdentity, got.PreferredHolder, raw)
		}
		if e := getElection(t, db, election); e.Name != election || e.Holder != identity {
			t.Errorf("GetElection: %+v", e)
		}
		want := strings.ToUpper(fmt.Sprintf("%x|%x|%x", election, identity, preferred))
		if row := table(t, admin, `SELECT HEX(election_name), HEX(leader_name), HEX(preferred_holder) FROM election_records WHERE election_name <> 'another'`); row != want {
			t.Errorf("the row is %s, want %s", row, want)
		}
		mustSucceed(t, "Transact", func() error { return lock.Transact(t.Context(), db, nil, nop) })
		mustSucceed(t, "release", update(t.Context(), lock, recordFor("", 1)))
	})
}

// FuzzDatabase checks that the name of a database is refused, or is the name of
// one and nothing else.
func FuzzDatabase(f *testing.F) {
	admin, config := newTables(f)
	session := fuzzSessions(f, config)
	hold(f, admin, "e", "b")
	others := snapshot(f, admin)
	for _, name := range []string{
		"", " ", "mysql", "a`b", "`", "``", "a``b", "`.election_records AS r -- ", "x`.`election_records", "a.b", "é", "日`", "日本`.x -- ", "\x00", "{name}", "?", "'", `\`, "Ø", "Ø`", ".election_records AS r -- Ø", "aØ", "/*", "--", "#",
		strings.Repeat("é", 64), strings.Repeat("é", 65),
	} {
		for n := range byte(9) {
			f.Add(name, n)
		}
	}
	f.Fuzz(func(t *testing.T, name string, n byte) {
		db, isUnicode := session(n)
		with := mysqllock.WithDatabase(name)
		_, err := mysqllock.GetElection(t.Context(), db, "e", with)
		if err == nil && strings.EqualFold(name, config.DBName) {
			return
		}
		if err == nil {
			t.Fatal("there is no such database, and an election in it")
		}
		isPublic(t, err.Error())
		var server *mysql.MySQLError
		switch {
		case errors.As(err, &server):
			// No such table, no such database, a name that no database can have, or
			// not in this character set; a syntax error where that swallowed a quote.
			switch number := server.Number; {
			case slices.Contains([]uint16{1146, 1049, 1102, 1300, 3854}, number):
			case (number == 1064 || number == 1103) && !isUnicode && !isASCII(name):
			default:
				t.Errorf("GetElection: %v", err)
			}
		case !strings.Contains(err.Error(), `: WithDatabase `):
			t.Errorf("GetElection: %v", err)
		}
		if diff := cmp.Diff(others, snapshot(t, admin)); diff != "" {
			t.Fatalf("an election has changed:\n%s", diff)
		}
	})
}

// FuzzRows checks that whatever somebody else has put in the tables, an election
// goes on and has one leader, or an error says what to do.
func FuzzRows(f *testing.F) {
	admin, config := newTables(f)
	session := fuzzSessions(f, config)
	loosen(f, admin)
	hold(f, admin, "another", "b")
	writer := openDSN(f, config, "charset=utf8mb4&sql_mode=%27%27")
	const insert = `REPLACE INTO election_records (election_name, leader_name, leader_uid, strategy, preferred_holder, server,` +
		` lease_duration_seconds, leader_transitions, version, acquire_time, renew_time, last_update) VALUES ('e', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	const insertFence = `REPLACE INTO election_fences (election_name, fencing_token, leader_uid, guards) VALUES ('e', ?, ?, ?)`

	const now = "2026-11-24 12:00:00.000000"
	for n := range byte(9) {
		f.Add([]byte("x"), []byte("u"), []byte(""), int64(15), int64(3), int64(7), int64(7), now, uint16(0), n)
		f.Add([]byte("a"), []byte(""), []byte("s"), int64(-5), int64(-1), int64(-1), int64(-7), "0000-00-00", uint16(0), n)
		f.Add([]byte("a\n\x00\"'"), []byte("\xff\xfe"), []byte("\xed\xa0\x80"), int64(math.MaxInt32), int64(math.MaxInt32), int64(0), int64(0), "9999-12-31 23:59:59.999999", uint16(0), n)
		f.Add([]byte("你' OR 1 -- "), []byte("\x81\x5c' OR 1 -- "), []byte("日本"), int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MaxInt64), int64(5), "2026-00-00", uint16(0), n)
		f.Add([]byte(""), []byte("乗'"), []byte(`{"a":1}`), int64(math.MinInt64), int64(math.MinInt64), int64(math.MinInt64), int64(math.MaxInt64), "not a time", uint16(0), n)
		f.Add([]byte(" "), []byte("u "), []byte("</script>"), int64(0), int64(0), int64(math.MaxInt64-1), int64(math.MaxInt64-1), "0000-01-01", uint16(0), n)
		f.Add([]byte("x"), []byte("u"), []byte(""), int64(15), int64(3), int64(7), int64(7), now, uint16(math.MaxUint16), n)
		for bit := range 13 {
			f.Add([]byte("x"), []byte("u"), []byte(""), int64(15), int64(3), int64(7), int64(7), now, uint16(1)<<bit, n)
		}
	}
	f.Fuzz(func(t *testing.T, holder, uid, text []byte, lease, transitions, version, token int64, moment string, nulls uint16, n byte) {
		values := []any{holder, uid, text, text, text, lease, transitions, version, moment, moment, moment}
		fence := []any{token, uid, token}
		for i := range values {
			if nulls>>i&1 == 1 {
				values[i] = nil
			}
		}
		for i := range 2 {
			if nulls>>(len(values)+i)&1 == 1 {
				fence[i] = nil
			}
		}
		if _, err := writer.ExecContext(t.Context(), insert, values...); err != nil {
			return // the server doesn't take it
		}
		exec(t, writer, insertFence, fence...)
		goesOn(t, admin, func(identity string, opts ...mysqllock.Option) *mysqllock.Lock {
			db, _ := session(n)
			return newLock(t, db, "e", identity, opts...)
		}, version, token)
	})
}

// loosen alters the tables so that they take nearly everything, as
// somebody may have done who did not know what the types are for.
func loosen(t testing.TB, db *sql.DB) {
	t.Helper()
	exec(t, db, `ALTER TABLE election_records MODIFY leader_name VARBINARY(2000) NULL, MODIFY leader_uid VARBINARY(2000) NULL,`+
		` MODIFY strategy VARBINARY(2000) NULL, MODIFY preferred_holder VARBINARY(2000) NULL, MODIFY server VARBINARY(2000) NULL,`+
		` MODIFY lease_duration_seconds BIGINT NULL, MODIFY leader_transitions BIGINT NULL, MODIFY version BIGINT NULL, MODIFY last_update DATETIME(6) NULL`)
	exec(t, db, `ALTER TABLE election_fences MODIFY fencing_token BIGINT NULL, MODIFY leader_uid VARBINARY(2000) NULL, MODIFY guards BIGINT NULL`)
}

// goesOn checks what becomes of the election "e" with the rows that are in the
// tables now: candidates see it, one of two takes over and holds it, and others
// are left alone. Or an error says what to do about the version or the token.
func goesOn(t *testing.T, admin *sql.DB, candidate func(string, ...mysqllock.Option) *mysqllock.Lock, version, token int64) {
	t.Helper()
	another := readRow(t, admin, "another")
	list, err := mysqllock.ListElections(t.Context(), admin)
	if err != nil || len(list) != 2 {
		t.Fatalf("ListElections: %v, %v", list, err)
	}
	if e := getElection(t, admin, "e"); e.Name != "e" || e.Age < 0 {
		t.Errorf("GetElection: %+v", e)
	}
	// It ends where the row says what a person has to do.
	advised := func(what string, err error, limit bool, remedy string) (end bool) {
		if err == nil {
			return false
		}
		isPublic(t, err.Error())
		if !limit || !strings.Contains(err.Error(), remedy) {
			t.Fatalf("%s: %v", what, err)
		}
		return true
	}
	a, b := candidate("a", unhurried, mysqllock.WithServerClock()), candidate("b", unhurried)
	seen, raw, err := a.Get(t.Context())
	if advised("Get", err, version == math.MaxInt64, "delete the row") {
		return
	}
	if !json.Valid(raw) {
		t.Errorf("Get: %s", raw)
	}
	if seen.HolderIdentity == "a" {
		t.Errorf("the row of somebody else says that this candidate leads: %+v", seen)
	}
	mustSucceed(t, "Get", get(t.Context(), b))
	// As an elector does it.
	next := record("a")
	next.LeaderTransitions = seen.LeaderTransitions + 1
	if advised("a takeover", a.Update(t.Context(), next), token == math.MaxInt64, "delete that row") {
		return
	}
	second := record("b")
	second.LeaderTransitions = seen.LeaderTransitions + 1
	if err := b.Update(t.Context(), second); !apierrors.IsConflict(err) && (token < math.MaxInt64-1 || !advised("a further takeover", err, true, "delete that row")) {
		t.Fatalf("the second of two that saw the same row: %v", err)
	}
	held, ok := a.FencingToken()
	if stored, _ := storedFence(t, admin, "e"); !ok || held != stored || token > 0 && held <= token {
		t.Errorf("fencing token %d, %v; stored is %d, and was %d", held, ok, stored, token)
	}
	if holder := getElection(t, admin, "e").Holder; holder != "a" {
		t.Errorf("held by %q", holder)
	}
	mustSucceed(t, "a renewal", update(t.Context(), a, next)) // whose version is no longer at its limit
	mustSucceed(t, "Get", get(t.Context(), b))
	mustSucceed(t, "Transact", func() error { return a.Transact(t.Context(), admin, nil, nop) })
	mustSucceed(t, "release", update(t.Context(), a, recordFor("", 1)))
	if now := readRow(t, admin, "another"); now != another {
		t.Errorf("another election has changed: %+v, was %+v", now, another)
	}
}

// FuzzEnvironment checks that an environment is refused without a word of its
// values, or is a configuration that means the same as a DSN.
func FuzzEnvironment(f *testing.F) {
	const word = "hunter2" // what no error may say
	for _, value := range []string{
		"", " ", word, word + "\n", word + ":3306", "u:" + word + "@db", "tcp://" + word, "u:" + word + "@tcp(db:3306)/app", "/" + word, "/run/a)b", "[::1]", "::1", "fe80::1%eth0",
		"a/b", "a@b", "a:b", "a?b", "a%b", "a(b", "a)b", "a&b=c", "a+b", "é", "日本", "\xff", "-----BEGIN " + word, strings.Repeat(word, 100), "0", "65535", "65536", "+1", "0x1", "true", "preferred",
	} {
		f.Add(value, word, "db", "3306", "app", "", "")
		f.Add("u", value, "db", "3306", "app", "true", "")
		f.Add("u", word, value, "", "app", "", "db.internal")
		f.Add("u", word, "db", value, "app", "skip-verify", "")
		f.Add("u", word, "db", "", value, "preferred", "")
		f.Add("u", word, "db", "", "app", value, "")
		f.Add("u", word, "db", "", "app", "", value)
	}
	f.Fuzz(func(t *testing.T, user, password, host, port, database, mode, serverName string) {
		environment := map[string]string{
			"MYSQL_USER": user, "MYSQL_PASSWORD": password, "MYSQL_HOST": host, "MYSQL_PORT": port, "MYSQL_DBNAME": database, "MYSQL_TLS": mode, "MYSQL_TLS_SERVER_NAME": serverName,
		}
		for name, value := range environment {
			if strings.Contains(value, "\x00") {
				return // no variable can have it
			}
			t.Setenv(name, value)
		}
		config, err := mysqllock.ConfigFromEnv()
		if err != nil {
			isPublic(t, err.Error())
			if strings.Contains(err.Error(), word) {
				t.Errorf("shows a value: %v", err)
			}
			return
		}
		if config.User != user || config.Passwd != password || config.DBName != database {
			t.Errorf("user %q, password %q, database %q", config.User, config.Passwd, config.DBName)
		}
		if wantTLS := mode == "true" || mode == "skip-verify" || mode == "preferred" || mode == "" && serverName != ""; wantTLS != (config.TLS != nil) {
			t.Fatalf("MYSQL_TLS=%q: %+v", mode, config.TLS)
		}
		if config.TLS != nil && config.TLS.InsecureSkipVerify != (mode == "skip-verify" || mode == "preferred") || config.AllowFallbackToPlaintext != (mode == "preferred") {
			t.Errorf("MYSQL_TLS=%q: verifies %t, fallback %t", mode, !config.TLS.InsecureSkipVerify, config.AllowFallbackToPlaintext)
		}
		db, err := mysqllock.Open(config)
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		_ = db.Close()

		again, err := mysql.ParseDSN(config.FormatDSN())
		if err != nil {
			return
		}
		// A DSN ends a user at the first colon, and an address at a closing
		// parenthesis. What it must not lose is TLS.
		if !strings.Contains(user, ":") && !strings.ContainsAny(host, "()") &&
			(again.User != user || again.Passwd != password || again.DBName != database || again.Net != config.Net || again.Addr != config.Addr) {
			t.Errorf("as a DSN: user %q, password %q, database %q, %s %q, want %s %q", again.User, again.Passwd, again.DBName, again.Net, again.Addr, config.Net, config.Addr)
		}
		if (again.TLS == nil) != (config.TLS == nil) || again.TLS != nil && again.TLS.InsecureSkipVerify != config.TLS.InsecureSkipVerify {
			t.Errorf("as a DSN: TLS %+v", again.TLS)
		}
	})
}
