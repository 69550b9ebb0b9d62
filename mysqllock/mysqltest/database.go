package mysqltest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"regexp"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// Config returns the driver configuration of the administrator: TCP, no database, every privilege and the right to grant
// them (of an existing server: what MYSQLLOCK_TEST_DSN gives). Each call returns a fresh copy, to change as needed.
func (s *Server) Config() *mysql.Config {
	return s.config.Clone()
}

// Version is what the server answers to SELECT VERSION(), such as "10.11.19-MariaDB-0+deb12u1" or "9.7.4-2".
func (s *Server) Version() string { return s.version }

// MariaDB reports whether the server is MariaDB, as opposed to MySQL.
func (s *Server) MariaDB() bool { return s.mariadb }

var databaseName = regexp.MustCompile(`^mysqllock_test_[0-9a-z]+$`)

// CreateDatabase creates an empty database with a new, unique name.
func (s *Server) CreateDatabase(ctx context.Context) (name string, err error) {
	name = "mysqllock_test_" + strings.ToLower(rand.Text()[:16])
	if err := s.exec(ctx, "CREATE DATABASE "+name); err != nil {
		return "", fmt.Errorf("mysqltest: create database %s: %w", name, err)
	}
	return name, nil
}

// DropDatabase drops a database that CreateDatabase made, if it is there; it refuses any other name, as the server may
// be one with data of somebody's.
func (s *Server) DropDatabase(ctx context.Context, name string) error {
	if !databaseName.MatchString(name) {
		return fmt.Errorf("mysqltest: drop database %q: not one that CreateDatabase made", name)
	}
	if err := s.exec(ctx, "DROP DATABASE IF EXISTS "+name); err != nil {
		return fmt.Errorf("mysqltest: drop database %s: %w", name, err)
	}
	return nil
}

func (s *Server) exec(ctx context.Context, statement string) error {
	return s.withPool(func(db *sql.DB) error {
		_, err := db.ExecContext(ctx, statement)
		return err
	})
}

// askVersion reads the version, the first sign of life.
func (s *Server) askVersion(ctx context.Context) (version string, err error) {
	err = s.withPool(func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "SELECT VERSION()").Scan(&version)
	})
	return version, err
}

// withPool opens a pool for one task only: a pool kept open would hold goroutines and a session on a server that tests
// crash and freeze.
func (s *Server) withPool(task func(*sql.DB) error) error {
	config := s.Config()
	config.Logger = &mysql.NopLogger{} // attempts at a server that is still starting are no news
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	return task(db)
}
