package mysqllock_test

import (
	"context"
	"database/sql"
	"regexp"
	"strings"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// What the tables and the server say.

// table is the result of a query as text, one row a line.
func table(t testing.TB, db *sql.DB, query string, args ...any) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for rows.Next() {
		values := make([]sql.NullString, len(columns))
		pointers := make([]any, len(columns))
		for i := range values {
			pointers[i] = &values[i]
		}
		if err := rows.Scan(pointers...); err != nil {
			t.Fatal(err)
		}
		texts := make([]string, len(columns))
		for i, v := range values {
			texts[i] = v.String
			if !v.Valid {
				texts[i] = "NULL"
			}
		}
		lines = append(lines, strings.Join(texts, "|"))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// definition is all that the server knows of how the tables are defined, apart from the order of
// columns.
func definition(t testing.TB, db *sql.DB) string {
	t.Helper()
	return table(t, db, `SELECT TABLE_NAME, ENGINE, ROW_FORMAT, TABLE_COLLATION FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() ORDER BY 1`) + "\n" +
		table(t, db, `SELECT TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, IS_NULLABLE, COLUMN_DEFAULT, CHARACTER_SET_NAME, COLLATION_NAME, EXTRA, COLUMN_COMMENT`+
			` FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() ORDER BY 1, 2`) + "\n" +
		table(t, db, `SELECT TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX, COLUMN_NAME, SUB_PART, NON_UNIQUE, INDEX_TYPE`+
			` FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = DATABASE() ORDER BY 1, 2, 3`)
}

// freshDefinition is definition of a database where Migrate made the tables.
func freshDefinition(t testing.TB) string {
	t.Helper()
	db, _ := newTables(t)
	return definition(t, db)
}

func tableNames(t testing.TB, db *sql.DB) string {
	t.Helper()
	return table(t, db, `SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() ORDER BY 1`)
}

func showCreate(t testing.TB, db *sql.DB, name string) string {
	t.Helper()
	return table(t, db, "SHOW CREATE TABLE "+name)
}

// byHand splits Schema into statements as a person's script does.
func byHand() []string {
	comments := regexp.MustCompile(`(?m)^--.*\n`)
	var statements []string
	for s := range strings.SplitSeq(comments.ReplaceAllString(mysqllock.Schema, ""), ";") {
		if strings.TrimSpace(s) != "" {
			statements = append(statements, s)
		}
	}
	return statements
}

// waiting reports whether a session executes, or waits to execute, a statement that begins with
// prefix and has a text, such as an election's name, in it.
func waiting(t testing.TB, db *sql.DB, prefix, text string) bool {
	t.Helper()
	return table(t, db, `SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE ? AND INFO LIKE ?`, prefix+"%", "%"+text+"%") != "0"
}

// v0Table is what the AutoMigrate of v0 made; the table's options follow.
const v0Table = "CREATE TABLE election_records (id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT, election_name VARCHAR(256) NULL," +
	" leader_name VARCHAR(256) NULL, last_update DATETIME(3) NULL, PRIMARY KEY (id)) "

func insertV0(t testing.TB, db *sql.DB, id int, election, leader, update any) {
	t.Helper()
	exec(t, db, "INSERT INTO election_records (id, election_name, leader_name, last_update) VALUES (?, ?, ?, ?)", id, election, leader, update)
}

// tableRow is what the table says of an election.
type tableRow struct {
	Holder, UID string
	Version     int64
	LastUpdate  string
	Transitions int
}

func readRow(t testing.TB, db *sql.DB, election string) (r tableRow) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT leader_name, leader_uid, version, CAST(last_update AS CHAR), leader_transitions`+
		` FROM election_records WHERE election_name = ?`, election).Scan(&r.Holder, &r.UID, &r.Version, &r.LastUpdate, &r.Transitions)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// holderOf is the holder that a new candidate would see. It may be called from a callback.
func holderOf(t testing.TB, db *sql.DB, election string) (holder string) {
	t.Helper()
	err := db.QueryRowContext(context.Background(), `SELECT leader_name FROM election_records WHERE election_name = ?`, election).Scan(&holder)
	if err != nil {
		t.Errorf("who holds %s: %v", election, err)
	}
	return holder
}

func versionOf(t testing.TB, db *sql.DB, election string) (version int64) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT version FROM election_records WHERE election_name = ?`, election).Scan(&version)
	if err != nil {
		t.Fatal(err)
	}
	return version
}

func tokenOf(t testing.TB, db *sql.DB, election string) (token int64) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT fencing_token FROM election_fences WHERE election_name = ?`, election).Scan(&token)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// storedFence is what the table says of the newest term.
func storedFence(t testing.TB, db *sql.DB, election string) (token int64, uid string) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT fencing_token, leader_uid FROM election_fences WHERE election_name = ?`, election).Scan(&token, &uid)
	if err != nil {
		t.Fatal(err)
	}
	return token, uid
}

// usurp makes somebody else the holder, as a candidate would do that the elector can't see.
func usurp(t testing.TB, db *sql.DB, election string) {
	t.Helper()
	exec(t, db, `UPDATE election_records SET leader_name = 'usurper', leader_uid = 'other', version = version + 1 WHERE election_name = ?`, election)
}

// countSessions counts the server's sessions.
func countSessions(t testing.TB, db *sql.DB, condition string, args ...any) (n int) {
	t.Helper()
	table := "performance_schema.processlist"
	if server.MariaDB() {
		table = "information_schema.PROCESSLIST"
	}
	if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM `+table+` WHERE `+condition, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// sessions counts those of one user.
func sessions(ctx context.Context, t testing.TB, admin *sql.DB, user string) int {
	t.Helper()
	return len(statementsOf(ctx, t, admin, user))
}

// statementsOf returns what each session of a user is executing; "" for nothing.
func statementsOf(ctx context.Context, t testing.TB, admin *sql.DB, user string) (statements []string) {
	t.Helper()
	rows, err := admin.QueryContext(ctx, `SHOW FULL PROCESSLIST`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	values := make([]sql.NullString, len(columns))
	fields := make([]any, len(columns))
	for i := range values {
		fields[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(fields...); err != nil {
			t.Fatal(err)
		}
		session := map[string]string{}
		for i, column := range columns {
			session[column] = values[i].String
		}
		if session["User"] == user {
			statements = append(statements, session["Info"])
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return statements
}

type rowQueryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// sessionID is that of a connection, or of the one that a pool gives.
func sessionID(t testing.TB, q rowQueryer) (id int64) {
	t.Helper()
	if err := q.QueryRowContext(t.Context(), `SELECT CONNECTION_ID()`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}
