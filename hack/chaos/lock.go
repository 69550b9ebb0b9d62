package main

import (
	"context"
	"database/sql"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// What -lock and -break can be.
const (
	ours         = "ours"
	reference    = "reference"
	breakCAS     = "cas"     // writes don't compare versions
	breakGuard   = "guard"   // the ledger is written without the guard
	breakRelease = "release" // whoever believes that he leads can release the lease
)

// careless releases whatever there is to release.
type careless struct {
	*mysqllock.Lock
	db       *sql.DB
	election string
}

func (l careless) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if record.HolderIdentity != "" {
		return l.Lock.Update(ctx, record)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := l.db.ExecContext(ctx, `UPDATE election_records SET leader_name = '', leader_uid = '', version = version + 1 WHERE election_name = ?`, l.election)
	return err
}
