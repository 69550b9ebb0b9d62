package mysqllock

import (
	"context"
	"database/sql"
	"time"
)

// The columns that were added to election_records since its first version. The next one also
// belongs to schema.sql and table.go (what a table is compared with), upgrade.go (v0's tables),
// pollColumns, insertSQL, assignments and values (statements.go), polled (row.go), batchRow
// (batch.go), and where people are to see it, to Election (inspect.go).

var addedColumns = []string{"ready", "step_down_uid"}

// addColumnSQL are the statements that add them, in that order: each is a change of its own, as one
// of them may be there. They have defaults, so that an older library's INSERT goes on working; that
// of step_down_uid is a hexadecimal literal, as the sql_mode EMPTY_STRING_IS_NULL of MariaDB refuses
// a plain empty string, and TiDB an expression.
var addColumnSQL = []string{
	`ALTER TABLE {records} /*M! NOWAIT */ ADD COLUMN ready TINYINT NOT NULL DEFAULT 1`,
	`ALTER TABLE {records} /*M! NOWAIT */ ADD COLUMN step_down_uid VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT x''`,
}

// addColumnsPause is between two tries. A change that waits for somebody's transaction on the table
// keeps all renewals waiting: for a second at most, and not at all on MariaDB. Then they must get
// on.
const addColumnsPause = 2 * time.Second

// addColumns adds the columns, unless somebody else has done it meanwhile.
func addColumns(ctx context.Context, conn *sql.Conn, database string) error {
	for _, statement := range addColumnSQL {
		_, err := conn.ExecContext(ctx, tableNames(database).Replace(statement))
		switch number(err) {
		case errDuplicateColumn:
			continue
		case errLockWaitTimeout:
			select {
			case <-ctx.Done():
			case <-time.After(addColumnsPause):
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
