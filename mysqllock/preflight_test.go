package mysqllock_test

import (
	"context"
	"database/sql"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// findings are those of a severity or worse.
func findings(t testing.TB, db *sql.DB, least mysqllock.Severity) []mysqllock.Finding {
	t.Helper()
	all, err := mysqllock.Preflight(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	var found []mysqllock.Finding
	for _, f := range all {
		if f.Subject == "" || f.Problem == "" || f.Remedy == "" {
			t.Errorf("incomplete: %+v", f)
		}
		if f.Severity == mysqllock.SeverityError || f.Severity == least {
			found = append(found, f)
		}
	}
	return found
}

func wantFinding(t testing.TB, db *sql.DB, severity mysqllock.Severity, subject, problem string, opts ...mysqllock.Option) {
	t.Helper()
	all, err := mysqllock.Preflight(t.Context(), db, opts...)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.Severity == severity && f.Subject == subject && strings.Contains(f.Problem, problem) {
			return
		}
	}
	t.Errorf("no %s about %s that says %q, but %v", severity, subject, problem, all)
}

func TestPreflightOfAGoodDatabaseFindsNoError(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	db := open(t, newAccount(t, config, ordinary...))
	if found := findings(t, db, mysqllock.SeverityError); len(found) > 0 {
		t.Errorf("found %v", found)
	}
	exec(t, db, `SELECT * FROM election_records`) // it left the session as it was
	var rows int
	if err := db.QueryRowContext(t.Context(), `SELECT (SELECT COUNT(*) FROM election_records) + (SELECT COUNT(*) FROM election_fences)`).Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d rows (%v)", rows, err)
	}
}

func TestPreflightFindsWhatIsWrongWithTables(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, statement, subject, problem string }{
		{"missing", `DROP TABLE election_records`, "election_records", "there is no such table"},
		{"another is missing", `DROP TABLE election_fences`, "election_fences", "there is no such table"},
		{"collation", `ALTER TABLE election_records MODIFY leader_name VARCHAR(255) COLLATE utf8mb4_general_ci NOT NULL`, "election_records", "utf8mb4_general_ci"},
		{"engine", `ALTER TABLE election_fences ENGINE=MEMORY`, "election_fences", "MEMORY"},
		{"key", `ALTER TABLE election_records DROP PRIMARY KEY`, "election_records", "key"},
		{"type", `ALTER TABLE election_records MODIFY last_update DATETIME NOT NULL`, "election_records", "last_update"},
		{"v0", `DROP TABLE election_records; CREATE TABLE election_records (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, election_name VARCHAR(256), leader_name VARCHAR(256), last_update DATETIME(3))`, "election_records", "earlier go-leaderelection-mysql"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db, _ := newTables(t)
			for statement := range strings.SplitSeq(c.statement, ";") {
				exec(t, db, statement)
			}
			wantFinding(t, db, mysqllock.SeverityError, c.subject, c.problem)
		})
	}
}

func TestPreflightFindsMissingAndExcessGrants(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	for _, table := range []string{"election_records", "election_fences"} {
		for _, privilege := range []string{"SELECT", "INSERT", "UPDATE"} {
			var grants []string
			for _, tb := range []string{"election_records", "election_fences"} {
				for _, p := range []string{"SELECT", "INSERT", "UPDATE"} {
					if tb != table || p != privilege {
						grants = append(grants, p+" ON "+tb)
					}
				}
			}
			db := open(t, newAccount(t, config, grants...))
			wantFinding(t, db, mysqllock.SeverityError, "grants", privilege+" on "+table+" is refused")
			found := findings(t, db, mysqllock.SeverityError)
			if privilege == "INSERT" && len(found) != 1 || slices.ContainsFunc(found, func(f mysqllock.Finding) bool { return f.Subject != "grants" }) {
				t.Errorf("found %v", found)
			}
		}
	}
	wantFinding(t, open(t, config), mysqllock.SeverityWarning, "grants", "far more than a lock needs")
}

func TestPreflightFindsExcessGrantsOnTheTables(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	newLedger(t, config)
	escaped := strings.ReplaceAll(config.DBName, "_", `\_`)
	for _, c := range []struct {
		grant, parameters string
		severity          mysqllock.Severity // empty: nothing is to be found
		problem           string
	}{
		{"ALL PRIVILEGES ON {db}.*", "", mysqllock.SeverityInfo, ": ALL PRIVILEGES"},
		{"SELECT, DELETE, CREATE, DROP ON `" + escaped + "`.*", "", mysqllock.SeverityInfo, ": DELETE, CREATE, DROP"},
		{"ALTER ON `mysqllock\\_t%`.*", "", mysqllock.SeverityInfo, ": ALTER"},
		{"ALTER ON `mysqllock\\_t%`.*", "sql_mode=ANSI_QUOTES", mysqllock.SeverityInfo, ": ALTER"},
		{"ALTER ON `" + escaped + "`.*", "sql_quote_show_create=0", mysqllock.SeverityInfo, ": ALTER"},
		{"DELETE ON {db}.election_fences", "", mysqllock.SeverityInfo, ": DELETE"},
		{"SELECT (leader_uid), REFERENCES (leader_uid, guards) ON {db}.election_fences", "", mysqllock.SeverityInfo, ": REFERENCES"},
		{"USAGE ON {db}.election_records TO {user} WITH GRANT OPTION", "", mysqllock.SeverityWarning, ": GRANT OPTION"},

		{"SELECT, INSERT, UPDATE ON {db}.*", "", "", ""},
		{"REPLICATION CLIENT ON *.*", "", "", ""}, // MariaDB: BINLOG MONITOR
		{"ALL PRIVILEGES ON `mysqllock\\_test`.*", "", "", ""},
		{"ALL PRIVILEGES ON `mysqllock\\%`.*", "", "", ""},
		{"ALL PRIVILEGES ON {db}.ledger", "", "", ""},
	} {
		t.Run(c.grant+" "+c.parameters, func(t *testing.T) {
			account := newAccount(t, config, ordinary...)
			user := "'" + account.User + "'@'%'"
			grant := strings.NewReplacer("{db}", "`"+config.DBName+"`", "{user}", user).Replace(c.grant)
			if !strings.Contains(grant, " TO ") {
				grant += " TO " + user
			}
			exec(t, admin, "GRANT "+grant)
			db := openDSN(t, account, "charset=utf8mb4&"+c.parameters)
			if c.severity != "" {
				wantFinding(t, db, c.severity, "grants", c.problem)
				return
			}
			for _, severity := range []mysqllock.Severity{mysqllock.SeverityWarning, mysqllock.SeverityInfo} {
				for _, f := range findings(t, db, severity) {
					if f.Subject == "grants" {
						t.Errorf("found %v", f)
					}
				}
			}
		})
	}
}

func TestPreflightFindsExcessGrantsOfARoleAndOnADatabaseOfAnyName(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	account := newAccount(t, config, ordinary...)
	user, role := "'"+account.User+"'@'%'", account.User+"_role"
	const odd = "`mysqllock_test o``d\"d`"
	exec(t, admin, `CREATE DATABASE IF NOT EXISTS `+odd)
	exec(t, admin, `CREATE ROLE `+role)
	t.Cleanup(func() {
		for _, statement := range []string{`DROP DATABASE ` + odd, `DROP ROLE ` + role} {
			if _, err := open(t, config).ExecContext(context.Background(), statement); err != nil {
				t.Error(err)
			}
		}
	})
	exec(t, admin, "GRANT DELETE ON `"+config.DBName+"`.* TO "+role)
	exec(t, admin, `GRANT `+role+` TO `+user)
	if server.MariaDB() {
		exec(t, admin, `SET DEFAULT ROLE `+role+` FOR `+user)
	} else {
		exec(t, admin, `SET DEFAULT ROLE `+role+` TO `+user)
	}
	wantFinding(t, open(t, account), mysqllock.SeverityInfo, "grants", ": DELETE")

	in := mysqllock.WithDatabase("mysqllock_test o`d\"d")
	mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), admin, in) })
	exec(t, admin, `GRANT SELECT, INSERT, UPDATE, DROP ON `+odd+`.* TO `+user)
	wantFinding(t, open(t, account), mysqllock.SeverityInfo, "grants", ": DROP", in)
}

func TestPreflightFindsWhatIsWrongWithSessions(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	for _, c := range []struct {
		name, value, subject, problem string
		severity                      mysqllock.Severity
	}{
		{"autocommit", "0", "autocommit", "off", mysqllock.SeverityError},
		{"character_set_client", "latin1", "character_set_client", "latin1", mysqllock.SeverityWarning},
	} {
		wantFinding(t, openDSN(t, config, c.name+"="+c.value), c.severity, c.subject, c.problem)
	}
	db := open(t, config)
	db.SetMaxOpenConns(1)
	wantFinding(t, db, mysqllock.SeverityWarning, "MaxOpenConns", "one connection")
}

func TestPreflightMentionsTriggersOnTheTables(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	for _, c := range []struct{ table, when, problem string }{
		{"election_records", "AFTER UPDATE", "its trigger \"t0\" (AFTER UPDATE) runs with each renewal, takeover and release"},
		{"election_records", "BEFORE INSERT", "its trigger \"t1\" (BEFORE INSERT) runs with the first campaign of each election"},
		{"election_fences", "BEFORE UPDATE", "its trigger \"t2\" (BEFORE UPDATE) runs with each takeover"},
	} {
		name, _, _ := strings.Cut(strings.TrimPrefix(c.problem, `its trigger "`), `"`)
		exec(t, db, `CREATE TRIGGER `+name+` `+c.when+` ON `+c.table+` FOR EACH ROW SET @v = 1`)
		wantFinding(t, db, mysqllock.SeverityInfo, c.table, c.problem)
		outside := config.Clone()
		outside.DBName = ""
		wantFinding(t, open(t, outside), mysqllock.SeverityInfo, c.table, c.problem, mysqllock.WithDatabase(config.DBName))
	}
	exec(t, db, `CREATE TRIGGER t3 AFTER DELETE ON election_records FOR EACH ROW SET @v = 1`)
	for _, f := range findings(t, db, mysqllock.SeverityInfo) {
		if strings.Contains(f.Problem, `"t3"`) {
			t.Errorf("found %v, which no lock runs", f)
		}
	}
	// An account that may not see them is told nothing, and no error.
	for _, f := range findings(t, open(t, newAccount(t, config, ordinary...)), mysqllock.SeverityInfo) {
		if strings.Contains(f.Problem, "trigger") && !server.MariaDB() || f.Severity == mysqllock.SeverityError {
			t.Errorf("found %v", f)
		}
	}
}

// What a session cuts off Preflight would take for missing.
func TestPreflightOfASessionWithASelectLimitSeesEverything(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	account := newAccount(t, config, ordinary...)
	want := findings(t, openOne(t, account, "charset=utf8mb4"), mysqllock.SeverityWarning)
	db := openOne(t, account, "charset=utf8mb4&sql_select_limit=3")
	if diff := cmp.Diff(want, findings(t, db, mysqllock.SeverityWarning)); diff != "" {
		t.Error(diff)
	}
	if limit := table(t, db, `SELECT @@sql_select_limit`); limit != "3" {
		t.Errorf("the session's limit is %s afterwards", limit)
	}
	wantFinding(t, openDSN(t, account, "sql_select_limit=0"), mysqllock.SeverityError, "sql_select_limit", "no poll finds a row")
}

func TestPreflightMeasuresTheRoundTrip(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	network := newProxy(t, config.Addr)
	db := open(t, network.config(config))
	exec(t, db, `DO 0`) // connected while the network was fast
	network.delayReplies(70 * time.Millisecond)
	wantFinding(t, db, mysqllock.SeverityError, "round-trip time", "and an operation has 100ms", mysqllock.WithOperationTimeout(100*time.Millisecond))
	wantFinding(t, db, mysqllock.SeverityWarning, "round-trip time", "and an operation has 500ms", mysqllock.WithTimings(4*time.Second, 2*time.Second, time.Second))
}

// What is the whole server's, on one of its own.
func TestPreflightFindsWhatIsWrongWithServers(t *testing.T) {
	t.Parallel()
	_, config := ownServer(t, "--innodb-flush-log-at-trx-commit=2", "--log-bin=b", "--server-id=7", "--sync-binlog=0")
	db := open(t, config)
	mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), db) })
	wantFinding(t, db, mysqllock.SeverityWarning, "innodb_flush_log_at_trx_commit", "a term that was acknowledged")
	wantFinding(t, db, mysqllock.SeverityWarning, "sync_binlog", "a term that was acknowledged")
	wantFinding(t, db, mysqllock.SeverityInfo, "log_bin", "may lack the last term")

	account := open(t, newAccount(t, config, ordinary...))
	exec(t, db, `SET GLOBAL read_only = 1`)
	wantFinding(t, account, mysqllock.SeverityError, "read_only", "read-only")
	if found := findings(t, account, mysqllock.SeverityError); len(found) != 1 {
		t.Errorf("found %v", found)
	}
	exec(t, db, `SET GLOBAL read_only = 0`)
	with := config.Clone()
	with.Params = map[string]string{"timestamp": "1000000000"}
	wantFinding(t, open(t, with), mysqllock.SeverityInfo, "clock", "differs")

	exec(t, db, `SET GLOBAL binlog_format = STATEMENT`)
	wantFinding(t, open(t, config), mysqllock.SeverityWarning, "binlog_format", "STATEMENT", mysqllock.WithServerClock())
}

// Newer servers have further values.
func TestPreflightTakesAllButOffForReadOnly(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]bool{"ON": true, "1": true, "NO_LOCK": true, "NO_LOCK_NO_ADMIN": true, "OFF": false, "0": false, "": false} {
		found := mysqllock.ServerFindings(map[string]string{"read_only": value})
		if len(found) > 0 != want || want && (found[0].Severity != mysqllock.SeverityError || found[0].Subject != "read_only") {
			t.Errorf("read_only=%s: %v", value, found)
		}
	}
}

func TestPreflightSaysWhyItCanNotLook(t *testing.T) {
	t.Parallel()
	if _, err := mysqllock.Preflight(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "db is nil") {
		t.Errorf("error %v", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mustSucceed(t, "Close", listener.Close)
	config := mysql.NewConfig()
	config.Net, config.Addr, config.User, config.Passwd = "tcp", listener.Addr().String(), "u", "secret"
	_, err = mysqllock.Preflight(t.Context(), open(t, config))
	if err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), config.Addr) {
		t.Errorf("error %v", err)
	}
}
