package mysqllock

import (
	"context"
	"database/sql"
	"encoding/hex"
	"time"
)

// Reading elections without being a candidate.

// Election is what an election's row says, for status pages and for routers that are no candidates
// themselves.
type Election struct {
	Name string
	// Holder is the leader's identity; empty if the election was released.
	Holder string
	// AcquireTime and RenewTime are when the holder began its term and when it last renewed, by the
	// holder's own clock. Zero if not known.
	AcquireTime, RenewTime time.Time
	// LeaseDuration is how long followers wait for a renewal.
	LeaseDuration time.Duration
	// LeaderTransitions counts the changes of holder.
	LeaderTransitions int
	// LastUpdate is when the row was last written, and Age how long ago that is, both by the
	// server's clock.
	LastUpdate time.Time
	Age        time.Duration
	// Expired is whether there is a holder, but no renewal for longer than LeaseDuration: its
	// candidate is gone, or the next one is about to take over. It decides nothing: followers go by
	// what they observe themselves.
	Expired bool
	// Ready is whether the holder could do its work at its last renewal: see [WithReadiness].
	Ready bool
	// StepDownRequested is whether the holder was asked to step down: see [RequestStepDown].
	StepDownRequested bool
	// FencingToken is that of the newest term; 0 if there never was one.
	FencingToken int64
}

const (
	// electionsSQL reads elections without locking anything. Names as bytes, which no connection's
	// character set can change, times as microseconds.
	electionsSQL = `SELECT CAST(r.election_name AS BINARY), CAST(r.leader_name AS BINARY), r.lease_duration_seconds,` +
		` TIMESTAMPDIFF(MICROSECOND, '1970-01-01', r.acquire_time), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', r.renew_time),` +
		` r.leader_transitions, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', r.last_update),` +
		` TIMESTAMPDIFF(MICROSECOND, r.last_update, UTC_TIMESTAMP(6)), COALESCE(f.fencing_token, 0),` +
		` COALESCE(r.ready, 1), COALESCE(r.leader_name <> LEFT('-', 0) AND r.leader_uid <> LEFT('-', 0) AND r.step_down_uid = r.leader_uid, 0)` +
		` FROM {records} AS r LEFT JOIN {fences} AS f ON f.election_name = r.election_name`

	// electionSQL reads one: parameters (name, as hexadecimal UTF-8).
	electionSQL = electionsSQL + ` WHERE r.election_name = ` + hexName + everyRow

	// allElectionsSQL reads all.
	allElectionsSQL = electionsSQL + ` ORDER BY r.election_name` + everyRow

	// inspectTimeout bounds both, unless WithOperationTimeout does.
	inspectTimeout = 10 * time.Second
)

// GetElection reads one election: one plain read that locks nothing.
//
// Errors: apierrors.IsNotFound if it has no row. See [Option] for those that it uses; without
// [WithOperationTimeout] it may take 10 s.
func GetElection(ctx context.Context, db *sql.DB, name string, opts ...Option) (*Election, error) {
	const op = "get election"
	if err := validateName("election name", name, maxNameLength); err != nil {
		return nil, wrap(op, name, err, nil)
	}
	found, err := elections(ctx, db, opts, electionSQL, hex.EncodeToString([]byte(name)))
	if err != nil {
		return nil, wrap(op, name, err, db)
	}
	if len(found) == 0 {
		return nil, wrap(op, name, notFound(name), nil)
	}
	return &found[0], nil
}

// ListElections reads all elections of the database, ordered by name: one plain read that locks
// nothing. It uses the options of [GetElection].
func ListElections(ctx context.Context, db *sql.DB, opts ...Option) ([]Election, error) {
	found, err := elections(ctx, db, opts, allElectionsSQL)
	return found, wrap("list elections", "", err, db)
}

func elections(ctx context.Context, db *sql.DB, opts []Option, query string, args ...any) ([]Election, error) {
	if db == nil {
		return nil, errNoPool
	}
	o, err := applyOptions(opts)
	if err != nil {
		return nil, err
	}
	timeout := inspectTimeout
	if o.operationTimeout > 0 {
		timeout = o.operationTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var found []Election
	err = each(ctx, db, tableNames(o.database).Replace(query), args, func(scan scanner) error {
		var (
			e                 Election
			holder            sql.NullString
			lease             sql.NullInt64
			transitions       sql.NullInt64
			acquired, renewed sql.NullInt64
			updated, age      sql.NullInt64
		)
		err := scan(&e.Name, &holder, &lease, &acquired, &renewed, &transitions, &updated, &age, &e.FencingToken, &e.Ready, &e.StepDownRequested)
		if err != nil {
			return err
		}
		e.Holder = holder.String
		e.LeaseDuration = duration(lease.Int64, time.Second)
		e.LeaderTransitions = int(transitions.Int64)
		e.AcquireTime = fromMicros(acquired).Time
		e.RenewTime = fromMicros(renewed).Time
		e.LastUpdate = fromMicros(updated).Time
		e.Age = duration(max(age.Int64, 0), time.Microsecond)
		e.Expired = e.Holder != "" && e.Age > e.LeaseDuration
		found = append(found, e)
		return nil
	})
	return found, err
}
