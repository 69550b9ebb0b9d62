// Command mysqllock is for the people who run elections: it shows them, checks the database, makes the tables, hands
// leadership over and forgets elections that nobody campaigns in any more.
//
//	go install github.com/mysqllock/go-leaderelection-mysql/mysqllock/cmd/mysqllock@latest
//
//	mysqllock list [-o wide|json] [-watch]   all elections: who leads, since when, and whether the lease is alive
//	mysqllock check [-o json]                what is wrong with the database as a place for elections
//	mysqllock migrate [-wait 5m] [-print]    makes the tables, or upgrades them in place
//	mysqllock step-down ELECTION [-wait]     asks the leader to hand over, and says who leads next
//	mysqllock forget ELECTION [-expired]     deletes an election that nobody holds
//
// "mysqllock COMMAND -h" describes a command, with examples.
//
// # Connection
//
// The environment says where the database is: MYSQL_USER, MYSQL_PASSWORD, MYSQL_HOST and MYSQL_DBNAME, and if need be
// MYSQL_PORT and MYSQL_TLS and its like (see mysqllock.ConfigFromEnv). Or -dsn names a file that holds the driver's DSN,
// such as user:password@tcp(host:3306)/database; a password on a command line would be everybody's. -database names the
// database that holds the tables if it isn't the connection's (mysqllock.WithDatabase).
//
// # Exit codes
//
//	0  done
//	1  found or refused: check has an error to report, or an election is not in the state that it would have to be in
//	2  usage: an argument, a flag or a setting of the connection can't be used
//	3  failed: the database can't be reached, or it refused what was asked
//
// What was asked for goes to stdout, all else to stderr.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-sql-driver/mysql"
)

const usage = `mysqllock shows and runs the elections of package mysqllock in a MySQL or MariaDB.

  mysqllock list [-o wide|json] [-watch]   all elections: who leads, since when, and whether the lease is alive
  mysqllock check [-o json]                what is wrong with the database as a place for elections
  mysqllock migrate [-wait 5m] [-print]    makes the tables, or upgrades them in place
  mysqllock step-down ELECTION [-wait]     asks the leader to hand over, and says who leads next
  mysqllock forget ELECTION [-expired]     deletes an election that nobody holds

mysqllock COMMAND -h describes a command, with examples.

Connection: MYSQL_USER, MYSQL_PASSWORD, MYSQL_HOST and MYSQL_DBNAME; MYSQL_PORT (3306), MYSQL_TLS, MYSQL_TLS_CA,
MYSQL_TLS_CERT, MYSQL_TLS_KEY and MYSQL_TLS_SERVER_NAME if need be. Or a file with a DSN, by -dsn FILE.
` + exitCodes

const exitCodes = `
Exit codes: 0 done; 1 found or refused; 2 usage, or the connection's settings; 3 the database can't be reached, or it
refused what was asked.
`

const (
	exitRefused = 1
	exitUsage   = 2
	exitFailed  = 3
)

// A command does its work with the arguments after its name.
type command func(ctx context.Context, stdout, stderr *os.File, args []string) error

var commands = map[string]command{
	"list":      list,
	"check":     check,
	"migrate":   migrate,
	"step-down": stepDown,
	"forget":    forget,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	os.Exit(report(err))
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usageError{errors.New("it needs a command: list, check, migrate, step-down or forget; mysqllock -h describes them")}
	}
	name, args := args[0], args[1:]
	if name == "help" && len(args) == 1 {
		name, args = args[0], []string{"-h"}
	}
	switch name {
	case "-h", "-help", "--help", "help":
		return write(os.Stdout, usage)
	}
	do, ok := commands[name]
	if !ok {
		return usageError{fmt.Errorf("%q is not a command; mysqllock -h lists them", name)}
	}
	err := do(ctx, os.Stdout, os.Stderr, args)
	var help helpError
	if errors.As(err, &help) {
		return write(os.Stdout, help.text)
	}
	return err
}

// usageError is about what the caller wrote, refusedError about the state that an election or a database is in.
type (
	usageError   struct{ error }
	refusedError struct{ error }
)

// report prints an error, and returns the exit code.
func report(err error) int {
	if err == nil {
		return 0
	}
	text := "mysqllock: " + strings.TrimPrefix(err.Error(), "mysqllock: ")
	var server *mysql.MySQLError
	if errors.As(err, &server) && (server.Number == 1146 || server.Number == 1054) { // no such table, no such column
		text += "; the command for that is: mysqllock migrate"
	}
	fmt.Fprintln(os.Stderr, text)
	switch {
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.As(err, new(refusedError)):
		return exitRefused
	}
	return exitFailed
}

// write reports what a full disk or a closed pipe does to the output.
func write(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}
