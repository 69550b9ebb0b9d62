package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"regexp"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// hookedPool is a pool with Open's interpolation and an ear: before is called with each statement,
// and an error that it returns is the statement's.
func hookedPool(t testing.TB, config *mysql.Config, before func(query string, args []driver.NamedValue) error) *sql.DB {
	t.Helper()
	config = config.Clone()
	config.InterpolateParams = true
	connector, err := mysql.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(hookedConnector{connector, before})
	t.Cleanup(func() { _ = db.Close() })
	return db
}

type hookedConnector struct {
	driver.Connector
	before func(string, []driver.NamedValue) error
}

func (c hookedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return hookedConn{conn.(driversConn), c.before}, nil
}

// driversConn is what database/sql uses of a connection of the driver.
type driversConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

type hookedConn struct {
	driversConn
	before func(string, []driver.NamedValue) error
}

func (c hookedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.before(query, args); err != nil {
		return nil, err
	}
	return c.driversConn.ExecContext(ctx, query, args)
}

func (c hookedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.before(query, args); err != nil {
		return nil, err
	}
	return c.driversConn.QueryContext(ctx, query, args)
}

// newUser makes an account with the given privileges, each written as in "SELECT, INSERT ON
// election_records", in the database of config.
func newUser(t testing.TB, config *mysql.Config, grants ...string) *mysql.Config {
	t.Helper()
	admin := open(t, config)
	user := "u_" + strings.TrimPrefix(config.DBName, "mysqllock_test_")
	exec(t, admin, "CREATE USER '"+user+"'@'%' IDENTIFIED BY 'pass word'")
	t.Cleanup(func() {
		if _, err := admin.ExecContext(context.Background(), "DROP USER '"+user+"'@'%'"); err != nil {
			t.Error(err)
		}
	})
	for _, grant := range grants {
		exec(t, admin, "GRANT "+strings.Replace(grant, " ON ", " ON "+config.DBName+".", 1)+" TO '"+user+"'@'%'")
	}
	c := config.Clone()
	c.User, c.Passwd = user, "pass word"
	return c
}

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
