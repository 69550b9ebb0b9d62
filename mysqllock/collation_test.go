package mysqllock_test

import (
	"database/sql"
	"net/url"
	"strings"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// collations are those of the list that the server knows.
func collations(t testing.TB) []string {
	t.Helper()
	db := openOne(t, server.Config(), "")
	var known []string
	for _, c := range []string{
		"utf8mb4_unicode_ci", "utf8mb4_general_ci", "utf8mb4_bin", "latin1_swedish_ci", "latin1_bin", "binary", "gbk_chinese_ci",
		"utf8mb4_unicode_520_nopad_ci", "utf8mb4_uca1400_ai_ci", // MariaDB's
		"utf8mb4_0900_ai_ci", "utf8mb4_0900_bin", // MySQL's
	} {
		_, err := db.ExecContext(t.Context(), `SET collation_connection = '`+c+`'`)
		switch {
		case err == nil:
			known = append(known, c)
		case !strings.Contains(err.Error(), "Unknown collation"):
			t.Fatal(err)
		}
	}
	if len(known) < 8 {
		t.Fatalf("the server knows only %v", known)
	}
	return known
}

// An application's DSN, or the server's init_connect, may give sessions a
// collation of any kind. What the lock compares is compared by its tables'.
func TestAnyCollationOfASessionWillDo(t *testing.T) {
	for _, collation := range collations(t) {
		for _, parameters := range []string{"", "interpolateParams=true&"} {
			t.Run(parameters+collation, func(t *testing.T) {
				parameters += "collation_connection=" + url.QueryEscape("'"+collation+"'")
				elections := []string{"e"}
				if strings.HasPrefix(collation, "utf8mb4") {
					elections = append(elections, "é選挙")
				}
				config := newConfig(t)
				exec(t, open(t, config), v0Table+"DEFAULT CHARACTER SET latin1")
				tryAll(t, openDSN(t, config, parameters), elections)
				outside := config.Clone()
				outside.DBName = ""
				tryAll(t, openDSN(t, outside, parameters), elections, mysqllock.WithDatabase(config.DBName), mysqllock.WithServerClock())
			})
		}
	}
}

// tryAll makes each kind of call.
func tryAll(t *testing.T, db *sql.DB, elections []string, opts ...mysqllock.Option) {
	t.Helper()
	for range 2 { // it makes the tables, and finds them current
		mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), db, opts...) })
	}
	found, err := mysqllock.Preflight(t.Context(), db, opts...)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f.Severity == mysqllock.SeverityError {
			t.Errorf("Preflight found %v", f)
		}
	}
	for _, election := range elections {
		for _, batch := range [][]mysqllock.Option{nil, {mysqllock.WithBatch(batchInCompany(t, db))}} {
			if batch != nil && len(opts) > 0 {
				continue // the company has no options
			}
			lock := newLock(t, db, election, "a", append(batch, opts...)...)
			mustSucceed(t, "a takeover", func() error { return tryTakeOver(t.Context(), lock) })
			mustSucceed(t, "Get", get(t.Context(), lock))
			mustSucceed(t, "a renewal", update(t.Context(), lock, record("a")))
			mustSucceed(t, "Transact", func() error { return lock.Transact(t.Context(), db, nil, nop) })
			if got := getElection(t, db, election, opts...); got.Name != election || got.Holder != "a" {
				t.Errorf("GetElection returned %+v", got)
			}
			mustSucceed(t, "a release", update(t.Context(), lock, recordFor("", 1)))
		}
	}
	if all, err := mysqllock.ListElections(t.Context(), db, opts...); err != nil || len(all) < len(elections) {
		t.Errorf("ListElections returned %v, %v", all, err)
	}
}
