package mysqllock

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// A table of the database, and how it differs from the one of schema.sql.

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
			{name: "ready", dataType: "tinyint"},
			varchar("step_down_uid", 64),
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
	// inDatabase: see eachOfTable.
	inDatabase = `TABLE_SCHEMA = {database}`
	// everyRow returns as many rows as there are, whatever sql_select_limit says.
	everyRow = ` LIMIT ` + everything
	// everything is the largest number of rows that Vitess takes, too.
	everything = `9223372036854775807`

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

// find reads the definition of the table that is to be want: nil if there is none, an error if it
// is neither want, nor the table of v0, nor one that lacks only columns that Migrate adds.
func find(ctx context.Context, db queryer, database string, want *table) (*table, error) {
	var last *table
	for {
		have, err := describe(ctx, db, database, want.name)
		if err != nil || have == nil || want == recordsTable && (have.isV0() || have.lacksColumns()) {
			return have, err
		}
		err = have.mustBe(want)
		if err == nil || last != nil && last.equals(have) {
			return have, err
		}
		// A description takes several queries, and another process may have upgraded the table in
		// between: half of it is old then.
		last = have
	}
}

// describe reads a table's definition; nil if there is no such table, or none that the account has
// a privilege on.
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

// eachOfTable calls f for every row that a query of information_schema has for a table in the
// database that WithDatabase names, or else in the connection's own. That one's name may have any
// characters, which would not travel safely in every character set, and so it never leaves the
// server. The two are not put together in SQL, as an expression of both may have no collation.
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
	defer func() { _ = rows.Close() }() // rows.Err has the error
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

// isV0 reports whether it is the table of the earlier library.
func (t *table) isV0() bool {
	names := make([]string, len(t.columns))
	for i, c := range t.columns {
		names[i] = c.name
	}
	slices.Sort(names)
	return slices.Equal(names, []string{"election_name", "id", "last_update", "leader_name"}) && slices.Equal(t.primaryKey, []string{"id"})
}

// lacksColumns reports whether it is election_records of an earlier version: all that addColumnsSQL
// adds is missing, or a part of it, and nothing else.
func (t *table) lacksColumns() bool {
	whole := *t
	for _, name := range addedColumns {
		if t.column(name) == nil {
			whole.columns = append(slices.Clip(whole.columns), *recordsTable.column(name))
		}
	}
	return len(whole.columns) > len(t.columns) && whole.mustBe(recordsTable) == nil
}

// mustBe reports what keeps t from serving as want. Wider columns and further ones that an INSERT
// may leave out do no harm.
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
