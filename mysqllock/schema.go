package mysqllock

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Schema is the DDL of the tables election_records and election_fences, for goose, Flyway or a
// DBA's hands. Migrate runs the same statements.
//
//go:embed schema.sql
var Schema string

// migrateTimeout bounds how long Migrate works and waits for other sessions.
const migrateTimeout = time.Minute

// Migrate makes the tables, or upgrades them in place. [WithDatabase] is the only option that it
// uses.
//
//   - Tables that are there and current: it changes nothing, and needs no more than the privileges
//     that the lock itself needs.
//   - No tables: it makes them; needs CREATE.
//   - A table election_records of the earlier library (v0: id, election_name, leader_name,
//     last_update, and often many rows for one election): it keeps the newest row of each election
//     and adds the key and the columns, under LOCK TABLES, so that no candidate writes meanwhile;
//     needs ALTER, CREATE, DELETE, DROP, INSERT and LOCK TABLES. Stop all candidates of v0 before:
//     what they write afterwards elects nobody. A row whose names don't fit is reported, and
//     nothing is changed.
//   - A table election_records of an earlier version of this library, without the columns ready and
//     step_down_uid: it adds them; needs ALTER. Candidates of that version go on working.
//   - Another table of one of the two names: an error that says what differs, and nothing is
//     changed.
//
// Any number of processes may call it at once, at every start. It takes at most a minute, or as
// long as ctx lives; for so long it also waits for a server that can't be reached, and logs that. A
// table of v0 with many millions of rows may need more than one call: what one has deleted stays
// deleted.
func Migrate(ctx context.Context, db *sql.DB, opts ...Option) error {
	if db == nil {
		return wrap("migrate", "", errNoPool, nil)
	}
	o, err := applyOptions(opts)
	if err != nil {
		return wrap("migrate", "", err, nil)
	}
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()
	for {
		err := await(ctx, func() error { return migrate(ctx, db, o.database) })
		if n := number(err); n != errLockWaitTimeout && n != errDeadlock {
			if cause := ctx.Err(); err != nil && cause != nil && n == 0 && !errors.Is(err, cause) {
				// A session that ctx has ended says "bad connection" to all that follows.
				err = fmt.Errorf("%w: %w", cause, err)
			}
			return wrap("migrate", "", err, db)
		}
		// Another process is at it: its locks outlive this session's short lock_wait_timeout.
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
	var missing, lacking bool
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
		case want == recordsTable && have.lacksColumns():
			lacking = true
		}
	}
	if old == nil && !missing && !lacking {
		return nil
	}

	// A statement that ctx abandons goes on waiting at the server, and nobody may use the tables
	// that it waits for: for a year by default. With this it gives up, and Migrate tries again as
	// long as ctx lives. The session is discarded afterwards, not to come back to the pool with
	// other settings.
	defer discard(conn)
	if _, err := conn.ExecContext(ctx, migrateSessionSQL); err != nil {
		return err
	}
	if old != nil {
		if err := upgrade(ctx, conn, database); err != nil {
			return err
		}
	}
	if lacking {
		if err := addColumns(ctx, conn, database); err != nil {
			return err
		}
	}
	if old == nil && !missing {
		return nil
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

const (
	// migrateSessionSQL bounds how long the session's statements wait for a table, and lifts what
	// would refuse them or hide rows from them.
	migrateSessionSQL = `SET SESSION lock_wait_timeout = 1, sql_safe_updates = 0, sql_select_limit = ` + everything
)

// schemaStatements are those of Schema with the database's name put in, if it has one.
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
