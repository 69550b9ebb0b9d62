package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

const (
	workTable = `CREATE TABLE work (worker INT PRIMARY KEY, done BIGINT NOT NULL) ENGINE=InnoDB`
	work      = `UPDATE work SET done = done + 1 WHERE worker = ?`
)

func runTransact(ctx context.Context, b *bench, s *section) error {
	if _, err := b.admin.ExecContext(ctx, workTable); err != nil {
		return err
	}
	const most = 8
	for worker := range most {
		if _, err := b.admin.ExecContext(ctx, `INSERT INTO work VALUES (?, 0)`, worker); err != nil {
			return err
		}
	}
	s.printf(`The first line is the transaction alone: BEGIN, an UPDATE by primary key, COMMIT. Workers are those of one leader, in
parallel, each with a row of its own.

`)
	lock, err := lead(ctx, b.admin, oneElection)
	if err != nil {
		return err
	}
	r := comparisons{per: "worker", bars: bars{title: "Guarded transactions", y: "p50, ratio to no guard"}}
	err = b.sweep(ctx, s, "transact", r, []int{1, most}, func(workers int) ([]arm, func(), error) {
		db, err := b.open(ctx, workers, true)
		if err != nil {
			return nil, nil, err
		}
		do := func(ctx context.Context, tx *sql.Tx, worker int) error {
			_, err := tx.ExecContext(ctx, work, worker)
			return err
		}
		byHand := func(guard bool) func(context.Context, int) error {
			return func(ctx context.Context, worker int) error {
				ctx, cancel := context.WithTimeout(ctx, opTimeout)
				defer cancel()
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					return err
				}
				err = do(ctx, tx, worker)
				if err == nil && guard {
					err = lock.Guard(ctx, tx)
				}
				if err != nil {
					return errors.Join(err, tx.Rollback())
				}
				return tx.Commit()
			}
		}
		return []arm{
			{"no guard", byHand(false), b.processes},
			{"the same again", byHand(false), b.processes},
			{"Guard, last", byHand(true), b.processes},
			{"Transact", func(ctx context.Context, worker int) error {
				return lock.Transact(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error { return do(ctx, tx, worker) })
			}, b.processes},
		}, func() { _ = db.Close() }, nil
	})
	if err != nil {
		return err
	}
	s.printf(`
A single statement needs no transaction. The first line is the same UPDATE, autocommitted, without a condition.

`)
	r = comparisons{per: "worker", bars: bars{title: "Fenced statements", y: "p50, ratio to no condition"}}
	return b.sweep(ctx, s, "statement", r, []int{1, most}, func(workers int) ([]arm, func(), error) {
		db, err := b.open(ctx, workers, true)
		if err != nil {
			return nil, nil, err
		}
		bare := func(ctx context.Context, worker int) error { return updateOne(ctx, db, work, worker) }
		return []arm{
			{"no condition", bare, b.processes},
			{"the same again", bare, b.processes},
			{"FenceCondition", func(ctx context.Context, worker int) error {
				condition, args, err := lock.FenceCondition()
				if err != nil {
					return err
				}
				return updateOne(ctx, db, work+` AND `+condition, append([]any{worker}, args...)...)
			}, b.processes},
		}, func() { _ = db.Close() }, nil
	})
}

// updateOne runs a statement that must change one row.
func updateOne(ctx context.Context, db *sql.DB, statement string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	result, err := db.ExecContext(ctx, statement, args...)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, fmt.Errorf("%d rows", n))
	}
	return nil
}
