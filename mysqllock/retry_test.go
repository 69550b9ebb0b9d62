package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// hasServerError tells whether err is the server's error of that number.
func hasServerError(err error, number uint16) bool {
	var server *mysql.MySQLError
	return errors.As(err, &server) && server.Number == number
}

func TestATransactThatWasTheVictimOfADeadlockMayBeTriedAgain(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	work := newLedger(t, config)
	exec(t, work, `CREATE TABLE pairs (id INT PRIMARY KEY, v INT NOT NULL) ENGINE=InnoDB`)
	exec(t, work, `INSERT INTO pairs VALUES (1, 0), (2, 0)`)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	attempts := 0
	attempt := func() error {
		return leader.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
			if err := insert(ctx, tx, "entry"); err != nil {
				return err
			}
			if attempts++; attempts == 1 {
				return deadlock(t, ctx, work, tx)
			}
			_, err := tx.ExecContext(ctx, `UPDATE pairs SET v = v + 1 WHERE id = 2`)
			return err
		})
	}
	if err := attempt(); !hasServerError(err, 1213) {
		t.Fatalf("error %v, want the deadlock's", err)
	}
	wantLedger(t, work)
	if err := attempt(); err != nil {
		t.Fatal(err)
	}
	wantLedger(t, work, "entry")
	wantSessionsAsFound(t, work)
}

// MariaDB ends a transaction that writes a row which changed since its snapshot,
// by default from 11.6.2 on and where the session asks for it also before. Others
// have no such setting, and let it write.
func TestATransactWithAStaleSnapshotCommitsNothingAndMayBeTriedAgain(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	work := newLedger(t, config)
	exec(t, work, `CREATE TABLE counter (id INT PRIMARY KEY, v INT NOT NULL) ENGINE=InnoDB`)
	exec(t, work, `INSERT INTO counter VALUES (1, 0)`)
	ends := table(t, db, `SHOW VARIABLES LIKE 'innodb_snapshot_isolation'`) != ""
	if ends {
		work = openDSN(t, config, "innodb_snapshot_isolation=1")
	}
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	isStale := true
	attempt := func(swallow bool) error {
		return leader.Transact(t.Context(), work, &sql.TxOptions{Isolation: sql.LevelRepeatableRead}, func(ctx context.Context, tx *sql.Tx) error {
			var v int
			if err := tx.QueryRowContext(ctx, `SELECT v FROM counter`).Scan(&v); err != nil {
				return err
			}
			if isStale {
				exec(t, db, `UPDATE counter SET v = v + 10`)
			}
			if _, err := tx.ExecContext(ctx, `UPDATE counter SET v = v + 1`); err != nil && !swallow {
				return err
			}
			return insert(ctx, tx, "entry")
		})
	}
	if !ends {
		if err := attempt(false); err != nil {
			t.Fatal(err)
		}
		wantLedger(t, db, "entry")
		return
	}
	if err := attempt(true); err == nil || !strings.Contains(err.Error(), "ended before the function did") {
		t.Errorf("swallowed: error %v", err)
	}
	if err := attempt(false); !hasServerError(err, 1020) {
		t.Errorf("returned: error %v, want 1020", err)
	}
	wantLedger(t, db)
	isStale = false
	if err := attempt(false); err != nil {
		t.Errorf("tried again: %v", err)
	}
	wantLedger(t, db, "entry")
	wantSessionsAsFound(t, work)
}

// Before the COMMIT is sent, nothing can have been committed.
func TestATransactThatRunsOutOfTimeBeforeItsCommitDoesNotCallItsOutcomeUnknown(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	work := newLedger(t, config)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := leader.Transact(ctx, work, nil, func(ctx context.Context, _ *sql.Tx) error {
		<-ctx.Done()
		return nil
	})
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, mysqllock.ErrOutcomeUnknown) || strings.Contains(err.Error(), "unknown") {
		t.Errorf("error %v", err)
	}
	wantLedger(t, work)
}
