package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

const migrateHelp = `mysqllock migrate [-wait 5m] [-print]

Makes the tables election_records and election_fences, or upgrades them in place; tables that are current stay as they
are. Any number of these may run at once. It needs CREATE where a table is missing, ALTER where one is old, and where both
are current no more than the candidates do: SELECT, INSERT and UPDATE.

-wait is for an init container or a Job that starts together with its database: as long as that can't be reached, takes no
writes, or has no such account or database yet, it tries again each second, and says why. Other errors end it at once.

-print prints the SQL instead, for a DBA or a migration tool, and needs no connection.

Examples:
  mysqllock migrate
  mysqllock migrate -wait 5m
  mysqllock migrate -print | mysql mydb
`

func migrate(ctx context.Context, stdout, stderr *os.File, args []string) error {
	f := newFlags("migrate", migrateHelp)
	where := f.connection()
	wait := f.Duration("wait", 0, "how long to wait for a database that is not up yet")
	onlyPrint := f.Bool("print", false, "print the SQL, and do nothing")
	if _, err := f.parse(args); err != nil {
		return err
	}
	if *onlyPrint {
		return write(stdout, mysqllock.Schema)
	}
	db, options, err := where.open()
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // nothing to lose
	deadline := time.Now().Add(*wait)
	said := ""
	for {
		// Migrate alone would wait for a server that can't be reached, whatever -wait says.
		_, err := mysqllock.Preflight(ctx, db, options...)
		if err == nil {
			err = mysqllock.Migrate(ctx, db, options...)
		}
		switch {
		case err == nil:
			return write(stdout, "the tables are there and current\n")
		case !mayComeUp(err), time.Now().After(deadline):
			return err
		case err.Error() != said:
			said = err.Error()
			fmt.Fprintf(stderr, "waits for the database: %v\n", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("migrate: ended before the database was up: %w", err)
		case <-time.After(time.Second):
		}
	}
}

// mayComeUp reports whether err is that of a server that starts, is set up, or is about to be promoted.
func mayComeUp(err error) bool {
	var server *mysql.MySQLError
	if errors.As(err, &server) {
		return slices.Contains([]uint16{
			1040, 1203, // no connection left
			1044, 1045, 1049, // the account, its grants or the database are not there yet
			1047, 1053, 3032, // a node that is not part of its cluster, a shutdown, offline mode
			1290, 1792, 1836, // read-only
		}, server.Number)
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn)
}
