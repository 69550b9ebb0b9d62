package mysqllock

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

// The upgrade of v0's table, in place.

const (
	// lockV0SQL keeps every candidate of v0 from writing until unlockSQL.
	lockV0SQL = `LOCK TABLES {records} WRITE`
	unlockSQL = `UNLOCK TABLES`

	// rowsV0SQL reads all rows in the order of their key, names as hexadecimal UTF-8, which no
	// connection's character set can change, times as numbers.
	rowsV0SQL = `SELECT id, HEX(CONVERT(election_name USING utf8mb4)), HEX(CONVERT(leader_name USING utf8mb4)),` +
		` TIMESTAMPDIFF(MICROSECOND, '1970-01-01', last_update) FROM {records} ORDER BY id`

	// deleteV0SQL removes a range of rows, except those whose ids follow: parameters (first id,
	// last id). A range has rowsOfDelete rows: v0 wrote a row with each try of each candidate,
	// thousands a day.
	deleteV0SQL  = `DELETE FROM {records} WHERE id >= ? AND id <= ?`
	rowsOfDelete = 10_000

	// fillV0SQL gives a value to what must have one.
	fillV0SQL = `UPDATE {records} SET leader_name = COALESCE(leader_name, LEFT('-', 0)), last_update = COALESCE(last_update, UTC_TIMESTAMP(6))` +
		` WHERE leader_name IS NULL OR last_update IS NULL`

	// alterV0SQL makes election_records of schema.sql from the table of v0, all or nothing.
	alterV0SQL = `ALTER TABLE {records}` +
		` DROP PRIMARY KEY,` +
		` DROP COLUMN id,` +
		` MODIFY election_name VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` MODIFY leader_name VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` MODIFY last_update DATETIME(6) NOT NULL,` +
		` ADD COLUMN leader_uid VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` ADD COLUMN lease_duration_seconds INT NOT NULL DEFAULT 60,` +
		` ADD COLUMN acquire_time DATETIME(6) NULL,` +
		` ADD COLUMN renew_time DATETIME(6) NULL,` +
		` ADD COLUMN leader_transitions INT NOT NULL DEFAULT 0,` +
		` ADD COLUMN strategy VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` ADD COLUMN preferred_holder VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` ADD COLUMN server VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,` +
		` ADD COLUMN version BIGINT NOT NULL DEFAULT 0,` +
		` ADD COLUMN ready TINYINT NOT NULL DEFAULT 1,` +
		` ADD COLUMN step_down_uid VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT x'',` +
		` ADD PRIMARY KEY (election_name),` +
		` ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin`
)

// upgrade makes the current table from that of v0.
func upgrade(ctx context.Context, conn *sql.Conn, database string) (err error) {
	fill := tableNames(database).Replace
	if _, err := conn.ExecContext(ctx, fill(lockV0SQL)); err != nil {
		return err
	}
	defer func() {
		// Also when ctx has ended: a session that kept the lock would stop every candidate.
		unlock, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, failed := conn.ExecContext(unlock, unlockSQL); failed != nil {
			discard(conn)
			if err == nil {
				err = failed
			}
		}
	}()
	// Another process may have upgraded it while this one waited for the lock.
	if have, err := describe(ctx, conn, database, recordsTable.name); err != nil || have == nil || !have.isV0() {
		return err
	}

	newest, ranges, err := readV0(ctx, conn, fill(rowsV0SQL))
	if err != nil {
		return err
	}
	for _, r := range ranges {
		n := 0
		var stay []byte
		for ; n < len(newest) && newest[n] <= r.last; n++ {
			stay = strconv.AppendUint(append(stay, ", "...), newest[n], 10)
		}
		newest = newest[n:]
		statement := fill(deleteV0SQL)
		switch n {
		case 0:
		case r.rows:
			continue
		default:
			statement += ` AND id NOT IN (` + string(stay[2:]) + `)`
		}
		if _, err := conn.ExecContext(ctx, statement, r.first, r.last); err != nil {
			return err
		}
	}
	for _, statement := range []string{fillV0SQL, alterV0SQL} {
		if _, err := conn.ExecContext(ctx, fill(statement)); err != nil {
			return err
		}
	}
	return nil
}

// rangeV0 is a range of ids, and how many rows it has.
type rangeV0 struct {
	first, last uint64
	rows        int
}

// readV0 reads all rows of v0. It returns the ids of the newest row of each election, in ascending
// order, and all ids in ranges of rowsOfDelete rows. An election that the new table can't have is
// an error.
func readV0(ctx context.Context, conn *sql.Conn, query string) (newest []uint64, ranges []rangeV0, err error) {
	type row struct {
		id               uint64
		updated          sql.NullInt64
		election, leader string // as hexadecimal digits
	}
	rows := map[string]row{} // the newest of each election
	err = each(ctx, conn, query, nil, func(scan scanner) error {
		var r row
		var election, leader sql.NullString
		if err := scan(&r.id, &election, &leader, &r.updated); err != nil {
			return err
		}
		r.election, r.leader = election.String, leader.String
		// NULL is older than all else, and of two equal times the larger id is newer.
		if old, ok := rows[r.election]; !ok || !old.updated.Valid || r.updated.Valid && r.updated.Int64 >= old.updated.Int64 {
			rows[r.election] = r
		}
		if n := len(ranges); n == 0 || ranges[n-1].rows == rowsOfDelete {
			ranges = append(ranges, rangeV0{first: r.id})
		}
		last := &ranges[len(ranges)-1]
		last.last = r.id
		last.rows++
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for _, r := range slices.SortedFunc(maps.Values(rows), func(a, b row) int { return cmp.Compare(a.id, b.id) }) {
		election, err := hex.DecodeString(r.election)
		if err != nil {
			return nil, nil, err
		}
		leader, err := hex.DecodeString(r.leader)
		if err != nil {
			return nil, nil, err
		}
		err = validateName("election_name", string(election), maxNameLength)
		if err == nil && len(leader) > 0 {
			err = validateName("leader_name", string(leader), maxNameLength)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("election_records can't be upgraded because of its row with id %d: %w, or delete the row; nothing was changed", r.id, err)
		}
		newest = append(newest, r.id)
	}
	return newest, ranges, nil
}
