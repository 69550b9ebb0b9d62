package mysqllock_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// takeOver makes a candidate the leader, without waiting for anybody's lease.
func takeOver(t testing.TB, lock *mysqllock.Lock) {
	t.Helper()
	if err := tryTakeOver(t.Context(), lock); err != nil {
		t.Fatal(err)
	}
}

func tryTakeOver(ctx context.Context, lock *mysqllock.Lock) error {
	_, _, err := lock.Get(ctx)
	switch {
	case apierrors.IsNotFound(err):
		return lock.Create(ctx, record(lock.Identity()))
	case err != nil:
		return err
	}
	return lock.Update(ctx, record(lock.Identity()))
}

// newLedger makes a table that leaders write to, and a pool of its own.
func newLedger(t testing.TB, config *mysql.Config) *sql.DB {
	t.Helper()
	work := openDSN(t, config, "")
	exec(t, work, `CREATE TABLE ledger (id INT AUTO_INCREMENT PRIMARY KEY, entry VARCHAR(60) NOT NULL) ENGINE=InnoDB`)
	return work
}

func insert(ctx context.Context, tx *sql.Tx, entry string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO ledger (entry) VALUES (?)`, entry)
	return err
}

func inserting(entry string) func(context.Context, *sql.Tx) error {
	return func(ctx context.Context, tx *sql.Tx) error { return insert(ctx, tx, entry) }
}

// ledger is all that was committed.
func ledger(t testing.TB, db *sql.DB) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT entry FROM ledger ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var entries []string
	for rows.Next() {
		var entry string
		if err := rows.Scan(&entry); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return entries
}

func wantLedger(t testing.TB, db *sql.DB, want ...string) {
	t.Helper()
	if got := ledger(t, db); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("committed: %q, want %q", got, want)
	}
}

// wantSessionsAsFound checks that the pool hands out sessions as the server
// makes them.
func wantSessionsAsFound(t testing.TB, db *sql.DB) {
	t.Helper()
	var autocommit bool
	var session, global int
	err := db.QueryRowContext(t.Context(), `SELECT @@autocommit, @@session.wait_timeout, @@global.wait_timeout`).Scan(&autocommit, &session, &global)
	if err != nil {
		t.Fatal(err)
	}
	if !autocommit || session != global {
		t.Errorf("the pool's session has autocommit %t and wait_timeout %d (server: %d)", autocommit, session, global)
	}
}

// isolationLevels are those that both servers have.
var isolationLevels = []sql.IsolationLevel{
	sql.LevelDefault, sql.LevelReadUncommitted, sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable,
}

func TestALeadersTransactionIsCommittedAtEveryIsolationLevel(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	var want []string
	for _, level := range isolationLevels {
		if err := leader.Transact(t.Context(), work, &sql.TxOptions{Isolation: level}, inserting(level.String())); err != nil {
			t.Errorf("%v: %v", level, err)
		}
		want = append(want, level.String())
	}
	wantLedger(t, work, want...)
	wantSessionsAsFound(t, work)
}

func TestAStaleLeadersTransactionIsNeverCommitted(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	for _, level := range isolationLevels {
		for _, moment := range []string{"before it begins", "before its first statement", "after its last statement"} {
			t.Run(fmt.Sprintf("%v, taken over %s", level, moment), func(t *testing.T) {
				election := level.String() + moment
				stale := newLock(t, db, election, "stale")
				takeOver(t, stale)
				successor := newLock(t, db, election, "successor")
				if moment == "before it begins" {
					takeOver(t, successor)
				}
				err := stale.Transact(t.Context(), work, &sql.TxOptions{Isolation: level}, func(ctx context.Context, tx *sql.Tx) error {
					if moment == "before its first statement" {
						takeOver(t, successor)
					}
					if err := insert(ctx, tx, election); err != nil {
						return err
					}
					if moment == "after its last statement" {
						takeOver(t, successor)
					}
					return nil
				})
				if !errors.Is(err, mysqllock.ErrNotLeader) {
					t.Errorf("error %v, want ErrNotLeader", err)
				}
			})
		}
	}
	wantLedger(t, work)
	wantSessionsAsFound(t, work)
}

func TestATransactionOfAnEarlierTermIsNotCommittedInALaterOne(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	a, b := newLock(t, db, "e", "a"), newLock(t, db, "e", "b")
	takeOver(t, a)
	err := a.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
		takeOver(t, b)
		takeOver(t, a) // leads again, but what fn read may be b's
		return insert(ctx, tx, "of the first term")
	})
	if !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("error %v, want ErrNotLeader", err)
	}
	wantLedger(t, work)
}

func TestNobodyTakesOverWhileAGuardedTransactionIsOpenAndRenewalsGoOn(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	leader, follower := newLock(t, db, "e", "a"), newLock(t, db, "e", "b")
	takeOver(t, leader)
	for _, level := range isolationLevels {
		tx, err := work.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
		if err != nil {
			t.Fatal(err)
		}
		if err := leader.Guard(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := tryTakeOver(t.Context(), follower); err == nil {
				t.Fatalf("%v: the follower took over while the guard held", level)
			} else if apierrors.IsConflict(err) || !strings.Contains(err.Error(), "a transaction guards the current term") {
				t.Errorf("%v: %v", level, err)
			}
			if err := leader.Update(t.Context(), record("a")); err != nil {
				t.Errorf("%v: the renewal failed: %v", level, err)
			}
		}
		if err := insert(t.Context(), tx, level.String()); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		takeOver(t, follower)
		takeOver(t, leader)
	}
}

func TestAGuardIsRefusedWhenLeadershipHasPassed(t *testing.T) {
	db, config := newTables(t)
	work := openDSN(t, config, "")
	a, b := newLock(t, db, "e", "a"), newLock(t, db, "e", "b")
	guard := func(l *mysqllock.Lock) error {
		tx, err := work.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }()
		return l.Guard(t.Context(), tx)
	}
	if err := guard(a); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("never led: %v", err)
	}
	takeOver(t, a)
	if err := guard(a); err != nil {
		t.Errorf("leads: %v", err)
	}
	takeOver(t, b)
	if err := guard(a); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("was taken over without noticing: %v", err)
	}
	released := record("")
	if err := b.Update(t.Context(), released); err != nil {
		t.Fatal(err)
	}
	if err := guard(b); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("released: %v", err)
	}
	takeOver(t, a)
	exec(t, db, `DELETE FROM election_fences`)
	// Not a sign that another leads: nobody can, without a row.
	if err := guard(a); err == nil || errors.Is(err, mysqllock.ErrNotLeader) || !strings.Contains(err.Error(), "no row in election_fences") {
		t.Errorf("the fence row is gone: %v", err)
	}
	takeOver(t, a)
	a.RecordEvent("stopped leading")
	if err := guard(a); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("the elector stopped leading: %v", err)
	}
}

func TestAFunctionsErrorAndPanicRollBack(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)

	failure := errors.New("no")
	err := leader.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
		return errors.Join(insert(ctx, tx, "failed"), failure)
	})
	if err == nil || err.Error() != failure.Error() || !errors.Is(err, failure) {
		t.Errorf("error %v, want fn's own", err)
	}
	func() {
		defer func() {
			if p := recover(); p != "panicked" {
				t.Errorf("recovered %v", p)
			}
		}()
		_ = leader.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
			if err := insert(ctx, tx, "panicked"); err != nil {
				t.Error(err)
			}
			panic("panicked")
		})
	}()
	ctx, cancel := context.WithCancel(t.Context())
	err = leader.Transact(ctx, work, nil, func(ctx context.Context, tx *sql.Tx) error {
		defer cancel()
		return insert(ctx, tx, "cancelled")
	})
	if !errors.Is(err, context.Canceled) && !errors.Is(err, sql.ErrTxDone) {
		t.Errorf("cancelled: %v", err)
	}
	wantLedger(t, work)
	wantSessionsAsFound(t, work)
	if n := work.Stats().InUse; n != 0 {
		t.Errorf("%d connections still in use", n)
	}
}

// deadlock makes the transaction the victim of a deadlock and returns its error.
func deadlock(t testing.TB, ctx context.Context, work *sql.DB, tx *sql.Tx) error {
	t.Helper()
	other, err := work.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Rollback() }()
	must := func(_ sql.Result, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// The server rolls back the transaction that changed less.
	must(other.ExecContext(ctx, `INSERT INTO pairs SELECT seq.n + 100, 0 FROM (SELECT 1 AS n UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 6) AS seq`))
	must(other.ExecContext(ctx, `UPDATE pairs SET v = v + 1 WHERE id = 2`))
	must(tx.ExecContext(ctx, `UPDATE pairs SET v = v + 1 WHERE id = 1`))
	blocked := make(chan error, 1)
	go func() {
		_, err := other.ExecContext(ctx, `UPDATE pairs SET v = v + 1 WHERE id = 1`)
		blocked <- err
	}()
	_, err = tx.ExecContext(ctx, `UPDATE pairs SET v = v + 1 WHERE id = 2`)
	if blockedErr := <-blocked; blockedErr != nil {
		t.Fatalf("the other transaction was the victim: %v", blockedErr)
	}
	return err
}

func TestATransactionThatTheServerEndedCommitsNothingWhenTheFunctionGoesOn(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	exec(t, work, `CREATE TABLE pairs (id INT PRIMARY KEY, v INT NOT NULL) ENGINE=InnoDB`)
	exec(t, work, `INSERT INTO pairs VALUES (1, 0), (2, 0)`)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	err := leader.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
		if err := insert(ctx, tx, "before"); err != nil {
			return err
		}
		err := deadlock(t, ctx, work, tx)
		var server *mysql.MySQLError
		if !errors.As(err, &server) || server.Number != 1213 {
			t.Errorf("expected a deadlock, got %v", err)
		}
		return insert(ctx, tx, "after") // swallowed
	})
	if err == nil || !strings.Contains(err.Error(), "ended before the function did") {
		t.Errorf("error %v", err)
	}
	wantLedger(t, work)
	wantSessionsAsFound(t, work)

	// Without Transact the same function's last statement is committed, even
	// though it is rolled back: this is what is being prevented.
	tx, err := work.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := deadlock(t, t.Context(), work, tx); err == nil {
		t.Fatal("no deadlock")
	}
	if err := insert(t.Context(), tx, "unguarded"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	wantLedger(t, work, "unguarded")
}

// MariaDB with innodb_snapshot_isolation ends a transaction that writes a row
// which changed since its snapshot (error 1020); other servers let it write.
func TestATransactionWithAStaleSnapshotCommitsAllOrNothing(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	exec(t, work, `CREATE TABLE counter (id INT PRIMARY KEY, v INT NOT NULL) ENGINE=InnoDB`)
	exec(t, work, `INSERT INTO counter VALUES (1, 0)`)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	ended := false
	err := leader.Transact(t.Context(), work, &sql.TxOptions{Isolation: sql.LevelRepeatableRead}, func(ctx context.Context, tx *sql.Tx) error {
		var v int
		if err := tx.QueryRowContext(ctx, `SELECT v FROM counter`).Scan(&v); err != nil {
			return err
		}
		exec(t, work, `UPDATE counter SET v = 10`)
		_, err := tx.ExecContext(ctx, `UPDATE counter SET v = v + 1`)
		var server *mysql.MySQLError
		switch ended = errors.As(err, &server) && server.Number == 1020; {
		case !ended && err != nil:
			return err
		}
		return insert(ctx, tx, "after")
	})
	t.Logf("the server ended the transaction: %t; Transact: %v", ended, err)
	if ended {
		if err == nil {
			t.Error("no error")
		}
		wantLedger(t, work)
		return
	}
	if err != nil {
		t.Error(err)
	}
	wantLedger(t, work, "after")
}

// The leader's renewals and takeovers of other elections must not make a
// guarded transaction fail, whatever its snapshot.
func TestRenewalsDuringATransactionDontDisturbItsGuard(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	for _, level := range isolationLevels {
		err := leader.Transact(t.Context(), work, &sql.TxOptions{Isolation: level}, func(ctx context.Context, tx *sql.Tx) error {
			if err := insert(ctx, tx, level.String()); err != nil {
				return err
			}
			var holder string
			if err := tx.QueryRowContext(ctx, `SELECT leader_name FROM election_records`).Scan(&holder); err != nil {
				return err
			}
			if level != sql.LevelSerializable { // which locks what it reads
				return leader.Update(ctx, record("a"))
			}
			return nil
		})
		if err != nil {
			t.Errorf("%v: %v", level, err)
		}
	}
}

func TestStatementsThatEndTheTransactionAreReported(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	for _, c := range []struct {
		name string
		end  func(context.Context, *sql.Tx) error
		text string
	}{
		{"DDL", statement(`CREATE TABLE other (id INT)`), "the transaction ended before the function did"},
		{"LOCK TABLES", statement(`LOCK TABLES ledger WRITE, election_fences READ`), "the transaction ended before the function did"},
		{"START TRANSACTION", statement(`START TRANSACTION`), "the transaction ended before the function did"},
		{"ROLLBACK", statement(`ROLLBACK`), "the transaction ended before the function did"},
		{"tx.Commit", func(_ context.Context, tx *sql.Tx) error { return tx.Commit() }, "the transaction was committed or rolled back by the function itself"},
		{"tx.Rollback", func(_ context.Context, tx *sql.Tx) error { return tx.Rollback() }, "the transaction was committed or rolled back by the function itself"},
	} {
		err := leader.Transact(t.Context(), work, nil, c.end)
		if err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: error %v", c.name, err)
		}
	}
	exec(t, work, `DELETE FROM ledger`) // no table lock was left behind
	wantSessionsAsFound(t, work)
}

func statement(text string) func(context.Context, *sql.Tx) error {
	return func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, text)
		return err
	}
}

func TestTransactRefusesWhatItCannotUse(t *testing.T) {
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a")
	nothing := func(context.Context, *sql.Tx) error { return nil }
	for _, c := range []struct {
		err  error
		text string
	}{
		{lock.Transact(t.Context(), nil, nil, nothing), `mysqllock: transact "e": db is nil; give a pool of the server that has the lock's tables`},
		{lock.Transact(t.Context(), db, nil, nil), `mysqllock: transact "e": fn is nil; give the function that does the work`},
		{lock.Transact(t.Context(), db, nil, nothing), `mysqllock: transact "e": not the leader`},
	} {
		if c.err == nil || c.err.Error() != c.text {
			t.Errorf("error %v, want %s", c.err, c.text)
		}
	}
}

// A session that had autocommit off before is given back with autocommit off.
func TestTransactWorksOnSessionsWithoutAutocommit(t *testing.T) {
	db, config := newTables(t)
	newLedger(t, config)
	work := openDSN(t, config, "autocommit=0")
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	if err := leader.Transact(t.Context(), work, nil, inserting("entry")); err != nil {
		t.Fatal(err)
	}
	wantLedger(t, db, "entry")
	var autocommit bool
	if err := work.QueryRowContext(t.Context(), `SELECT @@autocommit`).Scan(&autocommit); err != nil || autocommit {
		t.Errorf("autocommit %t, error %v", autocommit, err)
	}
}

func TestACommitWithoutAReplyIsUnknownAndOneThatWasNotSentIsNot(t *testing.T) {
	for _, c := range []struct {
		statement string // the one whose reply doesn't come
		unknown   bool
	}{{"COMMIT", true}, {"LOCK IN SHARE MODE", false}, {"RELEASE SAVEPOINT", false}} {
		t.Run(c.statement, func(t *testing.T) {
			t.Parallel()
			db, config := newTables(t)
			newLedger(t, config)
			leader := newLock(t, db, "e", "a")
			short := record("a")
			short.LeaseDurationSeconds = 1
			if err := leader.Create(t.Context(), short); err != nil {
				t.Fatal(err)
			}
			network := newProxy(t, config.Addr)
			network.onRequest = func(request []byte) {
				if bytes.Contains(request, []byte(c.statement)) {
					network.swallowReplies()
				}
			}
			work := openDSN(t, network.config(config), "")
			err := leader.Transact(t.Context(), work, nil, inserting("entry"))
			if errors.Is(err, mysqllock.ErrOutcomeUnknown) != c.unknown {
				t.Errorf("error %v", err)
			}
			if c.unknown {
				wantLedger(t, db, "entry") // here it was committed
			} else {
				wantLedger(t, db)
			}
			if n := work.Stats().OpenConnections; n != 0 {
				t.Errorf("%d connections of unknown state are left in the pool", n)
			}
		})
	}
}

// A process that is cut off right after its guard holds takeovers off until the
// server drops its session, about a lease later.
func TestAClientThatIsCutOffAfterItsGuardHoldsTakeoversOffForALease(t *testing.T) {
	db, config := newTables(t)
	newLedger(t, config)
	leader, follower := newLock(t, db, "e", "a"), newLock(t, db, "e", "b")
	short := record("a")
	short.LeaseDurationSeconds = 2
	if err := leader.Create(t.Context(), short); err != nil {
		t.Fatal(err)
	}
	network := newProxy(t, config.Addr)
	cutOff := make(chan time.Time, 1)
	network.onRequest = func(request []byte) {
		if bytes.Contains(request, []byte("COMMIT")) {
			network.blackHole()
			cutOff <- time.Now()
		}
	}
	work := openDSN(t, network.config(config), "")
	result := make(chan error, 1)
	go func() { result <- leader.Transact(t.Context(), work, nil, inserting("entry")) }()
	var since time.Time
	select {
	case since = <-cutOff:
	case err := <-result:
		t.Fatalf("the transaction never came to its COMMIT: %v", err)
	}
	if err := tryTakeOver(t.Context(), follower); err == nil {
		t.Error("the follower took over although the guard held")
	}
	eventually(t, 10*time.Second, "the follower takes over", func() bool { return tryTakeOver(t.Context(), follower) == nil })
	t.Logf("takeover %v after the cut, with a lease of 2 s", time.Since(since).Round(10*time.Millisecond))
	if err := <-result; !errors.Is(err, mysqllock.ErrOutcomeUnknown) {
		t.Errorf("error %v, want ErrOutcomeUnknown", err)
	}
	network.forward() // the COMMIT arrives now, after the takeover
	wantLedger(t, db)
}

func TestFencingTokensGrowWhateverHappensToTheRows(t *testing.T) {
	db, _ := newTables(t)
	locks := []*mysqllock.Lock{newLock(t, db, "e", "a"), newLock(t, db, "e", "b"), newLock(t, db, "e", "c")}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	largest := int64(0)
	terms := 0
	for step := range 1000 {
		i := random.IntN(len(locks))
		switch random.IntN(8) {
		case 0:
			exec(t, db, `DELETE FROM election_records`)
		case 1:
			exec(t, db, `DELETE FROM election_fences`)
		case 2: // the process restarts
			locks[i] = newLock(t, db, "e", locks[i].Identity())
		case 3: // a release, if it leads
			if _, _, err := locks[i].Get(t.Context()); err == nil {
				_ = locks[i].Update(t.Context(), record(""))
			}
		default:
			before, held := locks[i].FencingToken()
			if err := tryTakeOver(t.Context(), locks[i]); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			token, leads := locks[i].FencingToken()
			switch {
			case !leads:
				t.Fatalf("seed %d, step %d: no token", seed, step)
			case held && token == before && token == largest: // a renewal
			case token <= largest:
				t.Fatalf("seed %d, step %d: token %d after %d", seed, step, token, largest)
			default:
				largest = token
				terms++
			}
		}
	}
	t.Logf("%d terms in 1000 steps, seed %d", terms, seed)
}

func TestAReleasedAndRegainedElectionHasANewToken(t *testing.T) {
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a")
	takeOver(t, lock)
	first, _ := lock.FencingToken()
	if err := lock.Update(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if token, held := lock.FencingToken(); token != first || !held {
		t.Errorf("a renewal changed the token from %d to %d", first, token)
	}
	if err := lock.Update(t.Context(), record("")); err != nil {
		t.Fatal(err)
	}
	if token, held := lock.FencingToken(); token != 0 || held {
		t.Errorf("after the release: %d, %t", token, held)
	}
	if err := lock.Update(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if token, held := lock.FencingToken(); token <= first || !held {
		t.Errorf("the second term has token %d, the first had %d", token, first)
	}
}

// A client's clock in the year 2100 makes versions large, not tokens.
func TestAClientsClockCantInflateTokens(t *testing.T) {
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a")
	takeOver(t, lock)
	exec(t, db, `UPDATE election_records SET version = 4102444800000000`)
	other := newLock(t, db, "e", "b")
	takeOver(t, other)
	token, _ := other.FencingToken()
	if limit := time.Now().Add(time.Hour).UnixMicro(); token > limit {
		t.Errorf("token %d is in the future", token)
	}
}
