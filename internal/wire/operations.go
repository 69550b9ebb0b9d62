package wire

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Operation is what one operation of a Lock costs.
type Operation struct {
	Name string
	Cost
}

// Names as long as those in use: bytes depend on them.
const (
	Election  = "default/my-controller"
	Candidate = "candidate-a_0123456789abcdef"
	Follower  = "candidate-b_0123456789abcdef"
)

// Record is what an elector would write for that holder at the begin of a term; "" is a release.
func Record(holder string) resourcelock.LeaderElectionRecord {
	now := metav1.NewTime(time.Now())
	return resourcelock.LeaderElectionRecord{HolderIdentity: holder, LeaseDurationSeconds: 15, AcquireTime: now, RenewTime: now}
}

// Measure does each operation of a Lock once, on tables without the election, and counts it. The pool is one that dials
// by meter; it gets a limit of one connection, and connecting is not counted.
func Measure(ctx context.Context, db *sql.DB, meter *Meter) ([]Operation, error) {
	db.SetMaxOpenConns(1)
	db.SetConnMaxLifetime(0)
	if err := db.PingContext(ctx); err != nil {
		return nil, err
	}
	leader, err := mysqllock.New(db, Election, resourcelock.ResourceLockConfig{Identity: Candidate})
	if err != nil {
		return nil, err
	}
	follower, err := mysqllock.New(db, Election, resourcelock.ResourceLockConfig{Identity: Follower})
	if err != nil {
		return nil, err
	}
	get := func(l *mysqllock.Lock) func() error {
		return func() error {
			_, _, err := l.Get(ctx)
			return err
		}
	}
	update := func(l *mysqllock.Lock, holder string) func() error {
		return func() error { return l.Update(ctx, Record(holder)) }
	}
	want := func(is func(error) bool, f func() error) func() error {
		return func() error {
			if err := f(); !is(err) {
				return fmt.Errorf("another outcome than expected: %w", err)
			}
			return nil
		}
	}
	var tx *sql.Tx
	guard := func() error { return follower.Guard(ctx, tx) }

	var operations []Operation
	for _, step := range []struct {
		name string // "" if it isn't counted
		do   func() error
	}{
		{"first poll of a connection", want(apierrors.IsNotFound, get(follower))},
		{"poll before there is a row", want(apierrors.IsNotFound, get(leader))},
		{"create", func() error { return leader.Create(ctx, Record(Candidate)) }},
		{"poll", get(follower)},
		{"first renewal of a connection", update(leader, Candidate)},
		{"renewal", update(leader, Candidate)},
		{"release", update(leader, "")},
		{"", get(leader)},
		{"", update(leader, Candidate)},
		{"", get(follower)},
		{"takeover", update(follower, Follower)},
		{"lost renewal", want(apierrors.IsConflict, update(leader, Candidate))},
		{"", func() (err error) { tx, err = db.BeginTx(ctx, nil); return err }},
		{"first guard of a term", guard},
		{"guard", guard},
		{"", func() error { return tx.Rollback() }},
		{"Transact of nothing", func() error {
			return follower.Transact(ctx, db, nil, func(context.Context, *sql.Tx) error { return nil })
		}},
	} {
		meter.Take()
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
		if step.name != "" {
			operations = append(operations, Operation{step.name, meter.Take()})
		}
	}
	return operations, nil
}
