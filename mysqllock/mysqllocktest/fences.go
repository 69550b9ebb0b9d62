package mysqllocktest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// What the lock needs of a server for fences.

func (s *suite) entry(name string) string { return s.prefix + name }

func (s *suite) insert(name string) func(context.Context, *sql.Tx) error {
	return func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO mysqllocktest_ledger (entry) VALUES (?)`, s.entry(name))
		return err
	}
}

// querier is a pool or a transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// wantEntry asks by a text that needs not be prepared. vtgate asks any shard about a SELECT that is, and in a guarded
// transaction refuses what follows on another one.
func (s *suite) wantEntry(t *testing.T, db querier, name string, want int) {
	t.Helper()
	var n int
	must(t, "reading the ledger", db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM mysqllocktest_ledger WHERE entry = '`+s.entry(name)+`'`).Scan(&n))
	if n != want {
		t.Errorf("%d entries %q, want %d", n, name, want)
	}
}

// begin begins a transaction that Guard takes.
func (s *suite) begin(t *testing.T, db *sql.DB, level sql.IsolationLevel) (*sql.Conn, *sql.Tx) {
	t.Helper()
	conn, err := db.Conn(t.Context())
	must(t, "a connection", err)
	t.Cleanup(func() { _ = conn.Close() }) // if the test has not
	if s.engine == "Vitess" {
		_, err := conn.ExecContext(t.Context(), `SET transaction_mode = 'single'`)
		must(t, "transaction_mode", err)
	}
	tx, err := conn.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
	must(t, "BEGIN", err)
	return conn, tx
}

// supports reports whether the server has an isolation level. What it refuses nobody can rely on.
func (s *suite) supports(t *testing.T, db *sql.DB, level sql.IsolationLevel) bool {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
	if number(err) == 8048 { // TiDB's
		t.Logf("%v: %v", level, err)
		return false
	}
	must(t, "BEGIN "+level.String(), err)
	must(t, "ROLLBACK", tx.Rollback())
	return true
}

// number is the server's number of err, 0 if it is none of the server's.
func number(err error) uint16 {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

// mayBeTriedAgain reports whether a server refused a guarded transaction, of which nothing was committed, without
// saying that leadership has passed: the next try does.
func mayBeTriedAgain(err error) bool {
	switch number(err) {
	case 1020, 1213, 3101, 9007:
		return true
	}
	return false
}

var levels = []sql.IsolationLevel{sql.LevelDefault, sql.LevelReadUncommitted, sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable}

func (s *suite) commits(t *testing.T) {
	db := s.open(t)
	var lock *mysqllock.Lock
	for _, level := range levels {
		if !s.supports(t, db, level) {
			continue
		}
		name := "commits " + level.String()
		lock = s.lock(t, db, name, "leader")
		must(t, "Create", lock.Create(t.Context(), record("leader")))
		must(t, name, lock.Transact(t.Context(), db, &sql.TxOptions{Isolation: level}, s.insert(name)))
		s.wantEntry(t, db, name, 1)
	}
	failed := errors.New("of the function")
	if err := lock.Transact(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		must(t, "INSERT", s.insert("rolled back")(ctx, tx))
		return failed
	}); !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
	s.wantEntry(t, db, "rolled back", 0)
}

func (s *suite) fences(t *testing.T) {
	db := s.open(t)
	for _, level := range levels {
		if !s.supports(t, db, level) {
			continue
		}
		election := "fences " + level.String()
		stale, next := s.lock(t, db, election, "stale"), s.lock(t, s.open(t), election, "next")
		must(t, "Create", stale.Create(t.Context(), record("stale")))
		err := stale.Transact(t.Context(), db, &sql.TxOptions{Isolation: level}, func(ctx context.Context, tx *sql.Tx) error {
			s.wantEntry(t, tx, election, 0) // its snapshot is older than the takeover
			if err := s.insert(election)(ctx, tx); err != nil {
				return err
			}
			takeOver(t, next) // while the first one was paused, say
			return nil
		})
		switch {
		case errors.Is(err, mysqllock.ErrNotLeader):
		case mayBeTriedAgain(err):
			t.Logf("%v: %v", level, err)
			if err := stale.Transact(t.Context(), db, nil, s.insert(election)); !errors.Is(err, mysqllock.ErrNotLeader) {
				t.Errorf("%v: tried again: error %v, want ErrNotLeader", level, err)
			}
		default:
			t.Errorf("%v: error %v, want ErrNotLeader", level, err)
		}
		s.wantEntry(t, db, election, 0)
	}
}

func (s *suite) pins(t *testing.T) {
	db := s.open(t)
	for _, level := range levels {
		if !s.supports(t, db, level) {
			continue
		}
		election := "pins " + level.String()
		leader := s.lock(t, db, election, "leader")
		next := s.lock(t, s.open(t), election, "next", mysqllock.WithOperationTimeout(patience))
		must(t, "Create", leader.Create(t.Context(), record("leader")))
		_, tx := s.begin(t, db, level)
		must(t, "Guard", leader.Guard(t.Context(), tx))
		get(t, next)
		began := time.Now()
		if err := next.Update(t.Context(), record("next")); err == nil {
			// The guard has locked nothing. It may still be one that the server compares at the commit.
			must(t, "INSERT", s.insert(election)(t.Context(), tx))
			if err := tx.Commit(); err == nil {
				t.Fatalf("%v: a takeover succeeds while a transaction guards the term, and the transaction commits", level)
			}
			t.Logf("%v: a takeover succeeds while a transaction guards the term, which can't commit then", level)
			s.wantEntry(t, db, election, 0)
			continue
		}
		// Where NOWAIT has no effect on what is committed at once, a takeover waits as long as it may.
		atOnce, took := s.engine != "TiDB", time.Since(began)
		if atOnce && took > patience/2 || took > 2*patience {
			t.Errorf("%v: a takeover is refused after %v only; does the server know FOR UPDATE NOWAIT?", level, took)
		}
		t.Logf("%v: refused after %v", level, took.Round(time.Millisecond))
		must(t, "a renewal beside the guard", leader.Update(t.Context(), record("leader")))
		must(t, "INSERT", s.insert(election)(t.Context(), tx))
		must(t, "COMMIT", tx.Commit())
		s.wantEntry(t, db, election, 1)
		s.takeOverSoon(t, next)
	}
}

// patience is the deadline of a takeover that is to be refused.
const patience = 4 * time.Second

// takeOverSoon takes over, in a second try if need be: the server may have gone on with one that was given up.
func (s *suite) takeOverSoon(t *testing.T, lock *mysqllock.Lock) {
	t.Helper()
	get(t, lock)
	err := lock.Update(t.Context(), record(lock.Identity()))
	if apierrors.IsConflict(err) {
		get(t, lock)
		err = lock.Update(t.Context(), record(lock.Identity()))
	}
	must(t, lock.Describe()+": a takeover after the guard", err)
}

// condition is that of lock's term; "" where the lock refuses it, as on clusters.
func condition(t *testing.T, lock *mysqllock.Lock) (string, []any) {
	t.Helper()
	condition, args, err := lock.FenceCondition()
	if errors.Is(err, mysqllock.ErrNotLeader) {
		t.Fatal(err)
	}
	if err != nil {
		t.Log("the lock refuses fenced statements here:", err)
	}
	return condition, args
}

// fencedEntry is a statement with a condition: parameters (entry, those of the condition).
func fencedEntry(condition string) string {
	return `INSERT INTO mysqllocktest_ledger (entry) SELECT ? FROM DUAL WHERE ` + condition
}

func (s *suite) fencesStatements(t *testing.T) {
	db := s.open(t)
	leader, other := s.lock(t, db, "fenced", "leader"), s.lock(t, db, "fenced", "other")
	must(t, "Create", leader.Create(t.Context(), record("leader")))
	condition, args := condition(t, leader)
	if condition == "" {
		return
	}
	write := func(entry string) int64 {
		result, err := db.ExecContext(t.Context(), fencedEntry(condition), append([]any{s.prefix + entry}, args...)...)
		must(t, "a fenced statement", err)
		n, err := result.RowsAffected()
		must(t, "RowsAffected", err)
		return n
	}
	if n := write("fenced"); n != 1 {
		t.Errorf("a leader's statement changed %d rows", n)
	}
	takeOver(t, other)
	if n := write("stale"); n != 0 {
		t.Errorf("a stale leader's statement changed %d rows", n)
	}
}

func (s *suite) pinsByStatements(t *testing.T) {
	db := s.open(t)
	leader, other := s.lock(t, db, "pinned", "leader"), s.lock(t, s.open(t), "pinned", "other")
	must(t, "Create", leader.Create(t.Context(), record("leader")))
	condition, args := condition(t, leader)
	if condition == "" {
		return
	}
	// At other levels the server locks what an INSERT reads by itself.
	tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	must(t, "BEGIN", err)
	defer func() { _ = tx.Rollback() }() // after the commit: nothing
	_, err = tx.ExecContext(t.Context(), fencedEntry(condition), append([]any{s.prefix + "pinned"}, args...)...)
	must(t, "a fenced statement", err)
	get(t, other)
	if err := other.Update(t.Context(), record("other")); err == nil {
		t.Error("another candidate took over before the commit")
	}
	must(t, "COMMIT", tx.Commit())
	takeOver(t, other)
}

func (s *suite) cutOff(t *testing.T) {
	db := s.open(t)
	leader := s.lock(t, db, "cut off", "leader")
	next := s.lock(t, s.open(t), "cut off", "next", mysqllock.WithOperationTimeout(patience))
	must(t, "Create", leader.Create(t.Context(), record("leader")))
	conn, tx := s.begin(t, db, sql.LevelDefault)
	must(t, "INSERT", s.insert("cut off")(t.Context(), tx))
	must(t, "Guard", leader.Guard(t.Context(), tx))
	must(t, "closing the connection", conn.Raw(func(c any) error { // without a ROLLBACK
		if c, ok := c.(driver.Conn); ok {
			return c.Close()
		}
		return fmt.Errorf("a %T is no driver.Conn", c)
	}))
	_ = tx.Rollback() // it is gone
	_ = conn.Close()  // so is that
	for end := time.Now().Add(timeout); ; {
		get(t, next)
		err := next.Update(t.Context(), record("next"))
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%v after its session ended, a guard still holds: %v", timeout, err)
		}
		time.Sleep(100 * time.Millisecond) // as a follower does between two polls
	}
	s.wantEntry(t, db, "cut off", 0)
}

func (s *suite) deadlines(t *testing.T) {
	db := s.open(t)
	leader := s.lock(t, db, "deadlines", "leader", mysqllock.WithOperationTimeout(500*time.Millisecond))
	for attempt := 0; ; attempt++ { // a far server needs its first connection
		err := leader.Create(t.Context(), record("leader"))
		if err == nil || apierrors.IsAlreadyExists(err) {
			break
		}
		if attempt == 5 {
			t.Fatal(err)
		}
	}
	tx, err := db.BeginTx(t.Context(), nil)
	must(t, "BEGIN", err)
	defer func() { _ = tx.Rollback() }() // nothing was written
	var holder string
	must(t, "SELECT FOR UPDATE", tx.QueryRowContext(t.Context(), `SELECT leader_name FROM election_records WHERE election_name = ? FOR UPDATE`, s.prefix+"deadlines").Scan(&holder))
	get(t, leader) // a poll waits for no lock
	began := time.Now()
	if err := leader.Update(t.Context(), record("leader")); err == nil {
		if s.engine == "TiDB" {
			t.Skip("the session's transactions are optimistic: they lock nothing that a renewal could wait for")
		}
		t.Fatal("a renewal succeeds while another session has the row locked")
	}
	if took := time.Since(began); took > timeout/2 {
		t.Errorf("a renewal that waits for a lock is given up after %v, not 500ms", took)
	}
}
