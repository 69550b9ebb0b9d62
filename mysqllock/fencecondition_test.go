package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// fenced are statements that a leader may fence, each of which changes one row of work.
var fenced = []struct{ name, prepare, statement string }{
	{"UPDATE", `REPLACE INTO work VALUES (1, 'before')`, `UPDATE work SET value = 'after' WHERE id = 1 AND `},
	{"DELETE", `REPLACE INTO work VALUES (1, 'before')`, `DELETE FROM work WHERE id = 1 AND `},
	{"INSERT ... SELECT", `DELETE FROM work`, `INSERT INTO work SELECT 1, 'new' FROM DUAL WHERE `},
}

func newWork(t testing.TB, db *sql.DB) {
	t.Helper()
	exec(t, db, `CREATE TABLE work (id INT PRIMARY KEY, value VARCHAR(20)) ENGINE=InnoDB`)
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// runFenced returns how many rows a statement changed under a condition.
func runFenced(t testing.TB, on execer, statement, condition string, args []any) int64 {
	t.Helper()
	result, err := on.ExecContext(t.Context(), statement+condition, args...)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func fenceCondition(t testing.TB, lock *mysqllock.Lock) (condition string, args []any) {
	t.Helper()
	condition, args, err := lock.FenceCondition()
	if err != nil {
		t.Fatal(err)
	}
	return condition, args
}

func TestFenceConditionChangesNothingOfAStaleLeaderAtEveryIsolationLevel(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	newWork(t, db)
	for _, level := range []string{"READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		for _, f := range fenced {
			t.Run(level+", "+f.name, func(t *testing.T) {
				name := level + f.name
				lock, other := newLock(t, db, name, "a"), newLock(t, db, name, "b")
				takeOver(t, lock)
				condition, args := fenceCondition(t, lock)
				conn, err := db.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := conn.ExecContext(t.Context(), `SET SESSION TRANSACTION ISOLATION LEVEL `+level); err != nil {
					t.Fatal(err)
				}
				exec(t, db, f.prepare)
				if n := runFenced(t, conn, f.statement, condition, args); n != 1 {
					t.Errorf("a leader's statement changed %d rows", n)
				}
				exec(t, db, f.prepare)
				takeOver(t, other)
				if n := runFenced(t, conn, f.statement, condition, args); n != 0 {
					t.Errorf("a stale leader's statement changed %d rows", n)
				}
				if _, err := conn.ExecContext(t.Context(), `SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ`); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// A lock reads the newest row, also in a transaction whose snapshot is older than the takeover.
func TestFenceConditionDoesNotGoByAnOldSnapshot(t *testing.T) {
	t.Parallel()
	for _, f := range fenced {
		t.Run(f.name, func(t *testing.T) {
			db, _ := newTables(t)
			newWork(t, db)
			lock, other := newLock(t, db, "e", "a"), newLock(t, db, "e", "b")
			takeOver(t, lock)
			condition, args := fenceCondition(t, lock)
			exec(t, db, f.prepare)
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			var n int
			if err := tx.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM election_fences`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			takeOver(t, other)
			result, err := tx.ExecContext(t.Context(), f.statement+condition, args...)
			if refused := (*mysql.MySQLError)(nil); errors.As(err, &refused) && refused.Number == 1020 {
				return // MariaDB with innodb_snapshot_isolation says it so
			}
			if err != nil {
				t.Fatal(err)
			}
			if n, err := result.RowsAffected(); err != nil || n != 0 {
				t.Errorf("changed %d rows: %v", n, err)
			}
		})
	}
}

func TestFenceConditionKeepsOthersFromTakingOverUntilTheCommit(t *testing.T) {
	t.Parallel()
	for _, f := range fenced {
		t.Run(f.name, func(t *testing.T) {
			db, _ := newTables(t)
			newWork(t, db)
			lock, other := newLock(t, db, "e", "a"), newLock(t, db, "e", "b")
			takeOver(t, lock)
			condition, args := fenceCondition(t, lock)
			exec(t, db, f.prepare)
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if n := runFenced(t, tx, f.statement, condition, args); n != 1 {
				t.Errorf("changed %d rows", n)
			}
			if err := tryTakeOver(t.Context(), other); err == nil {
				t.Error("somebody took over before the commit")
			}
			mustSucceed(t, "a renewal meanwhile", update(t.Context(), lock, record("a")))
			mustSucceed(t, "the commit", tx.Commit)
			takeOver(t, other)
		})
	}
}

// A statement that had a snapshot when it began to wait is refused by MariaDB 11.8 (error 1020).
func TestFenceConditionWaitsForATakeoverThatIsUnderWay(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	newWork(t, db)
	for _, f := range append(fenced, struct{ name, prepare, statement string }{
		"INSERT ... SELECT after a read", `DELETE FROM work`,
		`INSERT INTO work SELECT 1, 'new' FROM (SELECT COUNT(*) FROM election_records) AS read_before WHERE `,
	}) {
		t.Run(f.name, func(t *testing.T) {
			lock := newLock(t, db, f.name, "a")
			takeOver(t, lock)
			condition, args := fenceCondition(t, lock)
			exec(t, db, f.prepare)
			before := table(t, db, `SELECT COUNT(*), MIN(value) FROM work`)
			takeover, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := takeover.ExecContext(t.Context(), `UPDATE election_fences SET fencing_token = fencing_token + 1, leader_uid = 'b' WHERE election_name = ?`, f.name); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			var changed int64
			go func() {
				result, err := db.ExecContext(context.Background(), f.statement+condition, args...)
				if err == nil {
					changed, err = result.RowsAffected()
				}
				ended <- err
			}()
			select {
			case err := <-ended:
				t.Errorf("it did not wait: %v", err)
			case <-time.After(200 * time.Millisecond):
				mustSucceed(t, "the takeover's commit", takeover.Commit)
				err := <-ended
				if err != nil && (!server.MariaDB() || !hasServerError(err, 1020)) {
					t.Error(err)
				}
				if changed != 0 {
					t.Errorf("changed %d rows", changed)
				}
				t.Logf("error %v", err)
			}
			if after := table(t, db, `SELECT COUNT(*), MIN(value) FROM work`); after != before {
				t.Errorf("%s became %s", before, after)
			}
		})
	}
}

// The work has a pool of its own, with another default database and character set.
func TestFenceConditionFindsTheTablesFromAnyPool(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	other := config.Clone()
	other.DBName = otherDatabase(t)
	for _, name := range []string{"e", "größe/東"} {
		for _, parameters := range []string{"", "charset=latin1", "charset=gbk&interpolateParams=true", "charset=utf8mb4&interpolateParams=true", "collation=utf8mb4_unicode_ci"} {
			t.Run(name+" "+parameters, func(t *testing.T) {
				lock := newLock(t, open(t, config), name+parameters, "a")
				takeOver(t, lock)
				condition, args := fenceCondition(t, lock)
				work := openDSN(t, other, parameters)
				exec(t, work, `CREATE TABLE IF NOT EXISTS work (id INT PRIMARY KEY, value VARCHAR(20)) ENGINE=InnoDB`)
				exec(t, work, fenced[2].prepare)
				if n := runFenced(t, work, fenced[2].statement, condition, args); n != 1 {
					t.Errorf("changed %d rows", n)
				}
			})
		}
	}
}

// What the documentation says of aggregates.
func TestFenceConditionBelongsOutsideOfAnAggregate(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	newWork(t, db)
	lock := newLock(t, db, "e", "a")
	takeOver(t, lock)
	condition, args := fenceCondition(t, lock)
	takeOver(t, newLock(t, db, "e", "b"))
	const next = `INSERT INTO work SELECT COALESCE(MAX(id), 0) + 1, 'x' FROM work WHERE `
	if n := runFenced(t, db, next, condition, args); n != 1 {
		t.Errorf("an aggregate is fenced after all: %d rows", n)
	}
	const derived = `INSERT INTO work SELECT next, 'x' FROM (SELECT COALESCE(MAX(id), 0) + 1 AS next FROM work) AS n WHERE `
	if n := runFenced(t, db, derived, condition, args); n != 0 {
		t.Errorf("a stale leader's statement changed %d rows", n)
	}
}

func TestFenceConditionNeedsATerm(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a")
	if _, _, err := lock.FenceCondition(); !errors.Is(err, mysqllock.ErrNotLeader) || !strings.HasPrefix(err.Error(), `mysqllock: fence condition "e": `) {
		t.Errorf("without a term: %v", err)
	}
	takeOver(t, lock)
	mustSucceed(t, "the release", update(t.Context(), lock, recordFor("", 1)))
	if _, _, err := lock.FenceCondition(); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("after a release: %v", err)
	}
}

// A server, or a proxy before it, that does not say what it is keeps nobody from leading. What is
// weaker than a write is not relied on.
func TestFenceConditionIsRefusedAndGuardsAreWritesWhereTheKindOfServerIsUnknown(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	work := newLedger(t, config)
	silent := hookedPool(t, config, func(query string, _ []driver.NamedValue) error {
		if strings.HasPrefix(query, "SHOW VARIABLES") {
			return &mysql.MySQLError{Number: 1105, Message: "unsupported statement"}
		}
		return nil
	})
	lock := newLock(t, silent, "e", "a")
	takeOver(t, lock)
	if _, _, err := lock.FenceCondition(); err == nil || errors.Is(err, mysqllock.ErrNotLeader) || !strings.Contains(err.Error(), "SHOW VARIABLES") {
		t.Errorf("a fenced statement: %v", err)
	}
	mustSucceed(t, "a transaction", func() error { return lock.Transact(t.Context(), work, nil, inserting("a")) })
	var guards int
	if err := db.QueryRowContext(t.Context(), `SELECT guards FROM election_fences`).Scan(&guards); err != nil || guards != 1 {
		t.Errorf("%d guards were writes, want 1: %v", guards, err)
	}
	takeOver(t, newLock(t, db, "e", "b"))
	if err := lock.Transact(t.Context(), work, nil, inserting("stale")); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("a stale leader's transaction: %v", err)
	}
	wantLedger(t, db, "a")
}

// An election of another database, and a Lock that had the same token, are no reason to write.
func TestFenceConditionComparesElectionTokenAndLockInTheLocksDatabase(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, change string }{
		{"another Lock with this token", `UPDATE election_fences SET leader_uid = 'other' WHERE election_name = 'e'`},
		{"another token of this Lock", `UPDATE election_fences SET fencing_token = fencing_token + 1 WHERE election_name = 'e'`},
		{"another election", `UPDATE election_fences SET election_name = 'f' WHERE election_name = 'e'`},
		{"the name in another case", `UPDATE election_fences SET election_name = 'E' WHERE election_name = 'e'`},
	} {
		t.Run(c.name, func(t *testing.T) {
			db, _ := newTables(t)
			newWork(t, db)
			lock := newLock(t, db, "e", "a")
			takeOver(t, lock)
			condition, args := fenceCondition(t, lock)
			exec(t, db, c.change)
			if n := runFenced(t, db, fenced[2].statement, condition, args); n != 0 {
				t.Errorf("changed %d rows", n)
			}
		})
	}
	t.Run("a fence in the work's own database", func(t *testing.T) {
		db, _ := newTables(t)
		work, _ := newTables(t)
		newWork(t, work)
		lock := newLock(t, db, "e", "a")
		takeOver(t, lock)
		condition, args := fenceCondition(t, lock)
		token, _ := lock.FencingToken()
		exec(t, work, `INSERT INTO election_fences (election_name, fencing_token, leader_uid) VALUES ('e', ?, ?)`, token, args[2])
		takeOver(t, newLock(t, db, "e", "b"))
		if n := runFenced(t, work, fenced[2].statement, condition, args); n != 0 {
			t.Errorf("changed %d rows", n)
		}
	})
}
