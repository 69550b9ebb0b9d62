package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/joho/godotenv"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// databaseVariables are those without which there is no connection; if one of
// them is set, the database is the user's own.
var databaseVariables = []string{"MYSQL_USER", "MYSQL_PASSWORD", "MYSQL_HOST", "MYSQL_DBNAME"}

// openDatabase finds the database that the user has named, or starts one.
func (s *stage) openDatabase(ctx context.Context) error {
	if err := godotenv.Load(); err == nil {
		s.note("reads the file .env in the current directory")
	} else if !errors.Is(err, fs.ErrNotExist) {
		// The cause may quote the file, passwords included.
		return errors.New("the file .env in the current directory can't be read, or has other lines than NAME=value and comments")
	}
	s.election = "demo/quickstart"
	var config *mysql.Config
	var err error
	own := true
	for _, name := range databaseVariables {
		if _, set := os.LookupEnv(name); set {
			own = false
		}
	}
	if own {
		config, err = s.startServer(ctx)
	} else {
		s.election += "-" + strings.ToLower(rand.Text()[:6]) // nobody else's
		s.note("uses the database that the MYSQL_* variables name; the election is called %s", s.election)
		s.env = os.Environ()
		if config, err = mysqllock.ConfigFromEnv(); err != nil {
			err = fmt.Errorf("%w\nSet these variables, or unset %s for a throwaway server", err, strings.Join(databaseVariables, ", "))
		}
	}
	if err != nil {
		return err
	}
	if s.db, err = mysqllock.Open(config); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, electionLimit)
	defer cancel()
	var version string
	if err := s.db.QueryRowContext(limited, "SELECT VERSION()").Scan(&version); err != nil {
		return fmt.Errorf("the database can't be reached: %w", err)
	}
	s.env = append(s.env, stageVariable+"=1")
	s.note("the server is ready: version %s", version)
	s.note("timings: lease %v, renew deadline %v, retry period %v", leaseDuration, renewDeadline, retryPeriod)
	return nil
}

// startServer starts a throwaway server with an empty database.
func (s *stage) startServer(ctx context.Context) (*mysql.Config, error) {
	program := os.Getenv("MYSQLLOCK_TEST_SERVER")
	if program == "" {
		program = "mariadbd or mysqld, whichever is found first; MYSQLLOCK_TEST_SERVER can name another"
	}
	s.note("starts a throwaway database server, which takes some seconds (%s)", program)
	limited, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	var config *mysql.Config
	err := s.during(ctx, "the server's start", func() (err error) {
		if s.server, err = mysqltest.Start(limited, mysqltest.Options{}); err != nil {
			return err
		}
		config = s.server.Config()
		config.DBName, err = s.server.CreateDatabase(limited)
		return err
	})
	if errors.Is(err, mysqltest.ErrNoServer) {
		err = fmt.Errorf("%w\n  an existing database: set %s and, if it is not 3306, MYSQL_PORT", err, strings.Join(databaseVariables, ", "))
	}
	if err != nil {
		return nil, err
	}
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "MYSQL_") {
			s.env = append(s.env, variable)
		}
	}
	host, port, err := net.SplitHostPort(config.Addr)
	if err != nil {
		return nil, err
	}
	s.env = append(s.env, "MYSQL_USER="+config.User, "MYSQL_PASSWORD="+config.Passwd,
		"MYSQL_HOST="+host, "MYSQL_PORT="+port, "MYSQL_DBNAME="+config.DBName)
	return config, nil
}

// deleteRows removes what the candidates left in the user's own database. A
// program in production has no need to: the rows of an election are reused.
func (s *stage) deleteRows(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, electionLimit)
	defer cancel()
	for _, row := range []struct{ table, statement string }{
		{"election_records", "DELETE FROM election_records WHERE election_name = ?"},
		{"election_fences", "DELETE FROM election_fences WHERE election_name = ?"},
	} {
		_, err := s.db.ExecContext(ctx, row.statement, s.election)
		var refused *mysql.MySQLError
		switch {
		case errors.As(err, &refused) && refused.Number == 1146: // no candidate came so far as to make the table
		case err != nil:
			s.note("the row of %s in %s stays, as it can't be deleted: %v", s.election, row.table, err)
		default:
			s.note("deleted the row of %s in %s (the table stays)", s.election, row.table)
		}
	}
}
