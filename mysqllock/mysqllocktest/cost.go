package mysqllocktest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// OperationCost is what one operation of a Lock costs.
type OperationCost struct {
	Name string
	mysqltest.Cost
}

// Identities as long as those in use: bytes depend on them.
const (
	costLeader   = "candidate-a_0123456789abcdef"
	costFollower = "candidate-b_0123456789abcdef"
)

// Measure does each operation of a Lock once on your server, and counts statements, round trips and bytes. The pool is
// one as your program makes it, but that it dials by meter ([mysqltest.Meter.Dial]); Measure limits it to one
// connection. To connect is not counted. A round trip takes as long as your network does, so this tells how long an
// operation takes at least, without a clock that other work on the machine disturbs.
//
// The tables must be there ([mysqllock.Migrate]). The election has a random name like those of [Run], and stays.
func Measure(ctx context.Context, db *sql.DB, meter *mysqltest.Meter) ([]OperationCost, error) {
	db.SetMaxOpenConns(1)
	db.SetConnMaxLifetime(0)
	if err := db.PingContext(ctx); err != nil {
		return nil, err
	}
	election := "mysqllocktest/" + strings.ToLower(rand.Text()[:7]) // as long as "default/my-controller"
	leader, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: costLeader})
	if err != nil {
		return nil, err
	}
	follower, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: costFollower})
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
		return func() error { return l.Update(ctx, record(holder)) }
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
	transact := func() error {
		return follower.Transact(ctx, db, nil, func(context.Context, *sql.Tx) error { return nil })
	}

	var operations []OperationCost
	for _, step := range []struct {
		name string // "" if it isn't counted
		do   func() error
	}{
		{"first poll of a connection", want(apierrors.IsNotFound, get(follower))},
		{"poll before there is a row", want(apierrors.IsNotFound, get(leader))},
		{"create", func() error { return leader.Create(ctx, record(costLeader)) }},
		{"poll", get(follower)},
		{"first renewal of a connection", update(leader, costLeader)},
		{"renewal", update(leader, costLeader)},
		{"release", update(leader, "")},
		{"", get(leader)},
		{"", update(leader, costLeader)},
		{"", get(follower)},
		{"takeover", update(follower, costFollower)},
		{"lost renewal", want(apierrors.IsConflict, update(leader, costLeader))},
		{"", func() (err error) { tx, err = db.BeginTx(ctx, nil); return err }},
		{"first guard of a term", guard},
		{"guard", guard},
		{"", func() error { return tx.Rollback() }},
		{"Transact of nothing after others", transact},
		{"Transact of nothing", transact},
	} {
		meter.Take()
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
		if step.name != "" {
			operations = append(operations, OperationCost{step.name, meter.Take()})
		}
	}
	return operations, nil
}
