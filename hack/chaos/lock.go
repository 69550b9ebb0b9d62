package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
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

// referenceLock has the semantics of client-go's LeaseLock on the same table: a compare-and-swap on the version alone, the
// record's JSON with its one-second times as its bytes, half of RenewDeadline for each operation, and no fence.
type referenceLock struct {
	db       *sql.DB
	identity string
	timeout  time.Duration
	version  int64 // of the row as last seen
}

func (l *referenceLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	var record resourcelock.LeaderElectionRecord
	var version, acquired, renewed int64
	err := l.db.QueryRowContext(ctx, `SELECT version, leader_name, lease_duration_seconds, leader_transitions,`+
		` TIMESTAMPDIFF(MICROSECOND, '1970-01-01', acquire_time), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', renew_time)`+
		` FROM election_records WHERE election_name = ?`, election).
		Scan(&version, &record.HolderIdentity, &record.LeaseDurationSeconds, &record.LeaderTransitions, &acquired, &renewed)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil, apierrors.NewNotFound(leases, election)
	case err != nil:
		return nil, nil, err
	}
	record.AcquireTime, record.RenewTime = metav1.NewTime(time.UnixMicro(acquired).UTC()), metav1.NewTime(time.UnixMicro(renewed).UTC())
	l.version = version
	raw, err := json.Marshal(record)
	return &record, raw, err
}

func (l *referenceLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	version := time.Now().UnixMicro()
	_, err := l.db.ExecContext(ctx, `INSERT INTO election_records (leader_name, lease_duration_seconds, acquire_time, renew_time,`+
		` leader_transitions, version, last_update, leader_uid, strategy, preferred_holder, server, election_name)`+
		` VALUES (?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6), '', '', '', '', ?)`, append(columns(record), version, election)...)
	var server *mysql.MySQLError
	switch {
	case errors.As(err, &server) && server.Number == 1062:
		return apierrors.NewAlreadyExists(leases, election)
	case err != nil:
		return err
	}
	l.version = version
	return nil
}

func (l *referenceLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	version := max(l.version+1, time.Now().UnixMicro())
	result, err := l.db.ExecContext(ctx, `UPDATE election_records SET leader_name = ?, lease_duration_seconds = ?, acquire_time = ?, renew_time = ?,`+
		` leader_transitions = ?, version = ?, last_update = UTC_TIMESTAMP(6) WHERE election_name = ? AND version = ?`,
		append(columns(record), version, election, l.version)...)
	if err != nil {
		return err
	}
	switch n, err := result.RowsAffected(); {
	case err != nil:
		return err
	case n == 0:
		return apierrors.NewConflict(leases, election, errors.New("the object has been modified"))
	}
	l.version = version
	return nil
}

func (l *referenceLock) RecordEvent(string) {}
func (l *referenceLock) Identity() string   { return l.identity }
func (l *referenceLock) Describe() string   { return election }

var leases = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}

// columns are a record's values in the order of the statements above.
func columns(r resourcelock.LeaderElectionRecord) []any {
	const datetime = "2006-01-02 15:04:05.000000"
	return []any{r.HolderIdentity, r.LeaseDurationSeconds, r.AcquireTime.UTC().Format(datetime), r.RenewTime.UTC().Format(datetime), r.LeaderTransitions}
}
