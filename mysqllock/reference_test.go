package mysqllock_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// referenceLock has the semantics of client-go's own LeaseLock over
// election_records, to show what they let happen: a write is a
// compare-and-swap on the version alone, which stands for a resourceVersion and
// never repeats either; the bytes are the record's JSON with its one-second
// times; every operation may take half of RenewDeadline, as with
// resourcelock.NewFromKubeconfig; any holder may be written, and whoever has
// seen the current version may release. It fences nothing.
type referenceLock struct {
	db                 *sql.DB
	election, identity string
	timeout            time.Duration
	version            int64 // of the row as last seen; 0 before that
}

var _ resourcelock.Interface = (*referenceLock)(nil)

func newReferenceLock(db *sql.DB, election, identity string, renewDeadline time.Duration) *referenceLock {
	return &referenceLock{db: db, election: election, identity: identity, timeout: referenceTimeout(renewDeadline)}
}

// referenceTimeout is what resourcelock.NewFromKubeconfig gives its client.
func referenceTimeout(renewDeadline time.Duration) time.Duration {
	return max(time.Second, renewDeadline/2)
}

func (l *referenceLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
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

func (l *referenceLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
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

func (l *referenceLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
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

func (l *referenceLock) RecordEvent(string) {}
func (l *referenceLock) Identity() string   { return l.identity }
func (l *referenceLock) Describe() string   { return l.election }

var leases = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}

// columns are a record's values in the order of the statements above.
func columns(r resourcelock.LeaderElectionRecord) []any {
	const datetime = "2006-01-02 15:04:05.000000"
	return []any{r.HolderIdentity, r.LeaseDurationSeconds, r.AcquireTime.UTC().Format(datetime), r.RenewTime.UTC().Format(datetime), r.LeaderTransitions}
}

// TestTheReferenceLockIsASoundLock keeps the comparison fair: where nothing goes
// wrong, the reference elects one.
func TestTheReferenceLockIsASoundLock(t *testing.T) {
	db, _ := newTables(t)
	a, b := newReferenceLock(db, "e", "a", time.Second), newReferenceLock(db, "e", "b", time.Second)
	if _, _, err := a.Get(t.Context()); !apierrors.IsNotFound(err) {
		t.Errorf("no row: %v", err)
	}
	if err := a.Create(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if err := b.Create(t.Context(), record("b")); !apierrors.IsAlreadyExists(err) {
		t.Errorf("second Create: %v", err)
	}
	for _, l := range []*referenceLock{a, b} {
		got, raw, err := l.Get(t.Context())
		if err != nil || got.HolderIdentity != "a" || len(raw) == 0 {
			t.Fatalf("Get: %v, %s, %v", got, raw, err)
		}
	}
	if err := a.Update(t.Context(), record("a")); err != nil {
		t.Errorf("renewal: %v", err)
	}
	if err := b.Update(t.Context(), record("b")); !apierrors.IsConflict(err) {
		t.Errorf("Update of an older version: %v", err)
	}
}
