package mysqllock_test

import (
	"database/sql/driver"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// This file is about what Migrate takes for its own table, and what it refuses.

func TestMigrateRunsSchema(t *testing.T) {
	t.Parallel()
	var sent []string
	config := newConfig(t)
	db := hookedPool(t, config, func(query string, _ []driver.NamedValue) error {
		if strings.HasPrefix(query, "CREATE") {
			sent = append(sent, query)
		}
		return nil
	})
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	want := byHand()
	for i := range want {
		want[i] = strings.TrimSpace(want[i])
	}
	if !slices.Equal(sent, want) {
		t.Error(cmp.Diff(want, sent))
	}
}

// statementOf is the one of Schema that makes a table, with the lines of some columns, or of its
// "PRIMARY", replaced: "" leaves one out.
func statementOf(t testing.TB, name string, lines map[string]string) string {
	t.Helper()
	for _, s := range byHand() {
		if !strings.Contains(s, "EXISTS "+name+" ") {
			continue
		}
		for column, line := range lines {
			pattern := regexp.MustCompile(`(?m)^ +` + column + ` .*?(,?)\n`)
			if !pattern.MatchString(s) {
				t.Fatalf("Schema has no line for %s", column)
			}
			if line != "" {
				line += "$1\n"
			}
			s = pattern.ReplaceAllString(s, line)
		}
		return s
	}
	t.Fatalf("Schema has no table %s", name)
	return ""
}

func TestMigrateFindsTablesThatSchemaMadeByHandCurrent(t *testing.T) {
	t.Parallel()
	fresh, config := newTables(t)
	want := definition(t, fresh)
	for name, table := range map[string]string{"election_records": mysqllock.RecordsTable, "election_fences": mysqllock.FencesTable} {
		got, err := mysqllock.DescribeTable(t.Context(), fresh, config.DBName, name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(table, got); diff != "" {
			t.Errorf("schema.go and schema.sql differ about %s: %s", name, diff)
		}
	}
	for _, c := range []struct {
		name, parameters string
		statements       []string
	}{
		{"split at semicolons", "", byHand()},
		{"as one", "multiStatements=true", []string{mysqllock.Schema}},
		{"twice", "multiStatements=true", []string{mysqllock.Schema, mysqllock.Schema}},
		// What the tables are must not depend on where they are made.
		{"in a latin1 session without strict mode", "multiStatements=true&charset=latin1&sql_mode=%27%27", []string{mysqllock.Schema}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := newConfig(t)
			db := openDSN(t, config, c.parameters)
			for _, statement := range c.statements {
				exec(t, db, statement)
			}
			if diff := cmp.Diff(want, definition(t, db)); diff != "" {
				t.Error(diff)
			}
			restricted := open(t, newAccount(t, config, "SELECT, INSERT, UPDATE ON {db}.*"))
			if err := mysqllock.Migrate(t.Context(), restricted); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMigrateAcceptsHandMadeTablesThatHoldMore(t *testing.T) {
	t.Parallel()
	config := newConfig(t)
	db := open(t, config)
	exec(t, db, statementOf(t, "election_records", map[string]string{
		"election_name":          "election_name VARCHAR(300) NOT NULL",
		"leader_name":            "leader_name VARCHAR(500) NOT NULL DEFAULT 'nobody'",
		"leader_uid":             "leader_uid VARCHAR(255) NOT NULL",
		"lease_duration_seconds": "lease_duration_seconds BIGINT NOT NULL",
		"leader_transitions":     "leader_transitions INT NOT NULL",
		"version":                "version BIGINT NOT NULL, note VARCHAR(20) NULL, team INT NOT NULL DEFAULT 7, serial BIGINT NOT NULL AUTO_INCREMENT, KEY (serial)",
	}))
	exec(t, db, statementOf(t, "election_fences", map[string]string{
		"leader_uid": "leader_uid VARCHAR(64) NOT NULL, note VARCHAR(20) NULL",
	}))
	before := showCreate(t, db, "election_records") + showCreate(t, db, "election_fences")
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, showCreate(t, db, "election_records")+showCreate(t, db, "election_fences")); diff != "" {
		t.Error(diff)
	}
	lock := newLock(t, db, "e", "a")
	if err := lock.Create(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if err := lock.Update(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
}

func TestMigrateRefusesATableThatIsNotItsOwnAndChangesNothing(t *testing.T) {
	t.Parallel()
	const utf8mb4 = " CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL"
	for _, c := range []struct {
		name, table string
		statements  []string
		differences string
	}{
		{
			"a name's collation", "election_records",
			[]string{statementOf(t, "election_records", map[string]string{"election_name": "election_name VARCHAR(255) COLLATE utf8mb4_general_ci NOT NULL"})},
			"election_name has the collation utf8mb4_general_ci, not utf8mb4_bin",
		},
		{
			"the table's collation", "election_fences",
			[]string{strings.ReplaceAll(statementOf(t, "election_fences", nil), "utf8mb4_bin", "utf8mb4_general_ci")},
			"election_name has the collation utf8mb4_general_ci, not utf8mb4_bin, leader_uid has the collation utf8mb4_general_ci, not utf8mb4_bin",
		},
		{
			"engine and width", "election_records",
			[]string{strings.Replace(statementOf(t, "election_records", map[string]string{"election_name": "election_name VARCHAR(240) NOT NULL"}), "InnoDB", "MyISAM", 1)},
			"its engine is MyISAM, not InnoDB, election_name is varchar(240), not varchar(255)",
		},
		{
			"a missing column", "election_records",
			[]string{statementOf(t, "election_records", map[string]string{"strategy": ""})},
			"it has no column strategy",
		},
		{
			"types", "election_records",
			[]string{statementOf(t, "election_records", map[string]string{
				"last_update": "last_update TIMESTAMP(6) NOT NULL", "renew_time": "renew_time DATETIME(6) NOT NULL",
				"acquire_time": "acquire_time DATETIME NULL", "version": "version INT NOT NULL",
			})},
			"last_update is timestamp, not datetime, acquire_time is datetime(0), not datetime(6), renew_time is NOT NULL, version is int, not bigint",
		},
		{
			"a further column that every INSERT must fill", "election_fences",
			[]string{statementOf(t, "election_fences", map[string]string{"leader_uid": "leader_uid VARCHAR(64) NOT NULL, owner VARCHAR(20) NOT NULL"})},
			"its column owner has no default",
		},
		{
			"another primary key", "election_records",
			[]string{statementOf(t, "election_records", map[string]string{"PRIMARY": "PRIMARY KEY (election_name, leader_name)"})},
			"its primary key is (election_name, leader_name), not (election_name)",
		},
		{
			"no primary key", "election_fences",
			[]string{statementOf(t, "election_fences", map[string]string{"PRIMARY": "KEY (election_name)"})},
			"its primary key is (), not (election_name)",
		},
		{
			// Two names that begin alike would be one election.
			"the beginning of a name as primary key", "election_records",
			[]string{statementOf(t, "election_records", map[string]string{"PRIMARY": "PRIMARY KEY (election_name(10))"})},
			"its primary key is (election_name(10)), not (election_name)",
		},
		{
			"a view", "election_fences",
			[]string{
				strings.Replace(statementOf(t, "election_fences", nil), "election_fences", "fences", 1),
				"CREATE VIEW election_fences AS SELECT * FROM fences",
			},
			"its engine is VIEW, not InnoDB, its primary key is (), not (election_name)",
		},
		{
			"somebody's election_records", "election_records",
			[]string{"CREATE TABLE election_records (ballot INT PRIMARY KEY, version VARCHAR(10)" + utf8mb4 + ", election_name INT NULL)"},
			"election_name is int, not varchar, it has no column leader_name, it has no column last_update, it has no column leader_uid," +
				" it has no column lease_duration_seconds, it has no column acquire_time, it has no column renew_time, it has no column leader_transitions," +
				" it has no column strategy, it has no column preferred_holder, it has no column server, version is varchar, not bigint, it has no column ready, it has no column step_down_uid," +
				" its column ballot has no default, its primary key is (ballot), not (election_name)",
		},
		{
			"somebody's election_fences", "election_fences",
			[]string{"CREATE TABLE election_fences (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, election_name VARCHAR(256), leader_name VARCHAR(256), last_update DATETIME(3))"},
			"election_name has the collation ?, not utf8mb4_bin, it has no column fencing_token, it has no column leader_uid, it has no column guards," +
				" its primary key is (id), not (election_name)",
		},
		{
			// Upgrading one and refusing the other would change something.
			"somebody's election_fences beside a table of v0", "election_fences",
			[]string{v0Table, "INSERT INTO election_records (election_name) VALUES ('e'), ('e')", "CREATE TABLE election_fences (height INT NULL)"},
			"it has no column election_name, it has no column fencing_token, it has no column leader_uid, it has no column guards, its primary key is (), not (election_name)",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := newConfig(t)
			db := open(t, config)
			for _, statement := range c.statements {
				exec(t, db, statement)
			}
			state := func() string {
				state := ""
				for name := range strings.SplitSeq(tableNames(t, db), "\n") {
					state += showCreate(t, db, name) + "\n" + table(t, db, "SELECT * FROM "+name) + "\n"
				}
				return state
			}
			before := state()
			err := mysqllock.Migrate(t.Context(), db)
			if err == nil {
				t.Fatal("accepted")
			}
			collation := table(t, db, "SELECT @@collation_database")
			want := "mysqllock: migrate: there is a table " + c.table + " that is not this library's: " + strings.ReplaceAll(c.differences, "?", collation) +
				"; rename it, or have the tables in another database by WithDatabase; nothing was changed"
			if diff := cmp.Diff(want, err.Error()); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(before, state()); diff != "" {
				t.Errorf("changed: %s", diff)
			}
		})
	}
}
