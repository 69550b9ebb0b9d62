package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Names as long as those in use: what an operation costs depends on them.
const (
	oneElection  = "default/my-controller"
	leaderName   = "candidate-a_0123456789abcdef"
	followerName = "candidate-b_0123456789abcdef"
)

// opTimeout bounds the operations of locks and of what they are compared with: a deadline costs something, and no lock
// does without one. Long, as a busy machine must not end a measurement.
const opTimeout = time.Minute

// record is what an elector would write for leaderName at the begin of a term.
func record() resourcelock.LeaderElectionRecord {
	now := metav1.NewTime(time.Now())
	return resourcelock.LeaderElectionRecord{HolderIdentity: leaderName, LeaseDurationSeconds: 15, AcquireTime: now, RenewTime: now}
}

// electionOf is the election of one caller. All have names of one length.
func electionOf(kind string, caller int) string {
	return fmt.Sprintf("%s/controller-%03d", kind, caller)
}

func newLock(db *sql.DB, election, identity string) (*mysqllock.Lock, error) {
	return mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: identity}, mysqllock.WithOperationTimeout(opTimeout))
}

// lead makes a lock that holds the election, which nobody has held before.
func lead(ctx context.Context, db *sql.DB, election string) (*mysqllock.Lock, error) {
	lock, err := newLock(db, election, leaderName)
	if err != nil {
		return nil, err
	}
	return lock, lock.Create(ctx, record())
}

// leaders makes a lock for each caller.
func leaders(ctx context.Context, db *sql.DB, kind string, callers int) ([]*mysqllock.Lock, error) {
	var locks []*mysqllock.Lock
	for caller := range callers {
		lock, err := lead(ctx, db, electionOf(kind, caller))
		if err != nil {
			return nil, err
		}
		locks = append(locks, lock)
	}
	return locks, nil
}
