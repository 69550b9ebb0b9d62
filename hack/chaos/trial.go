package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// A control whose break does nothing would be a run of a whole lock that nobody takes for one. So a run with -break begins
// by a trial: without faults and without luck, the rule is violated, or there is no run.

// try fails unless the candidates' lock is broken as -break says.
func (c *candidate) try(ctx context.Context, config *mysql.Config) error {
	held, err := c.trial(ctx, config, c.Break)
	switch {
	case err != nil:
		return fmt.Errorf("-break %s can't be tried: %w", c.Break, err)
	case held:
		return fmt.Errorf("-break %s breaks nothing: the lock kept to the rule", c.Break)
	}
	return nil
}

// trial reports whether the candidate's lock keeps to a rule. The account may also delete.
func (c *candidate) trial(ctx context.Context, config *mysql.Config, rule string) (held bool, err error) {
	db, err := c.open(config)
	if err != nil {
		return false, err
	}
	defer func() { _ = db.Close() }() // nothing to lose
	t := &trial{candidate: c, db: db, election: "trial of " + rule}
	// Its row is gone afterwards, with what it posted.
	defer func() { err = errors.Join(err, t.forget(context.WithoutCancel(ctx))) }()
	switch rule {
	case breakCAS:
		return t.swap(ctx)
	case breakGuard:
		return t.guard(ctx)
	case breakRelease:
		return t.release(ctx)
	}
	return false, errors.New("there is no such rule")
}

// trial is an election in which nothing goes wrong by itself.
type trial struct {
	*candidate

	db       *sql.DB
	election string
	number   int
}

// lock makes one that has seen the election as it is.
func (t *trial) lock(ctx context.Context) (resourcelock.Interface, *mysqllock.Lock, error) {
	t.number++
	fenced, err := mysqllock.New(t.db, t.election, resourcelock.ResourceLockConfig{Identity: fmt.Sprintf("%s%d", t.Identity, t.number)},
		t.Timings.Option())
	if err != nil {
		return nil, nil, err
	}
	lock := t.lockOf(t.db)(fenced, t.election)
	if _, _, err := lock.Get(ctx); err != nil && !apierrors.IsNotFound(err) {
		return nil, nil, err
	}
	return lock, fenced, nil
}

// terms begins one by a lock, and the next by another, and returns both.
func (t *trial) terms(ctx context.Context) (former, leading resourcelock.Interface, fenced *mysqllock.Lock, err error) {
	if former, fenced, err = t.lock(ctx); err != nil {
		return nil, nil, nil, err
	}
	if err = former.Create(ctx, t.record(former.Identity())); err != nil {
		return nil, nil, nil, err
	}
	if leading, _, err = t.lock(ctx); err != nil {
		return nil, nil, nil, err
	}
	return former, leading, fenced, leading.Update(ctx, t.record(leading.Identity()))
}

func (t *trial) record(holder string) resourcelock.LeaderElectionRecord {
	now := metav1.NewTime(time.Now().UTC())
	return resourcelock.LeaderElectionRecord{
		HolderIdentity: holder, LeaseDurationSeconds: int(t.Timings.LeaseDuration.Seconds()), AcquireTime: now, RenewTime: now,
	}
}

// swap lets two candidates that saw the same row both write it. Before, it looks whether all that is to be changed in
// statements is found in them.
func (t *trial) swap(ctx context.Context) (held bool, err error) {
	_, leading, _, err := t.terms(ctx)
	if err != nil {
		return false, err
	}
	late, _, err := t.lock(ctx)
	if err != nil {
		return false, err
	}
	for _, holder := range []string{leading.Identity(), ""} { // a renewal, a release
		if err := leading.Update(ctx, t.record(holder)); err != nil {
			return false, err
		}
	}
	if t.rewriting != nil {
		if err := t.rewriting.complete(); err != nil {
			return false, err
		}
	}
	err = late.Update(ctx, t.record(late.Identity()))
	if apierrors.IsConflict(err) {
		return true, nil
	}
	return false, err
}

// forget leaves nothing of the trial.
func (t *trial) forget(ctx context.Context) (err error) {
	for _, statement := range []string{`DELETE FROM election_records WHERE election_name = ?`, `DELETE FROM election_fences WHERE election_name = ?`} {
		_, failed := t.db.ExecContext(ctx, statement, t.election)
		err = errors.Join(err, failed)
	}
	_, failed := t.db.ExecContext(ctx, `DELETE FROM ledger WHERE who = ?`, t.Identity)
	return errors.Join(err, failed)
}

// guard lets a leader whose term is over post an entry.
func (t *trial) guard(ctx context.Context) (held bool, err error) {
	_, _, stale, err := t.terms(ctx)
	if err != nil {
		return false, err
	}
	token, _ := stale.FencingToken()
	err = (&entryToBe{candidate: t.candidate, token: token, seq: 1}).post(ctx, stale, t.db)
	if errors.Is(err, mysqllock.ErrNotLeader) {
		return true, nil
	}
	return false, err
}

// release lets a former leader release the lease of its successor.
func (t *trial) release(ctx context.Context) (held bool, err error) {
	former, leading, _, err := t.terms(ctx)
	if err != nil {
		return false, err
	}
	said := former.Update(ctx, t.record(""))
	var holder string
	if err := t.db.QueryRowContext(ctx, `SELECT leader_name FROM election_records WHERE election_name = ?`, t.election).Scan(&holder); err != nil {
		return false, err
	}
	switch holder {
	case leading.Identity():
		return true, nil
	case "":
		return false, nil
	}
	return false, fmt.Errorf("the holder is %q, and the release says: %w", holder, said)
}
