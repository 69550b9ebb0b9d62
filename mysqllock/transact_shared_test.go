package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// This file is about Transact on sessions that others use before and after.

// sessionSettings is all that Transact could leave behind in a session. MySQL doesn't tell whether
// a transaction is open.
func sessionSettings() string {
	settings := `SELECT CONCAT_WS(' ', @@autocommit, @@session.wait_timeout, @@tx_isolation, @@tx_read_only, @@in_transaction, IFNULL(@mysqllock_autocommit, '-'), IFNULL(@mysqllock_wait_timeout, '-'))`
	if !server.MariaDB() {
		settings = `SELECT CONCAT_WS(' ', @@autocommit, @@session.wait_timeout, @@transaction_isolation, @@transaction_read_only, 0, IFNULL(@mysqllock_autocommit, '-'), IFNULL(@mysqllock_wait_timeout, '-'))`
	}
	return settings
}

// Guarded transactions with every end and every option, fenced statements, an application's own
// statements and transactions, and the locks take the connections of one pool in a random order.
// Whoever takes one finds it as the server makes it, and what was committed is what was told.
func TestTransactInAPoolThatAllShareLeavesNoSettingBehind(t *testing.T) {
	t.Parallel()
	inEachPool(t, func(t *testing.T, openWork openPool) {
		_, config := newTables(t)
		pool := newLedgerIn(t, config, openWork)
		pool.SetMaxOpenConns(3)
		pool.SetMaxIdleConns(3)
		patient := mysqllock.WithOperationTimeout(10 * time.Second) // the pool is small
		leader, follower := newLock(t, pool, "e", "a", patient), newLock(t, pool, "e", "b", patient)
		takeOver(t, leader)
		ctx := t.Context()
		var want string
		if err := pool.QueryRowContext(ctx, sessionSettings()).Scan(&want); err != nil {
			t.Fatal(err)
		}

		var entries, committed atomic.Int64
		errOwn := errors.New("the function's own")
		insertOne := func(ctx context.Context, tx *sql.Tx) error {
			return insert(ctx, tx, fmt.Sprint("entry ", entries.Add(1)))
		}
		ended := func(err error) error { // what is to fail
			if err == nil {
				return errors.New("no error")
			}
			return nil
		}
		counted := func(err error) error {
			if err == nil {
				committed.Add(1)
			}
			return err
		}
		transact := func(opts *sql.TxOptions, fn func(context.Context, *sql.Tx) error) error {
			return leader.Transact(ctx, pool, opts, fn)
		}
		doings := []func(r *rand.Rand) error{
			func(*rand.Rand) error { return counted(transact(nil, insertOne)) },
			func(r *rand.Rand) error {
				return counted(transact(&sql.TxOptions{Isolation: isolationLevels[r.IntN(len(isolationLevels))]}, insertOne))
			},
			func(*rand.Rand) error {
				return transact(&sql.TxOptions{ReadOnly: true}, func(ctx context.Context, tx *sql.Tx) error {
					_, err := tx.ExecContext(ctx, `DO (SELECT COUNT(*) FROM ledger)`)
					return err
				})
			},
			func(*rand.Rand) error {
				return ended(transact(nil, func(ctx context.Context, tx *sql.Tx) error { return errors.Join(insertOne(ctx, tx), errOwn) }))
			},
			func(*rand.Rand) error {
				return ended(transact(nil, func(ctx context.Context, tx *sql.Tx) error { return errors.Join(insertOne(ctx, tx), tx.Rollback()) }))
			},
			func(*rand.Rand) error {
				return ended(transact(nil, func(ctx context.Context, tx *sql.Tx) error {
					if err := insertOne(ctx, tx); err != nil {
						return err
					}
					return statement(`ROLLBACK`)(ctx, tx)
				}))
			},
			func(*rand.Rand) error {
				ctx, cancel := context.WithCancel(ctx)
				return ended(leader.Transact(ctx, pool, nil, func(ctx context.Context, tx *sql.Tx) error {
					defer cancel()
					return insertOne(ctx, tx)
				}))
			},
			func(*rand.Rand) (err error) {
				defer func() {
					if p, _ := recover().(error); !errors.Is(p, errOwn) {
						err = errors.Join(p, err, errors.New("no panic of the function's own"))
					}
				}()
				return transact(nil, func(ctx context.Context, tx *sql.Tx) error { panic(errors.Join(insertOne(ctx, tx), errOwn)) })
			},
			func(*rand.Rand) error {
				condition, args, err := leader.FenceCondition()
				if err == nil {
					_, err = pool.ExecContext(ctx, `INSERT INTO ledger (entry) SELECT ? FROM DUAL WHERE `+condition, append([]any{fmt.Sprint("entry ", entries.Add(1))}, args...)...)
				}
				return counted(err)
			},
			func(*rand.Rand) error {
				_, err := pool.ExecContext(ctx, `INSERT INTO ledger (entry) VALUES (?)`, fmt.Sprint("entry ", entries.Add(1)))
				return counted(err)
			},
			func(r *rand.Rand) error {
				tx, err := pool.BeginTx(ctx, &sql.TxOptions{Isolation: isolationLevels[r.IntN(len(isolationLevels))]})
				if err != nil {
					return err
				}
				if err := errors.Join(insertOne(ctx, tx), leader.Guard(ctx, tx)); err != nil {
					return errors.Join(err, tx.Rollback())
				}
				return counted(tx.Commit())
			},
			func(*rand.Rand) error { return leader.Update(ctx, record("a")) },
			func(*rand.Rand) error { _, _, err := follower.Get(ctx); return err },
		}

		const seed = 14
		deadline := time.Now().Add(3 * time.Second)
		var all sync.WaitGroup
		var done atomic.Int64
		for worker := range 4 {
			all.Add(1)
			go func() {
				defer all.Done()
				r := rand.New(rand.NewPCG(seed, uint64(worker)))
				last := -1
				for time.Now().Before(deadline) && !t.Failed() {
					var got string
					if err := pool.QueryRowContext(ctx, sessionSettings()).Scan(&got); err != nil || got != want {
						t.Errorf("a session has the settings %q, error %v, want %q (this worker's last: %d)", got, err, want, last)
					}
					for range 1 + r.IntN(3) { // several without a look between them
						last = r.IntN(len(doings))
						if err := doings[last](r); err != nil {
							t.Errorf("doing %d: %v", last, err)
						}
						done.Add(1)
					}
				}
			}()
		}
		all.Wait()
		if got := len(ledger(t, pool)); got != int(committed.Load()) {
			t.Errorf("%d entries, but %d were said to be committed", got, committed.Load())
		}
		t.Logf("seed %d: %d doings, %d entries of %d committed", seed, done.Load(), committed.Load(), entries.Load())
	})
}

// Somebody's BEGIN without an end is no part of the guarded transaction, which rolls back only
// what is its own.
func TestTransactIsNoPartOfATransactionThatSomebodyLeftOpen(t *testing.T) {
	inEachPool(t, func(t *testing.T, openWork openPool) {
		db, config := newTables(t)
		pool := newLedgerIn(t, config, openWork)
		pool.SetMaxOpenConns(1)
		leader := newLock(t, db, "e", "a")
		takeOver(t, leader)
		errOwn := errors.New("the function's own")
		exec(t, pool, `BEGIN`)
		exec(t, pool, `INSERT INTO ledger (entry) VALUES ('left')`)
		err := leader.Transact(t.Context(), pool, nil, func(ctx context.Context, tx *sql.Tx) error {
			return errors.Join(insert(ctx, tx, "guarded"), errOwn)
		})
		if !errors.Is(err, errOwn) {
			t.Fatal(err)
		}
		wantLedger(t, db, "left")
		wantSessionsAsFound(t, pool)
	})
}

// A leader that was paused in its function beyond its lease has lost its session, and is told what
// matters: whether it has lost its leadership, too.
func TestTransactOfALeaderThatWasPausedSaysWhetherItLeads(t *testing.T) {
	t.Parallel()
	inEachPool(t, func(t *testing.T, openWork openPool) {
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
		for _, c := range []struct{ deposed, sends bool }{{true, true}, {true, false}, {false, false}} {
			deposed := c.deposed
			election := fmt.Sprint("case ", c)
			leader, next := newLock(t, db, election, "a"), newLock(t, db, election, "b")
			short := record("a")
			short.LeaseDurationSeconds = 1
			if err := leader.Create(t.Context(), short); err != nil {
				t.Fatal(err)
			}
			err := leader.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
				if err := insert(ctx, tx, election); err != nil {
					return err
				}
				if deposed {
					takeOver(t, next)
				}
				time.Sleep(2500 * time.Millisecond)
				if c.sends {
					return insert(ctx, tx, election) // fails, and so does the call, with both errors
				}
				return nil
			})
			t.Log(err)
			text := "the function paused for longer than a lease"
			if deposed {
				text = "another term has begun, with fencing token"
			}
			if err == nil || errors.Is(err, mysqllock.ErrNotLeader) != deposed || !strings.Contains(err.Error(), text) {
				t.Errorf("deposed: %t, error %v", deposed, err)
			}
		}
		wantLedger(t, db)
	})
}

// A function that pauses for longer than a lease is as good as cut off: the server rolls back what
// it did, and the rows that it had locked are free.
func TestTransactOfAFunctionThatPausesForALeaseLocksNothingAndCommitsNothing(t *testing.T) {
	t.Parallel()
	inEachPool(t, func(t *testing.T, openWork openPool) {
		db, config := newTables(t)
		work := newLedgerIn(t, config, openWork)
		exec(t, db, `INSERT INTO ledger (entry) VALUES ('row')`)
		leader := newLock(t, db, "e", "a")
		short := record("a")
		short.LeaseDurationSeconds = 2 // a second longer than db waits for a row
		if err := leader.Create(t.Context(), short); err != nil {
			t.Fatal(err)
		}
		err := leader.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, `UPDATE ledger SET entry = 'guarded'`); err != nil {
				return err
			}
			free := func() bool {
				_, err := db.ExecContext(ctx, `UPDATE ledger SET entry = 'free'`)
				return err == nil
			}
			if free() {
				t.Error("the row was not locked")
			}
			eventually(t, 5*time.Second, "the row is free", func() bool {
				_ = leader.Update(ctx, short) // it leads on, so that it is not for its lease that nothing is committed
				return free()
			})
			return nil
		})
		if err == nil || errors.Is(err, mysqllock.ErrOutcomeUnknown) {
			t.Errorf("error %v", err)
		}
		wantLedger(t, db, "free")
		wantSessionsAsFound(t, work)
	})
}
