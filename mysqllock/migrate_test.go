package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// sessionStatus is one of the session's counters, which other tests don't touch.
func sessionStatus(t testing.TB, db *sql.DB, name string) string {
	t.Helper()
	return table(t, db, "SHOW SESSION STATUS LIKE '"+name+"'")
}

// An older library beside this one: its tables lack the columns until somebody migrates, and then
// its statements go on working.
func TestMigrateAddsColumnsUnderCandidatesOfAnEarlierVersion(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	exec(t, db, `ALTER TABLE election_records DROP COLUMN ready, DROP COLUMN step_down_uid`)
	const insert = `INSERT INTO election_records (leader_name, leader_uid, lease_duration_seconds, leader_transitions, strategy, preferred_holder, version, last_update, server, election_name)` +
		` SELECT 'old', 'old', 15, 0, '', '', 1, UTC_TIMESTAMP(6), '', ? FROM DUAL`
	exec(t, db, insert, "e")
	lock := newLock(t, db, "e", "new")
	if err := get(t.Context(), lock)(); err == nil || !strings.Contains(err.Error(), "earlier version do: run mysqllock.Migrate") {
		t.Errorf("before Migrate: %v", err)
	}
	findings, err := mysqllock.Preflight(t.Context(), db)
	if err != nil || !strings.Contains(findingsText(findings), "earlier version") {
		t.Errorf("Preflight: %v, %v", findings, err)
	}
	tx, err := db.BeginTx(t.Context(), nil) // somebody's forgotten one, on the table
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), `SELECT COUNT(*) FROM election_records`); err != nil {
		t.Fatal(err)
	}
	migrated := make(chan error, 2)
	for range 2 {
		go func() { migrated <- mysqllock.Migrate(t.Context(), db) }()
	}
	const renew = `UPDATE election_records SET version = version + 1, last_update = UTC_TIMESTAMP(6) WHERE election_name = 'e' AND leader_uid = 'old'`
	// On MySQL the change waits for a second, and a renewal behind it; the next one gets through.
	for failed, i := 0, 0; i < 10; i++ {
		if _, err := db.ExecContext(t.Context(), renew); err == nil {
			failed = 0
			continue
		}
		if failed++; failed > 1 {
			t.Fatalf("%d renewals in a row failed while Migrate waited", failed)
		}
	}
	mustSucceed(t, "the rollback", tx.Rollback)
	for range 2 {
		if err := <-migrated; err != nil {
			t.Error(err)
		}
	}
	exec(t, db, renew)
	exec(t, db, insert, "another")
	if e := getElection(t, db, "another"); !e.Ready || e.StepDownRequested {
		t.Errorf("a row of the older library: %+v", e)
	}
	mustSucceed(t, "Get", get(t.Context(), lock))
	mustSucceed(t, "asking a leader that ignores it", func() error { return mysqllock.RequestStepDown(t.Context(), db, "e") })
	exec(t, db, renew)
}

func findingsText(findings []mysqllock.Finding) string {
	var texts []string
	for _, f := range findings {
		texts = append(texts, f.String())
	}
	return strings.Join(texts, "\n")
}

func TestMigrateMakesTheTablesOnceAndThenNeedsOnlyTheLocksPrivileges(t *testing.T) {
	t.Parallel()
	config := newConfig(t)
	admin := open(t, config)
	if err := mysqllock.Migrate(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	if got := tableNames(t, admin); got != "election_fences\nelection_records" {
		t.Fatalf("tables: %s", got)
	}
	before := table(t, admin, `SELECT TABLE_NAME, CREATE_TIME FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() ORDER BY 1`)

	db := open(t, newAccount(t, config, "SELECT, INSERT, UPDATE ON {db}.election_records", "SELECT, INSERT, UPDATE ON {db}.election_fences"))
	db.SetMaxOpenConns(1)
	session := table(t, db, "SELECT CONNECTION_ID(), @@lock_wait_timeout")
	for range 2 {
		if err := mysqllock.Migrate(t.Context(), db); err != nil {
			t.Fatal(err)
		}
	}
	if got := table(t, db, "SELECT CONNECTION_ID(), @@lock_wait_timeout"); got != session {
		t.Errorf("the session was %s and is %s: counters say nothing, and a setting may have leaked", session, got)
	}
	for _, counter := range []string{"Com_create_table", "Com_alter_table", "Com_lock_tables", "Com_insert", "Com_update", "Com_delete"} {
		if got := sessionStatus(t, db, counter); got != counter+"|0" {
			t.Errorf("Migrate of current tables sent something: %s", got)
		}
	}
	if got := table(t, admin, `SELECT TABLE_NAME, CREATE_TIME FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() ORDER BY 1`); got != before {
		t.Errorf("the tables were made at %s, now at %s", before, got)
	}
	lock := newLock(t, db, "e", "a")
	if err := lock.Create(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
}

func TestMigrateWithoutCreateSaysWhatToGrant(t *testing.T) {
	t.Parallel()
	config := newConfig(t)
	db := open(t, newAccount(t, config, "SELECT, INSERT, UPDATE ON {db}.*"))
	err := mysqllock.Migrate(t.Context(), db)
	var denied *mysql.MySQLError
	if !errors.As(err, &denied) || denied.Number != 1142 {
		t.Fatalf("not the server's refusal: %v", err)
	}
	for _, part := range []string{
		"mysqllock: migrate: Error 1142 (42000): CREATE command denied to user 't_", "election_records",
		"; the lock needs SELECT, INSERT and UPDATE on election_records and election_fences: GRANT them (Migrate also needs CREATE, ",
	} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	if got := tableNames(t, open(t, config)); got != "" {
		t.Errorf("tables: %s", got)
	}
}

func TestMigrateOfTwentyReplicasAtOnce(t *testing.T) {
	t.Parallel()
	want := freshDefinition(t)
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, db *sql.DB)
		rows    string
	}{
		{"empty database", func(*testing.T, *sql.DB) {}, "0"},
		{"table of v0", func(t *testing.T, db *sql.DB) {
			t.Helper()
			exec(t, db, v0Table+"DEFAULT CHARACTER SET latin1")
			for i := range 200 {
				insertV0(t, db, i+1, fmt.Sprint("e", i%20), fmt.Sprint("candidate", i), fmt.Sprintf("2024-05-01 10:00:%02d", i%60))
			}
		}, "20"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := newConfig(t)
			admin := open(t, config)
			c.prepare(t, admin)
			errs := make([]error, 20)
			start := make(chan struct{})
			var done sync.WaitGroup
			for i := range errs {
				db := open(t, config)
				if i%2 == 1 {
					db = openDSN(t, config, "")
				}
				if err := db.PingContext(t.Context()); err != nil {
					t.Fatal(err)
				}
				done.Add(1)
				go func() {
					defer done.Done()
					<-start
					errs[i] = mysqllock.Migrate(t.Context(), db)
				}()
			}
			close(start)
			done.Wait()
			for i, err := range errs {
				if err != nil {
					t.Errorf("replica %d: %v", i, err)
				}
			}
			if diff := cmp.Diff(want, definition(t, admin)); diff != "" {
				t.Error(diff)
			}
			if got := table(t, admin, "SELECT COUNT(*) FROM election_records"); got != c.rows {
				t.Errorf("%s rows, not %s", got, c.rows)
			}
		})
	}
}

func TestMigrateFindsTheTablesByDatabase(t *testing.T) {
	t.Parallel()
	for _, suffix := range []string{" `o'dd\" n@me.u", "_ünï"} {
		t.Run(suffix, func(t *testing.T) {
			t.Parallel()
			testMigrateFindsTheTablesByDatabase(t, suffix)
		})
	}
}

func testMigrateFindsTheTablesByDatabase(t *testing.T, suffix string) {
	t.Helper()
	config := newConfig(t)
	admin := open(t, config)
	name := config.DBName + suffix
	quoted := "`" + strings.ReplaceAll(name, "`", "``") + "`"
	exec(t, admin, "CREATE DATABASE "+quoted)
	t.Cleanup(func() {
		if _, err := admin.ExecContext(context.Background(), "DROP DATABASE "+quoted); err != nil {
			t.Error(err)
		}
	})
	want := freshDefinition(t)
	elsewhere := config.Clone()
	elsewhere.DBName = ""
	there := config.Clone()
	there.DBName = name
	for _, v0 := range []bool{false, true} {
		if v0 {
			exec(t, admin, "DROP TABLE "+quoted+".election_records, "+quoted+".election_fences")
			exec(t, open(t, there), v0Table)
			insertV0(t, open(t, there), 1, "e", "a", "2024-05-01 10:00:00")
		}
		if err := mysqllock.Migrate(t.Context(), open(t, elsewhere), mysqllock.WithDatabase(name)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, definition(t, open(t, there))); diff != "" {
			t.Error(diff)
		}
	}
	// The connection's own database is another.
	if err := mysqllock.Migrate(t.Context(), admin, mysqllock.WithDatabase(name)); err != nil {
		t.Fatal(err)
	}
	if got := tableNames(t, admin); got != "" {
		t.Errorf("tables in the wrong database: %s", got)
	}
	lock := newLock(t, open(t, elsewhere), "f", "a", mysqllock.WithDatabase(name))
	if err := lock.Create(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
}

func TestMigrateWorksWithEverySQLMode(t *testing.T) {
	t.Parallel()
	want := freshDefinition(t)
	modes := []string{"", "ANSI,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH", "TRADITIONAL,NO_AUTO_VALUE_ON_ZERO,HIGH_NOT_PRECEDENCE"}
	if server.MariaDB() {
		modes[1] = strings.TrimSuffix(modes[1], ",PAD_CHAR_TO_FULL_LENGTH")
		modes = append(modes, "ORACLE,EMPTY_STRING_IS_NULL")
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			config := newConfig(t)
			config.Params = map[string]string{"sql_mode": "'" + mode + "'"}
			db := open(t, config)
			for _, v0 := range []bool{false, true} {
				if v0 {
					plain := config.Clone()
					plain.Params = nil
					exec(t, db, "DROP TABLE election_records")
					exec(t, open(t, plain), v0Table)
					insertV0(t, open(t, plain), 1, "e", "a", "2024-05-01 10:00:00")
					insertV0(t, open(t, plain), 2, "f", nil, nil)
				}
				for range 2 {
					if err := mysqllock.Migrate(t.Context(), db); err != nil {
						t.Fatal(err)
					}
				}
				if diff := cmp.Diff(want, definition(t, open(t, config))); diff != "" {
					t.Error(diff)
				}
			}
			found, err := mysqllock.ListElections(t.Context(), db)
			if err != nil || len(found) != 2 || found[0].Holder != "a" || found[1].Holder != "" {
				t.Error(found, err)
			}
		})
	}
}

func TestMigrateSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	err := mysqllock.Migrate(t.Context(), nil)
	if want := "mysqllock: migrate: db is nil; open a pool first, as with mysqllock.Open"; err == nil || err.Error() != want {
		t.Errorf("%v, not %q", err, want)
	}
	config := newConfig(t)
	config.DBName = ""
	err = mysqllock.Migrate(t.Context(), open(t, config))
	if want := "mysqllock: migrate: the connection has no database; name one in the DSN (MYSQL_DBNAME) or by WithDatabase"; err == nil || err.Error() != want {
		t.Errorf("%v, not %q", err, want)
	}
	err = mysqllock.Migrate(t.Context(), open(t, config), mysqllock.WithDatabase("mysqllock_is_not_there"))
	if err == nil || !strings.HasSuffix(err.Error(), "; create the database and name it in the DSN (MYSQL_DBNAME) or by WithDatabase") {
		t.Error(err)
	}
	err = mysqllock.Migrate(t.Context(), open(t, config), mysqllock.WithDatabase(""))
	if want := "mysqllock: migrate: WithDatabase is empty; give it a name"; err == nil || err.Error() != want {
		t.Errorf("%v, not %q", err, want)
	}
}

// A description takes three queries. Another replica's upgrade between two of them made half of it
// v0's and half of it current: "not this library's".
func TestMigrateIsNotConfusedByAnUpgradeWhileItLooks(t *testing.T) {
	t.Parallel()
	for _, between := range []string{"information_schema.COLUMNS", "information_schema.STATISTICS"} {
		t.Run(between, func(t *testing.T) {
			config := newConfig(t)
			plain := open(t, config)
			exec(t, plain, v0Table+"DEFAULT CHARACTER SET latin1")
			insertV0(t, plain, 1, "e", "a", "2024-05-01 11:00:00")
			var once sync.Once
			upgraded := false
			db := hookedPool(t, config, func(query string, _ []driver.NamedValue) error {
				if strings.Contains(query, between) {
					once.Do(func() {
						upgraded = true
						if err := mysqllock.Migrate(t.Context(), plain); err != nil {
							t.Error(err)
						}
					})
				}
				return nil
			})
			if err := mysqllock.Migrate(t.Context(), db); err != nil {
				t.Error(err)
			}
			if !upgraded {
				t.Errorf("no query has %q, so that this shows nothing", between)
			}
		})
	}
}

// Another replica's ALTER may take longer than Open's lock_wait_timeout of 1 s.
func TestMigrateWaitsForAnotherReplica(t *testing.T) {
	t.Parallel()
	for _, parameters := range []string{"lock_wait_timeout=1", "lock_wait_timeout=100"} {
		t.Run(parameters, func(t *testing.T) {
			config := newConfig(t)
			admin := open(t, config)
			exec(t, admin, v0Table+"DEFAULT CHARACTER SET latin1")
			other, err := admin.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if _, err := other.ExecContext(t.Context(), "LOCK TABLES election_records WRITE"); err != nil {
				t.Fatal(err)
			}
			var attempts atomic.Int64
			name, value, _ := strings.Cut(parameters, "=")
			config.Params = map[string]string{name: value}
			db := hookedPool(t, config, func(query string, _ []driver.NamedValue) error {
				if strings.HasPrefix(query, "LOCK TABLES") {
					attempts.Add(1)
				}
				return nil
			})
			done := make(chan error, 1)
			go func() { done <- mysqllock.Migrate(t.Context(), db) }()
			eventually(t, 20*time.Second, "a second attempt", func() bool { return attempts.Load() >= 2 || len(done) > 0 })
			if _, err := other.ExecContext(t.Context(), "UNLOCK TABLES"); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if got := table(t, db, "SELECT @@lock_wait_timeout"); got != value {
				t.Errorf("Migrate left a lock_wait_timeout of %s in the pool, not %s", got, value)
			}
		})
	}
}

// A session that waits for a table keeps every later one from it: one that Migrate abandoned would
// stop all candidates until the table is free.
func TestMigrateThatIsCancelledLeavesNoLockBehind(t *testing.T) {
	t.Parallel()
	plain := func(t testing.TB, config *mysql.Config) *sql.DB {
		t.Helper()
		return openDSN(t, config, "")
	}
	for _, c := range []struct {
		name   string
		pool   func(testing.TB, *mysql.Config) *sql.DB
		holds  []string
		others string // what others could do beside the holder
	}{
		{"upgrade by Open's pool", open, []string{"BEGIN", "SELECT * FROM election_records"}, "INSERT INTO election_records (election_name) VALUES ('f')"},
		{"upgrade by a plain pool", plain, []string{"BEGIN", "SELECT * FROM election_records"}, "INSERT INTO election_records (election_name) VALUES ('f')"},
		{"a person looks at the table", plain, []string{"LOCK TABLES election_records READ"}, "SELECT * FROM election_records"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := newConfig(t)
			admin := openDSN(t, config, "")
			exec(t, admin, v0Table+"DEFAULT CHARACTER SET latin1")
			insertV0(t, admin, 1, "e", "a", "2024-05-01 11:00:00")
			holder, err := admin.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Close()
			for _, statement := range c.holds {
				if _, err := holder.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			db := c.pool(t, config)
			done := make(chan error, 1)
			go func() { done <- mysqllock.Migrate(ctx, db) }()
			eventually(t, 20*time.Second, "Migrate waits", func() bool {
				return table(t, admin, `SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'LOCK TABLES%' AND DB = ?`, config.DBName) != "0" || len(done) > 0
			})
			cancelled := time.Now()
			cancel()
			err = <-done
			if !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "mysqllock: migrate: ") {
				t.Errorf("not an error about the context: %v", err)
			}
			if took := time.Since(cancelled); took > 3*time.Second {
				t.Errorf("returned %v after the end of its context", took)
			}
			// The holder still holds: others must not stand in line behind the dead.
			ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := admin.ExecContext(ctx, c.others); err != nil {
				t.Errorf("another session can't use the table: %v", err)
			}
			for _, statement := range []string{"ROLLBACK", "UNLOCK TABLES"} {
				if _, err := holder.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			if err := mysqllock.Migrate(t.Context(), db); err != nil {
				t.Error(err)
			}
		})
	}
}

// A replica may be stopped at any moment of an upgrade.
func TestMigrateThatIsInterruptedAnywhereLosesNothing(t *testing.T) {
	t.Parallel()
	config := newConfig(t)
	admin := open(t, config)
	upgrade := 0 // statements
	for last, n := false, 1; !last; n++ {
		exec(t, admin, "DROP TABLE IF EXISTS election_records, election_fences")
		exec(t, admin, v0Table+"DEFAULT CHARACTER SET latin1")
		insertV0(t, admin, 1, "e", "a", "2024-05-01 11:00:00")
		insertV0(t, admin, 2, "e", "b", "2024-05-01 10:00:00")
		insertV0(t, admin, 3, "E", "c", "2024-05-01 10:00:00")

		ctx, cancel := context.WithCancel(t.Context())
		statements, met := 0, ""
		db := hookedPool(t, config, func(query string, _ []driver.NamedValue) error {
			if statements++; statements == n {
				met = query
				cancel()
				if n%2 == 0 {
					return driver.ErrBadConn // what the driver says where the end met the statement before
				}
			}
			return nil
		})
		err := mysqllock.Migrate(ctx, db)
		cancel()
		switch {
		case met == "":
			last, upgrade = true, statements
			if err != nil {
				t.Error(err)
			}
		case err == nil && strings.HasPrefix(met, "UNLOCK TABLES"), errors.Is(err, context.Canceled):
		default:
			t.Errorf("cancelled at %q: %v", met, err)
		}
		_ = db.Close()

		for range 2 {
			if err := mysqllock.Migrate(t.Context(), admin); err != nil {
				t.Fatalf("after an end at %q: %v", met, err)
			}
		}
		if got := table(t, admin, "SELECT election_name, leader_name FROM election_records ORDER BY 1"); got != "E|c\ne|a" {
			t.Errorf("after an end at %q: %s", met, got)
		}
	}
	if upgrade < 10 {
		t.Errorf("an upgrade is %d statements, so that this shows little", upgrade)
	}
}
