package mysqllock_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// The work of a leader is often in an application's own database, on the same server. There may
// even be tables of the lock's names in it, as somebody followed the advice of an error.
func TestTransactAndGuardFindTheTablesFromAnotherDefaultDatabase(t *testing.T) {
	db, config := newTables(t)
	restricted := newAccount(t, config, "SELECT ON {db}.election_fences", "UPDATE ON {db}.election_fences")
	for _, migrated := range []bool{false, true} {
		t.Run(fmt.Sprintf("tables in the other one, too: %t", migrated), func(t *testing.T) {
			elsewhere := newConfig(t)
			admin := open(t, elsewhere)
			newLedger(t, elsewhere)
			exec(t, admin, `GRANT ALL ON `+elsewhere.DBName+`.* TO '`+restricted.User+`'@'%'`)
			if migrated {
				mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), admin) })
			}
			narrow := restricted.Clone()
			narrow.DBName = elsewhere.DBName
			for _, c := range []struct {
				name string
				work func(testing.TB) *sql.DB
			}{
				{"a pool of one's own", func(t testing.TB) *sql.DB { t.Helper(); return openDSN(t, elsewhere, "") }},
				{"a pool of Open", func(t testing.TB) *sql.DB { t.Helper(); return open(t, elsewhere) }},
				{"latin1", func(t testing.TB) *sql.DB { t.Helper(); return openDSN(t, elsewhere, "charset=latin1") }},
				{"another user", func(t testing.TB) *sql.DB { t.Helper(); return open(t, narrow) }},
				{"after USE", func(t testing.TB) *sql.DB {
					t.Helper()
					work := openOne(t, config, "")
					exec(t, work, `USE `+elsewhere.DBName)
					return work
				}},
			} {
				t.Run(c.name, func(t *testing.T) {
					for _, election := range []string{"e", "élection"} {
						election = fmt.Sprintf("%s of %s, %t", election, c.name, migrated)
						mustGuard(t, db, c.work(t), election)
						mustGuard(t, open(t, elsewhere), c.work(t), election+" by option", mysqllock.WithDatabase(config.DBName))
					}
				})
			}
		})
	}
}

// wantSessionsAsFound checks that the pool hands out sessions as the server makes them.
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

func TestTransactCommitsALeadersTransactionAtEveryIsolationLevel(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
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
	})
}

func TestTransactNeverCommitsAStaleLeadersTransaction(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
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
	})
}

func TestTransactOfAnEarlierTermIsNotCommittedInALaterOne(t *testing.T) {
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

func TestTransactRollsBackAfterAFunctionsErrorAndPanic(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
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
	})
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

func TestTransactCommitsNothingWhenTheServerEndedItAndTheFunctionGoesOn(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
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

		if isMariaDB105() {
			return // after a deadlock it begins the next transaction by itself
		}
		// Without Transact the same function's last statement is committed, even though it is rolled
		// back: this is what is being prevented.
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
	})
}

// MariaDB with innodb_snapshot_isolation ends a transaction that writes a row which changed since
// its snapshot (error 1020); other servers let it write.
func TestTransactWithAStaleSnapshotCommitsAllOrNothing(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
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
	})
}

func TestTransactReportsStatementsThatEndTheTransaction(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
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
			{"tx.Commit", func(_ context.Context, tx *sql.Tx) error { return tx.Commit() }, "leave that to Transact"},
			{"tx.Rollback", func(_ context.Context, tx *sql.Tx) error { return tx.Rollback() }, "the function itself called Commit or Rollback"},
		} {
			err := leader.Transact(t.Context(), work, nil, c.end)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: error %v", c.name, err)
			}
		}
		exec(t, work, `DELETE FROM ledger`) // no table lock was left behind
		wantSessionsAsFound(t, work)
	})
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

// A session that had autocommit off before, or a shorter wait_timeout, keeps that.
func TestTransactGivesSessionsBackAsTheirPoolMakesThem(t *testing.T) {
	db, config := newTables(t)
	newLedger(t, config)
	work := openDSN(t, config, "autocommit=0&wait_timeout=7")
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	err := leader.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
		var seconds int
		if err := tx.QueryRowContext(ctx, `SELECT @@session.wait_timeout`).Scan(&seconds); err != nil || seconds != 7 {
			t.Errorf("wait_timeout %d, error %v, want 7, which is less than the lease", seconds, err)
		}
		return insert(ctx, tx, "entry")
	})
	if err != nil {
		t.Fatal(err)
	}
	wantLedger(t, db, "entry")
	var autocommit bool
	var seconds int
	err = work.QueryRowContext(t.Context(), `SELECT @@autocommit, @@session.wait_timeout`).Scan(&autocommit, &seconds)
	if err != nil || autocommit || seconds != 7 {
		t.Errorf("autocommit %t, wait_timeout %d, error %v", autocommit, seconds, err)
	}
}

func TestTransactHasTheOptionsThatItIsGiven(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
		leader := newLock(t, db, "e", "a")
		takeOver(t, leader)
		err := leader.Transact(t.Context(), work, &sql.TxOptions{ReadOnly: true}, inserting("entry"))
		if err == nil {
			t.Error("an insert into a read-only transaction: no error")
		}
		wantLedger(t, db)
		for level, want := range map[sql.IsolationLevel]int{sql.LevelReadCommitted: 1, sql.LevelRepeatableRead: 0} {
			exec(t, db, `DELETE FROM ledger`)
			err := leader.Transact(t.Context(), work, &sql.TxOptions{Isolation: level}, func(ctx context.Context, tx *sql.Tx) error {
				var before, after int
				if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM ledger`).Scan(&before); err != nil {
					return err
				}
				exec(t, db, `INSERT INTO ledger (entry) VALUES ('meanwhile')`)
				if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM ledger`).Scan(&after); err != nil {
					return err
				}
				if before != 0 || after != want {
					t.Errorf("%v: %d rows, then %d, want %d", level, before, after, want)
				}
				return nil
			})
			if err != nil {
				t.Errorf("%v: %v", level, err)
			}
		}
	})
}

func TestTransactCallsACommitWithoutAReplyUnknownAndOneThatWasNotSentNot(t *testing.T) {
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

// A process that is cut off right after its guard holds takeovers off until the server drops its
// session, about a lease later.
func TestTransactOfAClientThatIsCutOffHoldsTakeoversOffForALease(t *testing.T) {
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

// A leader's work is cut off in the same way at each packet of a Transact. The leader's own
// renewals go on, and another candidate can take over at the latest about a lease after the guard,
// when the server drops the session.
func TestTransactThatIsCutOffAtAnyPacketHoldsTakeoversOffForALeaseAtMost(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	newLedger(t, config)
	patient := mysqllock.WithOperationTimeout(time.Second) // on a busy machine
	const lease = time.Second
	inOneSecond := record("leader")
	inOneSecond.LeaseDurationSeconds = int(lease / time.Second)
	// start begins a Transact that is cut off after n packets; negative: never.
	start := func(t *testing.T, leader *mysqllock.Lock, entry string, n int) (network *severed, result chan error) {
		if err := leader.Create(t.Context(), inOneSecond); err != nil {
			t.Fatal(err)
		}
		network = newSevered(t)
		work := open(t, network.config(config))
		work.SetMaxOpenConns(1)
		if err := work.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		network.after(n)
		result = make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // for the function's own statement
			defer cancel()
			result <- leader.Transact(ctx, work, nil, inserting(entry))
		}()
		return network, result
	}
	whole, result := start(t, newLock(t, db, "whole", "leader", patient), "whole", -1)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	packets := whole.count()
	var tests []test
	for n := range packets + 1 {
		tests = append(tests, test{fmt.Sprintf("%d of %d", n, packets), func(t *testing.T) {
			election := fmt.Sprintf("transact %d", n)
			leader := newLock(t, db, election, "leader", patient)
			other := newLock(t, db, election, "other", patient)
			network, result := start(t, leader, election, n)
			<-network.cut
			cut := time.Now()
			renewals := 0
			eventually(t, lease+4*time.Second, "another candidate takes over", func() bool {
				if err := leader.Update(t.Context(), inOneSecond); err != nil {
					t.Errorf("the leader's renewal: %v", err)
				}
				renewals++
				return tryTakeOver(t.Context(), other) == nil
			})
			t.Logf("HAZARD | h: cut off after packet %d of %d of a Transact | takeover %v later, lease %v, %d renewals meanwhile",
				n, packets, time.Since(cut).Round(10*time.Millisecond), lease, renewals)
			err := <-result
			committed := slices.Contains(ledger(t, db), election)
			if unknown := errors.Is(err, mysqllock.ErrOutcomeUnknown); !unknown && committed != (err == nil) {
				t.Errorf("committed: %t, error %v", committed, err)
			}
		}})
	}
	together(t, tests...)
}

// A consistent read of a table that was altered since the snapshot fails. That is as good as a
// deadlock: nothing is committed, and the next try sees the new table.
func TestTransactThatIsOlderThanItsTableMayBeTriedAgain(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		t.Parallel()
		for _, alter := range []string{`ALTER TABLE election_fences ENGINE = InnoDB`, `RENAME TABLE election_fences TO moved; CREATE TABLE election_fences LIKE moved; INSERT INTO election_fences SELECT * FROM moved`} {
			t.Run(alter, func(t *testing.T) {
				admin, config := newTables(t)
				work := newLedgerIn(t, config, openWork)
				lock := newLock(t, admin, "e", "a")
				takeOver(t, lock)
				try := func(between func()) error {
					return lock.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
						if _, err := tx.ExecContext(ctx, `INSERT INTO ledger (entry) SELECT 'x' FROM ledger WHERE 1 = 0`); err != nil {
							return err
						}
						var n int
						if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM ledger`).Scan(&n); err != nil {
							return err
						}
						between()
						return inserting("entry")(ctx, tx)
					})
				}
				err := try(func() {
					for statement := range strings.SplitSeq(alter, "; ") {
						exec(t, admin, statement)
					}
				})
				var changed *mysql.MySQLError
				const remedy = "; the table was altered or replaced since the transaction began, which has committed nothing: try the whole of it again"
				if !errors.As(err, &changed) || changed.Number != 1412 || errors.Is(err, mysqllock.ErrOutcomeUnknown) || errors.Is(err, mysqllock.ErrNotLeader) || !strings.HasSuffix(err.Error(), remedy) {
					t.Errorf("Transact returned %v", err)
				}
				wantLedger(t, work)
				mustSucceed(t, "the next try", func() error { return try(func() {}) })
				wantLedger(t, work, "entry")
			})
		}
	})
}

// hasServerError reports whether err is the server's error of that number.
func hasServerError(err error, number uint16) bool {
	var server *mysql.MySQLError
	return errors.As(err, &server) && server.Number == number
}

func TestTransactThatWasTheVictimOfADeadlockMayBeTriedAgain(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		t.Parallel()
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
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
	})
}

// MariaDB ends a transaction that writes a row which changed since its snapshot, by default from
// 11.6.2 on and where the session asks for it also before. Others have no such setting, and let it
// write.
func TestTransactWithAStaleSnapshotCommitsNothingAndMayBeTriedAgain(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		t.Parallel()
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
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
	})
}

// Before the COMMIT is sent, nothing can have been committed.
func TestTransactThatRunsOutOfTimeBeforeItsCommitDoesNotCallItsOutcomeUnknown(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		t.Parallel()
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
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
	})
}

// isolationLevels are those that both servers have.
var isolationLevels = []sql.IsolationLevel{
	sql.LevelDefault, sql.LevelReadUncommitted, sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable,
}

func statement(text string) func(context.Context, *sql.Tx) error {
	return func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, text)
		return err
	}
}
