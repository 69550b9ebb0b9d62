// Package mysqllocktest reports whether a server is fit for mysqllock: a suite of tests of everything that the lock needs of
// a server, for those who use some MySQL-compatible service, a proxy in between, or settings of their own.
//
// A test file of theirs is all that it takes:
//
//	package mydb
//
//	import (
//		"database/sql"
//		"testing"
//
//		_ "github.com/go-sql-driver/mysql"
//
//		"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
//	)
//
//	func TestMyServerIsFitForTheLock(t *testing.T) {
//		mysqllocktest.Run(t, func(t *testing.T) *sql.DB {
//			db, err := sql.Open("mysql", "app:secret@tcp(db.example.com:3306)/mydb?charset=utf8mb4")
//			if err != nil {
//				t.Fatal(err)
//			}
//			return db
//		})
//	}
//
// A subtest that fails is named after the requirement that the server does not meet; then elections are not safe there.
// That all pass shows that the statements do what they must; whether the server keeps what it acknowledged, through a
// power failure or a failover, no such test can see: for that ask mysqllock.Preflight, and read the correctness boundary
// in the README.
//
// [Measure] counts what each operation of the lock costs on that server: statements, round trips and bytes.
// [ReferenceLock] is what client-go's LeaseLock would be on these tables, to compare with.
package mysqllocktest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Run runs the suite, in a few seconds where the server is near. open is called several times and returns a pool of connections to one and
// the same database; Run closes it. The account needs what Migrate needs if the tables are not there yet, and CREATE for
// a table mysqllocktest_ledger, if that is not there; SELECT, INSERT and UPDATE on the three otherwise.
//
// Elections that are there already are left alone: those of the suite have random names, which begin with
// "mysqllocktest/". What it writes stays; delete it by
//
//	DELETE FROM election_records WHERE election_name LIKE 'mysqllocktest/%'
func Run(t *testing.T, open func(t *testing.T) *sql.DB) {
	t.Helper()
	s := &suite{prefix: "mysqllocktest/" + strings.ToLower(rand.Text()[:10]) + "/"}
	s.open = func(t *testing.T) *sql.DB {
		t.Helper()
		db := open(t)
		t.Cleanup(func() { _ = db.Close() }) // nothing to lose
		return db
	}
	db := s.open(t)
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `SELECT 1 FROM mysqllocktest_ledger WHERE 1 = 0`); err != nil {
		const ledger = `CREATE TABLE IF NOT EXISTS mysqllocktest_ledger (entry VARCHAR(100) NOT NULL PRIMARY KEY) ENGINE=InnoDB`
		if _, err := db.ExecContext(t.Context(), ledger); err != nil {
			t.Fatal(err)
		}
	}
	for _, requirement := range []struct {
		name string
		test func(*testing.T)
	}{
		{"a record comes back as it was written", s.records},
		{"names are compared byte by byte", s.names},
		{"a write is seen by every connection at once", s.reads},
		{"of candidates that create one election one wins", s.creates},
		{"of candidates that saw the same row one wins", s.takeovers},
		{"a compare-and-swap with an older row changes nothing", s.stale},
		{"a request to step down ends the renewals of that leader alone", s.stepsDown},
		{"a leader that is not ready is asked to step down", s.follows},
		{"fencing tokens grow", s.tokens},
		{"a guarded transaction commits", s.commits},
		{"a stale leader's transaction commits nothing", s.fences},
		{"a takeover is refused at once while a transaction guards the term", s.pins},
		{"a fenced statement of a stale leader changes nothing", s.fencesStatements},
		{"a takeover is refused while a fenced statement's transaction is open", s.pinsByStatements},
		{"a session that is cut off rolls back", s.cutOff},
		{"a statement that is given up ends", s.deadlines},
	} {
		t.Run(requirement.name, requirement.test)
	}
}

type suite struct {
	prefix string
	open   func(*testing.T) *sql.DB
}

// timeout is longer than a slow service needs for an operation, and shorter than a person waits.
const timeout = 20 * time.Second

func (s *suite) lock(t *testing.T, db *sql.DB, election, identity string, opts ...mysqllock.Option) *mysqllock.Lock {
	t.Helper()
	if len(opts) == 0 {
		opts = []mysqllock.Option{mysqllock.WithOperationTimeout(timeout)}
	}
	lock, err := mysqllock.New(db, s.prefix+election, resourcelock.ResourceLockConfig{Identity: identity}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

func record(identity string) resourcelock.LeaderElectionRecord {
	now := metav1.NewTime(time.Now().UTC().Truncate(time.Microsecond))
	return resourcelock.LeaderElectionRecord{HolderIdentity: identity, LeaseDurationSeconds: 60, AcquireTime: now, RenewTime: now}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// get reads the row, so that an Update may follow.
func get(t *testing.T, lock *mysqllock.Lock) *resourcelock.LeaderElectionRecord {
	t.Helper()
	r, _, err := lock.Get(t.Context())
	must(t, lock.Describe()+": Get", err)
	return r
}

// takeOver begins a term of the lock's candidate.
func takeOver(t *testing.T, lock *mysqllock.Lock) {
	t.Helper()
	get(t, lock)
	must(t, lock.Describe()+": a takeover", lock.Update(t.Context(), record(lock.Identity())))
}

func token(t *testing.T, lock *mysqllock.Lock) int64 {
	t.Helper()
	token, held := lock.FencingToken()
	if !held {
		t.Fatal("a leader has no fencing token")
	}
	return token
}

func (s *suite) records(t *testing.T) {
	lock := s.lock(t, s.open(t), "records", "candidate")
	want := record("candidate")
	want.LeaderTransitions, want.Strategy, want.PreferredHolder = 7, "OldestEmulationVersion", "other"
	want.AcquireTime = metav1.NewTime(time.Date(2024, 2, 29, 23, 59, 59, 999999000, time.UTC))
	must(t, "Create", lock.Create(t.Context(), want))
	if got := get(t, lock); fmt.Sprint(*got) != fmt.Sprint(want) {
		t.Errorf("wrote %+v\nread  %+v", want, *got)
	}
}

func (s *suite) names(t *testing.T) {
	db := s.open(t)
	long := strings.Repeat("x", 250-len(s.prefix))
	names := []string{"a", "A", "á", "ä", "ß", "ss", "日本", "😀", "e\u0301", "é", `it's "a" \ name`, long + "1", long + "2"}
	for _, name := range names {
		lock := s.lock(t, db, name, name)
		must(t, fmt.Sprintf("Create of %q", name), lock.Create(t.Context(), record(name)))
	}
	for _, name := range names {
		if holder := get(t, s.lock(t, db, name, "reader")).HolderIdentity; holder != name {
			t.Errorf("the election %q is held by %q", name, holder)
		}
	}
}

func (s *suite) reads(t *testing.T) {
	db := s.open(t)
	writer := s.lock(t, db, "reads", "writer")
	must(t, "Create", writer.Create(t.Context(), record("writer")))
	var readers []*mysqllock.Lock
	for range 4 {
		other := s.open(t)
		other.SetMaxOpenConns(1)
		readers = append(readers, s.lock(t, other, "reads", "reader"))
	}
	for i := range 25 {
		r := record("writer")
		r.LeaderTransitions = i
		must(t, "a renewal", writer.Update(t.Context(), r))
		for _, reader := range readers {
			if got := get(t, reader).LeaderTransitions; got != i {
				t.Fatalf("renewal %d: a connection reads %d; are reads served by a replica?", i, got)
			}
		}
	}
}

const candidates = 8

// race lets all of them do it at once, and returns those that succeeded.
func race(t *testing.T, locks []*mysqllock.Lock, do func(*mysqllock.Lock) error) (winners []*mysqllock.Lock) {
	t.Helper()
	var all sync.WaitGroup
	var mu sync.Mutex
	start := make(chan struct{})
	for _, lock := range locks {
		all.Add(1)
		go func() {
			defer all.Done()
			<-start
			err := do(lock)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				winners = append(winners, lock)
			case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err):
				t.Logf("a loser's error: %v", err) // a deadlock, say: it has not won
			}
		}()
	}
	close(start)
	all.Wait()
	return winners
}

func (s *suite) pools(t *testing.T) []*sql.DB {
	var pools []*sql.DB
	for range candidates {
		db := s.open(t)
		db.SetMaxOpenConns(1)
		pools = append(pools, db)
	}
	return pools
}

func (s *suite) creates(t *testing.T) {
	pools := s.pools(t)
	won := 0
	for round := range 20 {
		var locks []*mysqllock.Lock
		for i, db := range pools {
			locks = append(locks, s.lock(t, db, fmt.Sprintf("creates-%d", round), fmt.Sprintf("c%d", i)))
		}
		winners := race(t, locks, func(l *mysqllock.Lock) error { return l.Create(t.Context(), record(l.Identity())) })
		if len(winners) > 1 {
			t.Fatalf("round %d: %d candidates created one election", round, len(winners))
		}
		won += len(winners)
		if len(winners) == 1 && get(t, locks[0]).HolderIdentity != winners[0].Identity() {
			t.Fatalf("round %d: the winner doesn't hold the election", round)
		}
	}
	if won < 10 {
		t.Errorf("somebody won in %d of 20 rounds only; the errors are above", won)
	}
}

func (s *suite) takeovers(t *testing.T) {
	pools := s.pools(t)
	var locks []*mysqllock.Lock
	for i, db := range pools {
		locks = append(locks, s.lock(t, db, "takeovers", fmt.Sprintf("c%d", i)))
	}
	must(t, "Create", locks[0].Create(t.Context(), record("c0")))
	won := 0
	for round := range 60 {
		for _, lock := range locks {
			get(t, lock)
		}
		winners := race(t, locks, func(l *mysqllock.Lock) error { return l.Update(t.Context(), record(l.Identity())) })
		if len(winners) > 1 {
			t.Fatalf("round %d: %d candidates won one election", round, len(winners))
		}
		won += len(winners)
		holder := get(t, s.lock(t, pools[0], "takeovers", "reader")).HolderIdentity
		if len(winners) == 1 && holder != winners[0].Identity() {
			t.Fatalf("round %d: %s won, %q holds the election", round, winners[0].Identity(), holder)
		}
	}
	if won < 30 {
		t.Errorf("somebody won in %d of 60 rounds only; the errors are above", won)
	}
}

func (s *suite) stale(t *testing.T) {
	first, second := s.lock(t, s.open(t), "stale", "first"), s.lock(t, s.open(t), "stale", "second")
	must(t, "Create", first.Create(t.Context(), record("first")))
	get(t, second)
	must(t, "a renewal", first.Update(t.Context(), record("first")))
	if err := second.Update(t.Context(), record("second")); !apierrors.IsConflict(err) {
		t.Fatalf("a takeover of a row that was renewed: error %v, want a Conflict", err)
	}
	takeOver(t, second)
	if err := first.Update(t.Context(), record("first")); !apierrors.IsConflict(err) {
		t.Fatalf("a renewal after a takeover: error %v, want a Conflict", err)
	}
	if holder := get(t, second).HolderIdentity; holder != "second" {
		t.Errorf("held by %q", holder)
	}
}

func (s *suite) stepsDown(t *testing.T) {
	db := s.open(t)
	leader, other := s.lock(t, db, "step-down", "leader"), s.lock(t, db, "step-down", "other")
	must(t, "Create", leader.Create(t.Context(), record("leader")))
	must(t, "RequestStepDown", mysqllock.RequestStepDown(t.Context(), db, s.prefix+"step-down"))
	if err := leader.Update(t.Context(), record("leader")); err == nil || apierrors.IsConflict(err) {
		t.Errorf("a renewal after the request: error %v, want one that is no Conflict", err)
	}
	takeOver(t, other)
	must(t, "a renewal of the next leader", other.Update(t.Context(), record("other")))
}

func (s *suite) follows(t *testing.T) {
	db := s.open(t)
	ready := func(context.Context) error { return nil }
	unready := atomic.Bool{}
	mayBe := func(context.Context) error {
		if unready.Load() {
			return errors.New("not ready")
		}
		return nil
	}
	const retry = 100 * time.Millisecond
	timings := mysqllock.WithTimings(60*time.Second, 10*time.Second, retry)
	leader := s.lock(t, db, "readiness", "leader", timings, mysqllock.WithReadiness(mayBe))
	follower := s.lock(t, db, "readiness", "follower", timings, mysqllock.WithReadiness(ready))
	must(t, "Create", leader.Create(t.Context(), record("leader")))
	unready.Store(true)
	must(t, "a renewal of a leader that is not ready", leader.Update(t.Context(), record("leader")))
	get(t, follower)
	tick := time.NewTicker(retry)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		if err := leader.Update(t.Context(), record("leader")); err != nil {
			break // asked
		}
		get(t, follower)
		if time.Since(began) > timeout {
			t.Fatal("a follower that is ready does not ask the leader to step down")
		}
	}
}

func (s *suite) tokens(t *testing.T) {
	db := s.open(t)
	a, b := s.lock(t, db, "tokens", "a"), s.lock(t, db, "tokens", "b")
	must(t, "Create", a.Create(t.Context(), record("a")))
	last := token(t, a)
	for round := range 10 {
		must(t, "a renewal", a.Update(t.Context(), record("a")))
		if got := token(t, a); got != last {
			t.Fatalf("round %d: a renewal changes the token from %d to %d", round, last, got)
		}
		must(t, "a release", a.Update(t.Context(), record("")))
		for _, next := range []*mysqllock.Lock{b, a} {
			takeOver(t, next)
			if got := token(t, next); got <= last {
				t.Fatalf("round %d: the token of a new term is %d after %d", round, got, last)
			}
			last = token(t, next)
		}
	}
}

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

func (s *suite) wantEntry(t *testing.T, db querier, name string, want int) {
	t.Helper()
	var n int
	must(t, "reading the ledger", db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM mysqllocktest_ledger WHERE entry = ?`, s.entry(name)).Scan(&n))
	if n != want {
		t.Errorf("%d entries %q, want %d", n, name, want)
	}
}

var levels = []sql.IsolationLevel{sql.LevelDefault, sql.LevelReadUncommitted, sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable}

func (s *suite) commits(t *testing.T) {
	db := s.open(t)
	lock := s.lock(t, db, "commits", "leader")
	must(t, "Create", lock.Create(t.Context(), record("leader")))
	for _, level := range levels {
		name := "commits " + level.String()
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
		if !errors.Is(err, mysqllock.ErrNotLeader) {
			t.Errorf("%v: error %v, want ErrNotLeader", level, err)
		}
		s.wantEntry(t, db, election, 0)
	}
}

func (s *suite) pins(t *testing.T) {
	db := s.open(t)
	leader, next := s.lock(t, db, "pins", "leader"), s.lock(t, s.open(t), "pins", "next")
	must(t, "Create", leader.Create(t.Context(), record("leader")))
	tx, err := db.BeginTx(t.Context(), nil)
	must(t, "BEGIN", err)
	defer func() { _ = tx.Rollback() }() // if the test fails before its commit
	must(t, "Guard", leader.Guard(t.Context(), tx))
	get(t, next)
	began := time.Now()
	if err := next.Update(t.Context(), record("next")); err == nil {
		t.Fatal("a takeover succeeds while a transaction guards the term")
	}
	if took := time.Since(began); took > timeout/2 {
		t.Errorf("a takeover is refused after %v only; does the server know FOR UPDATE NOWAIT?", took)
	}
	must(t, "a renewal beside the guard", leader.Update(t.Context(), record("leader")))
	must(t, "INSERT", s.insert("pins")(t.Context(), tx))
	must(t, "COMMIT", tx.Commit())
	s.wantEntry(t, db, "pins", 1)
	takeOver(t, next)
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
	leader, next := s.lock(t, db, "cut off", "leader"), s.lock(t, s.open(t), "cut off", "next")
	must(t, "Create", leader.Create(t.Context(), record("leader")))
	conn, err := db.Conn(t.Context())
	must(t, "a connection", err)
	tx, err := conn.BeginTx(t.Context(), nil)
	must(t, "BEGIN", err)
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
		t.Fatal("a renewal succeeds while another session has the row locked")
	}
	if took := time.Since(began); took > timeout/2 {
		t.Errorf("a renewal that waits for a lock is given up after %v, not 500ms", took)
	}
}
