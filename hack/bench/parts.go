package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// The floor: what a lease on a table can't do without, by primary key and through the same driver.
const (
	barePoll = `SELECT version, leader_uid, leader_name, lease_duration_seconds, acquire_time, renew_time, leader_transitions,` +
		` strategy, preferred_holder FROM election_records WHERE election_name = ?`
	bareRenewal = `UPDATE election_records SET leader_name = ?, leader_uid = ?, lease_duration_seconds = ?, acquire_time = ?, renew_time = ?,` +
		` leader_transitions = ?, strategy = ?, preferred_holder = ?, version = ?, last_update = UTC_TIMESTAMP(6)` +
		` WHERE election_name = ? AND version = ? AND leader_uid = ?`
)

// bareTime is a time as the columns have it.
const bareTime = "2006-01-02 15:04:05.000000"

// renewals is the renewal by locks of their own on that pool.
func renewals(ctx context.Context, db *sql.DB, kind string, callers int) (func(context.Context, int) error, error) {
	locks, err := leaders(ctx, db, kind, callers)
	return func(ctx context.Context, caller int) error {
		return locks[caller].Update(ctx, record())
	}, err
}

// polls is the poll by followers on that pool, of elections that there are.
func polls(db *sql.DB, kind string, callers int) (func(context.Context, int) error, error) {
	var locks []*mysqllock.Lock
	for caller := range callers {
		lock, err := newLock(db, electionOf(kind, caller), followerName)
		if err != nil {
			return nil, err
		}
		locks = append(locks, lock)
	}
	return func(ctx context.Context, caller int) error {
		_, _, err := locks[caller].Get(ctx)
		return err
	}, nil
}

// barePolls reads the same rows, by db.QueryRowContext or a prepared statement's.
func barePolls(query func(ctx context.Context, args ...any) *sql.Row, kind string, deadline bool) func(context.Context, int) error {
	return func(ctx context.Context, caller int) error {
		if deadline {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, opTimeout)
			defer cancel()
		} else {
			ctx = context.Background()
		}
		var version, lease, transitions sql.NullInt64
		var uid, holder, acquired, renewed, strategy, preferred sql.NullString
		return query(ctx, electionOf(kind, caller)).
			Scan(&version, &uid, &holder, &lease, &acquired, &renewed, &transitions, &strategy, &preferred)
	}
}

// bareRenewals swaps rows of its own, by db.ExecContext or a prepared statement's.
func bareRenewals(ctx context.Context, db *sql.DB, update func(ctx context.Context, args ...any) (sql.Result, error), kind string, callers int) (func(context.Context, int) error, error) {
	locks, err := leaders(ctx, db, kind, callers)
	if err != nil {
		return nil, err
	}
	type state struct {
		uid     string
		version int64
	}
	states := make([]state, len(locks))
	for caller := range locks {
		err := db.QueryRowContext(ctx, `SELECT leader_uid, version FROM election_records WHERE election_name = ?`, electionOf(kind, caller)).
			Scan(&states[caller].uid, &states[caller].version)
		if err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, caller int) error {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		s := &states[caller]
		now := time.Now().UTC().Format(bareTime)
		next := max(s.version+1, time.Now().UnixMicro())
		result, err := update(ctx, leaderName, s.uid, 15, now, now, 0, "", "", next,
			electionOf(kind, caller), s.version, s.uid)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return errors.Join(err, fmt.Errorf("%d rows", n))
		}
		s.version = next
		return nil
	}, nil
}

// pollArms and renewalArms begin with the floor.
func pollArms(ctx context.Context, s *server, callers int) ([]arm, func(), error) {
	byOpen, byUser, closePools, err := s.pools(ctx, callers)
	if err != nil {
		return nil, nil, err
	}
	kind := "poll-" + strconv.Itoa(callers)
	if _, err = leaders(ctx, byOpen, kind, callers); err != nil {
		return nil, closePools, err
	}
	mine, err := polls(byOpen, kind, callers)
	if err != nil {
		return nil, closePools, err
	}
	users, err := polls(byUser, kind, callers)
	if err != nil {
		return nil, closePools, err
	}
	kept, err := byOpen.PrepareContext(ctx, barePoll) //nolint:sqlclosecheck // closed with the pool
	if err != nil {
		return nil, closePools, err
	}
	bare := func(ctx context.Context, args ...any) *sql.Row { return byOpen.QueryRowContext(ctx, barePoll, args...) }
	return []arm{
		{"bare SELECT", barePolls(bare, kind, true), s.processes},
		{"the same again", barePolls(bare, kind, true), s.processes},
		{"poll", mine, s.processes},
		{"poll, a user's pool", users, s.processes},
		{"bare SELECT, prepared once", barePolls(kept.QueryRowContext, kind, true), s.processes},
		{"bare SELECT, no deadline", barePolls(bare, kind, false), s.processes},
	}, closePools, nil
}

func renewalArms(ctx context.Context, s *server, callers int) ([]arm, func(), error) {
	byOpen, byUser, closePools, err := s.pools(ctx, callers)
	if err != nil {
		return nil, nil, err
	}
	kind := "-" + strconv.Itoa(callers)
	text := func(ctx context.Context, args ...any) (sql.Result, error) {
		return byOpen.ExecContext(ctx, bareRenewal, args...)
	}
	bare, err := bareRenewals(ctx, byOpen, text, "bare"+kind, callers)
	if err != nil {
		return nil, closePools, err
	}
	again, err := bareRenewals(ctx, byOpen, text, "more"+kind, callers)
	if err != nil {
		return nil, closePools, err
	}
	kept, err := byOpen.PrepareContext(ctx, bareRenewal) //nolint:sqlclosecheck // closed with the pool
	if err != nil {
		return nil, closePools, err
	}
	prepared, err := bareRenewals(ctx, byOpen, kept.ExecContext, "kept"+kind, callers)
	if err != nil {
		return nil, closePools, err
	}
	mine, err := renewals(ctx, byOpen, "mine"+kind, callers)
	if err != nil {
		return nil, closePools, err
	}
	users, err := renewals(ctx, byUser, "user"+kind, callers)
	return []arm{
		{"bare UPDATE", bare, s.processes},
		{"the same again", again, s.processes},
		{"renewal", mine, s.processes},
		{"renewal, a user's pool", users, s.processes},
		{"bare UPDATE, prepared once", prepared, s.processes},
	}, closePools, err
}

// pools are one by Open and one by the driver's defaults.
func (s *server) pools(ctx context.Context, callers int) (byOpen, byUser *sql.DB, closeBoth func(), err error) {
	if byOpen, err = s.open(ctx, callers, true); err != nil {
		return nil, nil, nil, err
	}
	if byUser, err = s.open(ctx, callers, false); err != nil {
		_ = byOpen.Close()
		return nil, nil, nil, err
	}
	return byOpen, byUser, func() { _, _ = byOpen.Close(), byUser.Close() }, nil
}

func runParts(ctx context.Context, b *bench, s *section) error {
	if err := wireTable(ctx, b, s); err != nil {
		return err
	}
	for _, kind := range []struct {
		name, floor string
		arms        func(context.Context, *server, int) ([]arm, func(), error)
	}{
		{"Poll", "the bare SELECT of the same columns by primary key", pollArms},
		{"Renewal", "the bare UPDATE of the same columns by primary key, version and uid", renewalArms},
	} {
		s.printf("\n### %s\n\nFloor: %s, by a pool of `Open`, with a deadline. A connection for each caller.\n\n", kind.name, kind.floor)
		r := comparisons{per: "caller", bars: bars{title: kind.name + " against the floor", y: "p50, ratio"}}
		err := b.sweep(ctx, s, "parts-"+kind.name, r, []int{1, 8, 32}, func(callers int) ([]arm, func(), error) {
			return kind.arms(ctx, b.server, callers)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// wireTable counts what each operation sends and receives.
func wireTable(ctx context.Context, b *bench, s *section) error {
	var columns [2][]mysqllocktest.OperationCost
	for i, byOpen := range []bool{true, false} {
		measured := *b.server
		config, err := b.newDatabase(ctx)
		if err != nil {
			return err
		}
		var meter mysqltest.Meter
		config.DialFunc = meter.Dial
		measured.config = config
		db, err := measured.open(ctx, 1, byOpen)
		if err != nil {
			return err
		}
		columns[i], err = mysqllocktest.Measure(ctx, db, &meter)
		_ = db.Close() // nothing more is asked of it
		if err != nil {
			return err
		}
	}
	s.printf("### On the wire\n\nCounted at the connection: round trips, and bytes of request and reply. A user's own pool has the driver's" +
		" defaults, which prepare each statement with parameters first.\n\n")
	var rows [][]string
	for i, o := range columns[0] {
		u := columns[1][i]
		rows = append(rows, []string{
			o.Name, strconv.Itoa(o.Statements), strconv.Itoa(o.RoundTrips), fmt.Sprintf("%d + %d", o.Sent, o.Received),
			strconv.Itoa(u.RoundTrips), fmt.Sprintf("%d + %d", u.Sent, u.Received),
		})
	}
	s.table([]string{"Operation", "statements", "round trips, Open", "bytes", "round trips, a user's pool", "bytes"}, rows)
	return nil
}

// newDatabase is one more with the tables.
func (s *server) newDatabase(ctx context.Context) (*mysql.Config, error) {
	name, err := s.CreateDatabase(ctx)
	if err != nil {
		return nil, err
	}
	config := s.config.Clone()
	config.DBName = name
	db, err := mysqllock.Open(config)
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }() // the tables are made or not
	return config, mysqllock.Migrate(ctx, db)
}
