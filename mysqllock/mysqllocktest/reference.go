package mysqllocktest

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
)

// ReferenceLock has the semantics of client-go's own LeaseLock over election_records, to show what they let happen; it is
// for comparisons, and not to be relied upon. A write is a compare-and-swap on the version alone, which stands for a
// resourceVersion and never repeats either; the bytes are the record's JSON with its one-second times; every operation
// may take half of RenewDeadline, as with resourcelock.NewFromKubeconfig; any holder may be written, and whoever has seen
// the current version may release. It fences nothing.
type ReferenceLock struct {
	db                 *sql.DB
	election, identity string
	timeout            time.Duration
	version            int64 // of the row as last seen; 0 before that
}

var _ resourcelock.Interface = (*ReferenceLock)(nil)

// NewReferenceLock makes one for an elector with that RenewDeadline.
func NewReferenceLock(db *sql.DB, election, identity string, renewDeadline time.Duration) *ReferenceLock {
	return &ReferenceLock{db: db, election: election, identity: identity, timeout: ReferenceTimeout(renewDeadline)}
}

// ReferenceTimeout is what resourcelock.NewFromKubeconfig gives its client.
func ReferenceTimeout(renewDeadline time.Duration) time.Duration {
	return max(time.Second, renewDeadline/2)
}

// Get reads the row.
func (l *ReferenceLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	var (
		record            resourcelock.LeaderElectionRecord
		version           int64
		acquired, renewed sql.NullInt64
	)
	err := l.db.QueryRowContext(ctx, `SELECT version, leader_name, lease_duration_seconds, leader_transitions,`+
		` TIMESTAMPDIFF(MICROSECOND, '1970-01-01', acquire_time), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', renew_time)`+
		` FROM election_records WHERE election_name = ?`, l.election).
		Scan(&version, &record.HolderIdentity, &record.LeaseDurationSeconds, &record.LeaderTransitions, &acquired, &renewed)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil, apierrors.NewNotFound(leases, l.election)
	case err != nil:
		return nil, nil, err
	}
	record.AcquireTime = metav1.NewTime(time.UnixMicro(acquired.Int64).UTC())
	record.RenewTime = metav1.NewTime(time.UnixMicro(renewed.Int64).UTC())
	l.version = version
	raw, err := json.Marshal(record)
	return &record, raw, err
}

// Create inserts the row.
func (l *ReferenceLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	version := time.Now().UnixMicro()
	_, err := l.db.ExecContext(ctx, `INSERT INTO election_records (leader_name, lease_duration_seconds, acquire_time, renew_time,`+
		` leader_transitions, version, last_update, leader_uid, strategy, preferred_holder, server, election_name)`+
		` VALUES (?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6), '', '', '', '', ?)`, append(columns(record), version, l.election)...)
	var server *mysql.MySQLError
	switch {
	case errors.As(err, &server) && server.Number == 1062:
		return apierrors.NewAlreadyExists(leases, l.election)
	case err != nil:
		return err
	}
	l.version = version
	return nil
}

// Update replaces the row, if it is as Get, Create or Update last left or saw it.
func (l *ReferenceLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if l.version == 0 {
		return errors.New("lease not initialized, call get or create first")
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	version := max(l.version+1, time.Now().UnixMicro())
	result, err := l.db.ExecContext(ctx, `UPDATE election_records SET leader_name = ?, lease_duration_seconds = ?, acquire_time = ?, renew_time = ?,`+
		` leader_transitions = ?, version = ?, last_update = UTC_TIMESTAMP(6) WHERE election_name = ? AND version = ?`,
		append(columns(record), version, l.election, l.version)...)
	if err != nil {
		return err
	}
	switch n, err := result.RowsAffected(); {
	case err != nil:
		return err
	case n == 0:
		return apierrors.NewConflict(leases, l.election, errors.New("the object has been modified"))
	}
	l.version = version
	return nil
}

// RecordEvent does nothing.
func (l *ReferenceLock) RecordEvent(string) {}

// Identity is the candidate's.
func (l *ReferenceLock) Identity() string { return l.identity }

// Describe is the election's name.
func (l *ReferenceLock) Describe() string { return l.election }

var leases = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}

// columns are a record's values in the order of the statements above.
func columns(r resourcelock.LeaderElectionRecord) []any {
	const datetime = "2006-01-02 15:04:05.000000"
	return []any{r.HolderIdentity, r.LeaseDurationSeconds, r.AcquireTime.UTC().Format(datetime), r.RenewTime.UTC().Format(datetime), r.LeaderTransitions}
}
