package main

import (
	"context"
	"database/sql"
	"errors"
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
	return b.sweep(ctx, s, "transact", r, []int{1, most}, func(workers int) ([]arm, func(), error) {
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
			{"no guard", byHand(false), b.pid},
			{"the same again", byHand(false), b.pid},
			{"Guard, last", byHand(true), b.pid},
			{"Transact", func(ctx context.Context, worker int) error {
				return lock.Transact(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error { return do(ctx, tx, worker) })
			}, b.pid},
		}, func() { _ = db.Close() }, nil
	})
}
