package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

const forgetHelp = `mysqllock forget ELECTION [-expired]

Deletes the row of an election in election_records, so that list and alerts forget it, after its candidates have ended: one
that still runs makes the row again. An election that somebody holds is refused, and so is one whose leader did not release
it, unless -expired is given and that leader has not renewed for ten leases by the server's clock.

The election's row in election_fences stays. Without it the fencing tokens of a later election of that name could begin
below those that stale leaders still have, and what they write would no longer be refused.

It needs DELETE on election_records, which candidates don't.

Exit code 1: the election is held, or there is none of that name.

Examples:
  mysqllock forget team-a/old-operator
  mysqllock forget team-a/old-operator -expired
  mysqllock forget -- -a-name-with-a-dash
`

// forgetSQL deletes the row of an election that nobody holds: parameters (name, whether an expired one counts as such).
// Whether somebody does is decided by the statement itself, with the row locked: a candidate that has taken over since the
// row was last read keeps it.
const forgetSQL = `DELETE FROM {records} WHERE election_name = ? AND (CHAR_LENGTH(leader_name) = 0` +
	` OR ? AND TIMESTAMPDIFF(MICROSECOND, last_update, UTC_TIMESTAMP(6)) > 10000000 * lease_duration_seconds)`

func forget(ctx context.Context, stdout, _ *os.File, args []string) error {
	f := newFlags("forget", forgetHelp)
	where := f.connection()
	expired := f.Bool("expired", false, "also if the leader did not release it, but has not renewed for ten leases")
	names, err := f.parse(args, "the election's name")
	if err != nil {
		return err
	}
	db, options, err := where.open()
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // nothing to lose
	election := names[0]
	if _, err := find(ctx, db, election, options); err != nil {
		return err
	}
	result, err := db.ExecContext(ctx, where.inDatabase(forgetSQL), election, *expired)
	if err != nil {
		return fmt.Errorf("forget %q: %w", election, withoutText(err))
	}
	deleted, err := result.RowsAffected()
	if err != nil {
		return err
	}
	if deleted > 0 {
		return write(stdout, fmt.Sprintf("%s is forgotten; its row in election_fences stays, for the tokens of a later one\n", printable(election)))
	}
	e, err := find(ctx, db, election, options)
	if err != nil {
		return err
	}
	remedy := "end its candidates first"
	switch {
	case e.Expired && *expired:
		remedy = "a leader counts as gone after ten leases without a renewal, " + short(10*e.LeaseDuration)
	case e.Expired:
		remedy = "its lease has expired: if the leader is gone for good, give -expired"
	}
	return refusedError{fmt.Errorf("forget %q: it is held by %q, who renewed %s ago; %s", election, e.Holder, short(e.Age), remedy)}
}

// find reads an election that must be there.
func find(ctx context.Context, db *sql.DB, election string, options []mysqllock.Option) (*mysqllock.Election, error) {
	elections, err := mysqllock.ListElections(ctx, db, options...)
	if err != nil {
		return nil, err
	}
	for _, e := range elections {
		if e.Name == election {
			return &e, nil
		}
	}
	return nil, refusedError{fmt.Errorf("there is no election %q in this database; mysqllock list shows those that there are", election)}
}

// withoutText is a server's error without its text, which may name an account's host.
func withoutText(err error) error {
	var server *mysql.MySQLError
	switch {
	case !errors.As(err, &server):
		return errors.New("the connection broke, so that it is not known whether it is deleted; try again")
	case server.Number == 1142:
		return errors.New("the account may not delete; GRANT DELETE ON election_records to it, or use another account")
	case server.Number == 1205:
		return errors.New("another session holds the row locked; try again")
	}
	return fmt.Errorf("the server refuses it with error %d", server.Number)
}

// inDatabase puts the name of the table in, with that of -database.
func (c connection) inDatabase(query string) string {
	table := "election_records"
	if *c.database != "" {
		table = "`" + strings.ReplaceAll(*c.database, "`", "``") + "`." + table
	}
	return strings.ReplaceAll(query, "{records}", table)
}
