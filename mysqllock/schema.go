package mysqllock

import (
	"cmp"
	"context"
	"database/sql"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Schema is the DDL of the tables election_records and election_fences, for
// goose, Flyway or a DBA's hands. Migrate runs the same statements.
//
//go:embed schema.sql
var Schema string

// migrateTimeout bounds how long Migrate works and waits for other sessions.
const migrateTimeout = time.Minute

// Migrate makes the tables, or upgrades them in place. WithDatabase is the one
// option that it heeds.
//
//   - Tables that are there and current: it changes nothing, and needs no more
//     than the privileges that the lock itself needs.
//   - No tables: it makes them; needs CREATE.
//   - A table election_records of the earlier library (v0: id, election_name,
//     leader_name, last_update, and often many rows for one election): it keeps
//     the newest row of each election and adds the key and the columns, under
//     LOCK TABLES, so that no candidate writes meanwhile; needs ALTER, CREATE,
//     DELETE, DROP, INSERT and LOCK TABLES. Stop all candidates of v0 before:
//     what they write afterwards elects nobody. A row whose names don't fit is
//     reported, and nothing is changed.
//   - Another table of one of the two names: an error that says what differs,
//     and nothing is changed.
//
// Any number of processes may call it at once, at every start. It takes at most a
// minute, or as long as ctx lives. A table of v0 with many millions of rows may
// need more than one call: what one has deleted stays deleted.
func Migrate(ctx context.Context, db *sql.DB, opts ...Option) error {
	if db == nil {
		return &opError{op: "migrate", cause: errors.New("db is nil; open a pool first, as with mysqllock.Open")}
	}
	o, err := applyOptions(opts)
	if err != nil {
		return &opError{op: "migrate", cause: err}
	}
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()
	for {
		err := migrate(ctx, db, o.database)
		if n := number(err); n != errLockWaitTimeout && n != errDeadlock {
			if cause := ctx.Err(); err != nil && cause != nil && n == 0 && !errors.Is(err, cause) {
				// A session that ctx has ended says "bad connection" to all that
				// follows.
				err = fmt.Errorf("%w: %w", cause, err)
			}
			return wrap("migrate", "", err, db)
		}
		// Another process is at it: its locks outlive this session's short
		// lock_wait_timeout.
		select {
		case <-ctx.Done():
			return wrap("migrate", "", fmt.Errorf("%w: %w", ctx.Err(), err), db)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func migrate(ctx context.Context, db *sql.DB, database string) error {
	// One session for everything: LOCK TABLES belongs to it.
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // back to the pool; nothing to lose
	if database == "" {
		var name sql.NullString
		if err := conn.QueryRowContext(ctx, `SELECT DATABASE()`).Scan(&name); err != nil {
			return err
		}
		if name.String == "" {
			return errors.New("the connection has no database; name one in the DSN (MYSQL_DBNAME) or by WithDatabase")
		}
	}

	// Both are looked at before either is changed.
	var missing bool
	var old *table
	for _, want := range []*table{recordsTable, fencesTable} {
		have, err := find(ctx, conn, database, want)
		switch {
		case err != nil:
			return err
		case have == nil:
			missing = true
		case have.isV0():
			old = have
		}
	}
	if old == nil && !missing {
		return nil
	}

	// A statement that ctx abandons goes on waiting at the server, and nobody
	// may use the tables that it waits for: for a year by default. With this it
	// gives up, and Migrate tries again as long as ctx lives. The session is
	// discarded afterwards, not to come back to the pool with other settings.
	defer discard(conn)
	if _, err := conn.ExecContext(ctx, migrateSessionSQL); err != nil {
		return err
	}
	if old != nil {
		if err := upgrade(ctx, conn, database); err != nil {
			return err
		}
	}
	for _, statement := range schemaStatements(database) {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	for _, want := range []*table{recordsTable, fencesTable} {
		have, err := find(ctx, conn, database, want)
		if err != nil {
			return err
		}
		if have == nil || have.isV0() {
			return fmt.Errorf("the table %s was made, but is not there; another session dropped or replaced it", want.name)
		}
	}
	return nil
}

// schemaStatements are those of Schema with the database's name put in, if it
// has one.
func schemaStatements(database string) []string {
	var statements []string
	var text strings.Builder
	for line := range strings.Lines(Schema) {
		if !strings.HasPrefix(line, "--") {
			text.WriteString(line)
		}
	}
	for s := range strings.SplitSeq(text.String(), ";") {
		if s = strings.TrimSpace(s); s != "" {
			statements = append(statements, strings.Replace(s, "EXISTS ", "EXISTS "+qualifier(database), 1))
		}
	}
	return statements
}

// table is what matters of a table's definition.
type table struct {
	name       string
	engine     string
	columns    []column
	primaryKey []string
}

type column struct {
	name      string
	dataType  string // as information_schema has it: varchar, int, bigint, datetime
	size      int64  // characters of a varchar, digits of a datetime's fraction
	nullable  bool
	optional  bool   // may be left out of an INSERT
	collation string // of a varchar
}

func varchar(name string, size int64) column {
	return column{name: name, dataType: "varchar", size: size, collation: "utf8mb4_bin"}
}

// recordsTable and fencesTable are schema.sql, as describe would find it.
var (
	recordsTable = &table{
		name:   "election_records",
		engine: "InnoDB",
		columns: []column{
			varchar("election_name", 255),
			varchar("leader_name", 255),
			{name: "last_update", dataType: "datetime", size: 6},
			varchar("leader_uid", 64),
			{name: "lease_duration_seconds", dataType: "int"},
			{name: "acquire_time", dataType: "datetime", size: 6, nullable: true},
			{name: "renew_time", dataType: "datetime", size: 6, nullable: true},
			{name: "leader_transitions", dataType: "int"},
			varchar("strategy", 255),
			varchar("preferred_holder", 255),
			varchar("server", 255),
			{name: "version", dataType: "bigint"},
		},
		primaryKey: []string{"election_name"},
	}
	fencesTable = &table{
		name:   "election_fences",
		engine: "InnoDB",
		columns: []column{
			varchar("election_name", 255),
			{name: "fencing_token", dataType: "bigint"},
			varchar("leader_uid", 64),
			{name: "guards", dataType: "bigint"},
		},
		primaryKey: []string{"election_name"},
	}
)

// queryer is what describe needs: a session or a pool.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

const (
	// migrateSessionSQL bounds how long the session's statements wait for a
	// table, and lifts what would refuse them or hide rows from them.
	migrateSessionSQL = `SET SESSION lock_wait_timeout = 1, sql_safe_updates = 0, sql_select_limit = 18446744073709551615`

	// inDatabase: see eachOfTable.
	inDatabase = `TABLE_SCHEMA = {database}`
	// everyRow is as many as there are, whatever sql_select_limit says.
	everyRow = ` LIMIT 18446744073709551615`

	// tableSQL: parameters (database, table); a row if it exists.
	tableSQL = `SELECT COALESCE(ENGINE, TABLE_TYPE) FROM information_schema.TABLES WHERE ` + inDatabase + ` AND TABLE_NAME = ?` + everyRow
	// columnsSQL: parameters (database, table); a row per column.
	columnsSQL = `SELECT COLUMN_NAME, DATA_TYPE, COALESCE(CHARACTER_MAXIMUM_LENGTH, DATETIME_PRECISION, 0), IS_NULLABLE = 'YES',` +
		` IS_NULLABLE = 'YES' OR COLUMN_DEFAULT IS NOT NULL OR EXTRA LIKE '%auto_increment%' OR EXTRA LIKE '%GENERATED%',` +
		` COLLATION_NAME` +
		` FROM information_schema.COLUMNS WHERE ` + inDatabase + ` AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION` + everyRow
	// primaryKeySQL: parameters (database, table); a row per column of the key.
	primaryKeySQL = `SELECT IF(SUB_PART IS NULL, COLUMN_NAME, CONCAT(COLUMN_NAME, '(', SUB_PART, ')')) FROM information_schema.STATISTICS` +
		` WHERE ` + inDatabase + ` AND TABLE_NAME = ? AND INDEX_NAME = 'PRIMARY' ORDER BY SEQ_IN_INDEX` + everyRow
)

// find reads the definition of the table that is to be want: nil if there is
// none, an error if it is neither want nor the table of v0.
func find(ctx context.Context, db queryer, database string, want *table) (*table, error) {
	var last *table
	for {
		have, err := describe(ctx, db, database, want.name)
		if err != nil || have == nil || want == recordsTable && have.isV0() {
			return have, err
		}
		err = have.mustBe(want)
		if err == nil || last != nil && last.equals(have) {
			return have, err
		}
		// A description takes several queries, and another process may have
		// upgraded the table in between: half of it is old then.
		last = have
	}
}

// describe reads a table's definition; nil if there is no such table, or none
// that the account has a privilege on.
func describe(ctx context.Context, db queryer, database, name string) (*table, error) {
	t := &table{name: name}
	err := eachOfTable(ctx, db, tableSQL, database, name, func(scan scanner) error { return scan(&t.engine) })
	if err != nil || t.engine == "" {
		return nil, err
	}
	err = eachOfTable(ctx, db, columnsSQL, database, name, func(scan scanner) error {
		var c column
		var collation sql.NullString
		err := scan(&c.name, &c.dataType, &c.size, &c.nullable, &c.optional, &collation)
		c.collation = collation.String
		t.columns = append(t.columns, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = eachOfTable(ctx, db, primaryKeySQL, database, name, func(scan scanner) error {
		var column string
		err := scan(&column)
		t.primaryKey = append(t.primaryKey, column)
		return err
	})
	return t, err
}

// eachOfTable calls f for every row that a query of information_schema has for a
// table in the database that WithDatabase names, or else in the connection's own.
// That one's name may have any characters, which would not travel safely in every
// character set, and so it never leaves the server. The two are not put together
// in SQL, as an expression of both may have no collation.
func eachOfTable(ctx context.Context, db queryer, query, database, table string, f func(scanner) error) error {
	in, args := `DATABASE()`, []any{table}
	if database != "" {
		in, args = `?`, []any{database, table}
	}
	return each(ctx, db, strings.Replace(query, "{database}", in, 1), args, f)
}

type scanner func(dest ...any) error

// each calls f for every row of a query.
func each(ctx context.Context, db queryer, query string, args []any, f func(scanner) error) error {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	for rows.Next() {
		if err := f(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (t *table) column(name string) *column {
	for i := range t.columns {
		if t.columns[i].name == name {
			return &t.columns[i]
		}
	}
	return nil
}

func (t *table) equals(u *table) bool {
	return t.name == u.name && t.engine == u.engine && slices.Equal(t.columns, u.columns) && slices.Equal(t.primaryKey, u.primaryKey)
}

// isV0 tells the table of the earlier library.
func (t *table) isV0() bool {
	names := make([]string, len(t.columns))
	for i, c := range t.columns {
		names[i] = c.name
	}
	slices.Sort(names)
	return slices.Equal(names, []string{"election_name", "id", "last_update", "leader_name"}) && slices.Equal(t.primaryKey, []string{"id"})
}

// mustBe reports what keeps t from serving as want. Wider columns and further
// ones that an INSERT may leave out do no harm.
func (t *table) mustBe(want *table) error {
	var differences []string
	differ := func(format string, args ...any) { differences = append(differences, fmt.Sprintf(format, args...)) }
	if t.engine != want.engine {
		differ("its engine is %s, not %s", t.engine, want.engine)
	}
	for _, w := range want.columns {
		h := t.column(w.name)
		switch {
		case h == nil:
			differ("it has no column %s", w.name)
		case h.dataType != w.dataType && (w.dataType != "int" || h.dataType != "bigint"):
			differ("%s is %s, not %s", w.name, h.dataType, w.dataType)
		case h.size < w.size:
			differ("%s is %s(%d), not %s(%d)", w.name, h.dataType, h.size, w.dataType, w.size)
		case w.collation != "" && h.collation != w.collation:
			differ("%s has the collation %s, not %s", w.name, h.collation, w.collation)
		case w.nullable && !h.nullable:
			differ("%s is NOT NULL", w.name)
		}
	}
	for _, h := range t.columns {
		if want.column(h.name) == nil && !h.optional {
			differ("its column %s has no default", h.name)
		}
	}
	if !slices.Equal(t.primaryKey, want.primaryKey) {
		differ("its primary key is (%s), not (%s)", strings.Join(t.primaryKey, ", "), strings.Join(want.primaryKey, ", "))
	}
	if differences == nil {
		return nil
	}
	return otherTableError(fmt.Sprintf("there is a table %s that is not this library's: %s; rename it, or have the tables in another database by WithDatabase; nothing was changed",
		t.name, strings.Join(differences, ", ")))
}

// otherTableError says how a table differs from the one that is wanted.
type otherTableError string

func (e otherTableError) Error() string { return string(e) }

const (
	// lockV0SQL keeps every candidate of v0 from writing until unlockSQL.
	lockV0SQL = `LOCK TABLES {records} WRITE`
	unlockSQL = `UNLOCK TABLES`

	// rowsV0SQL reads all rows in the order of their key, names as hexadecimal
	// UTF-8, which no connection's character set can change, times as numbers.
	rowsV0SQL = `SELECT id, HEX(CONVERT(election_name USING utf8mb4)), HEX(CONVERT(leader_name USING utf8mb4)),` +
		` TIMESTAMPDIFF(MICROSECOND, '1970-01-01', last_update) FROM {records} ORDER BY id`

	// deleteV0SQL removes a range of rows, but for those whose ids follow:
	// parameters (first id, last id). A range has rowsOfDelete rows: v0 wrote a row
	// with each try of each candidate, thousands a day.
	deleteV0SQL  = `DELETE FROM {records} WHERE id >= ? AND id <= ?`
	rowsOfDelete = 10_000

	// fillV0SQL gives a value to what must have one.
	fillV0SQL = `UPDATE {records} SET leader_name = COALESCE(leader_name, LEFT('-', 0)), last_update = COALESCE(last_update, UTC_TIMESTAMP(6))` +
		` WHERE leader_name IS NULL OR last_update IS NULL`

	// alterV0SQL makes election_records of schema.sql from the table of v0, all
	// or nothing.
	alterV0SQL = `ALTER TABLE {records}` +
		` DROP PRIMARY KEY,` +
		` DROP COLUMN id,` +
		` MODIFY election_name VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` MODIFY leader_name VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` MODIFY last_update DATETIME(6) NOT NULL,` +
		` ADD COLUMN leader_uid VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` ADD COLUMN lease_duration_seconds INT NOT NULL DEFAULT 60,` +
		` ADD COLUMN acquire_time DATETIME(6) NULL,` +
		` ADD COLUMN renew_time DATETIME(6) NULL,` +
		` ADD COLUMN leader_transitions INT NOT NULL DEFAULT 0,` +
		` ADD COLUMN strategy VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` ADD COLUMN preferred_holder VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` ADD COLUMN server VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` ADD COLUMN version BIGINT NOT NULL DEFAULT 0,` +
		` ADD PRIMARY KEY (election_name),` +
		` ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin`
)

// upgrade makes the current table from that of v0.
func upgrade(ctx context.Context, conn *sql.Conn, database string) (err error) {
	fill := tableNames(database).Replace
	if _, err := conn.ExecContext(ctx, fill(lockV0SQL)); err != nil {
		return err
	}
	defer func() {
		// Also when ctx has ended: a session that kept the lock would stop
		// every candidate.
		unlock, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, failed := conn.ExecContext(unlock, unlockSQL); failed != nil {
			discard(conn)
			if err == nil {
				err = failed
			}
		}
	}()
	// Another process may have upgraded it while this one waited for the lock.
	if have, err := describe(ctx, conn, database, recordsTable.name); err != nil || have == nil || !have.isV0() {
		return err
	}

	newest, ranges, err := readV0(ctx, conn, fill(rowsV0SQL))
	if err != nil {
		return err
	}
	for _, r := range ranges {
		n := 0
		var stay []byte
		for ; n < len(newest) && newest[n] <= r.last; n++ {
			stay = strconv.AppendUint(append(stay, ", "...), newest[n], 10)
		}
		newest = newest[n:]
		statement := fill(deleteV0SQL)
		switch n {
		case 0:
		case r.rows:
			continue
		default:
			statement += ` AND id NOT IN (` + string(stay[2:]) + `)`
		}
		if _, err := conn.ExecContext(ctx, statement, r.first, r.last); err != nil {
			return err
		}
	}
	for _, statement := range []string{fillV0SQL, alterV0SQL} {
		if _, err := conn.ExecContext(ctx, fill(statement)); err != nil {
			return err
		}
	}
	return nil
}

// rangeV0 is a range of ids, and how many rows it has.
type rangeV0 struct {
	first, last uint64
	rows        int
}

// readV0 reads all rows of v0. It returns the ids of the newest row of each
// election, in ascending order, and all ids in ranges of rowsOfDelete rows. An
// election that the new table can't have is an error.
func readV0(ctx context.Context, conn *sql.Conn, query string) (newest []uint64, ranges []rangeV0, err error) {
	type row struct {
		id               uint64
		updated          sql.NullInt64
		election, leader string // as hexadecimal digits
	}
	rows := map[string]row{} // the newest of each election
	err = each(ctx, conn, query, nil, func(scan scanner) error {
		var r row
		var election, leader sql.NullString
		if err := scan(&r.id, &election, &leader, &r.updated); err != nil {
			return err
		}
		r.election, r.leader = election.String, leader.String
		// NULL is older than all else, and of two equal times the larger id is newer.
		if old, ok := rows[r.election]; !ok || !old.updated.Valid || r.updated.Valid && r.updated.Int64 >= old.updated.Int64 {
			rows[r.election] = r
		}
		if n := len(ranges); n == 0 || ranges[n-1].rows == rowsOfDelete {
			ranges = append(ranges, rangeV0{first: r.id})
		}
		last := &ranges[len(ranges)-1]
		last.last = r.id
		last.rows++
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for _, r := range slices.SortedFunc(maps.Values(rows), func(a, b row) int { return cmp.Compare(a.id, b.id) }) {
		election, err := hex.DecodeString(r.election)
		if err != nil {
			return nil, nil, err
		}
		leader, err := hex.DecodeString(r.leader)
		if err != nil {
			return nil, nil, err
		}
		err = validateName("election_name", string(election), maxNameLength)
		if err == nil && len(leader) > 0 {
			err = validateName("leader_name", string(leader), maxNameLength)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("election_records can't be upgraded because of its row with id %d: %w, or delete the row; nothing was changed", r.id, err)
		}
		newest = append(newest, r.id)
	}
	return newest, ranges, nil
}
