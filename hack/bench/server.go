package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/machine"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// server is a real server with durable settings, and a database with the lock's tables.
type server struct {
	*mysqltest.Server               // nil if it is the user's own
	config            *mysql.Config // of the administrator, or of the user's account, for that database
	admin             *sql.DB
	// What the server consists of; none if it is the user's own, who didn't say.
	processes processes
	product   string // "MariaDB 10.11", "MySQL 9.7"
	settings  string // its version and what decides about its speed
}

// durable are the settings under which a commit survives a power cut, which mysqltest does without, and a redo log of an
// ordinary size. log_bin stays the server's default.
var durable = []string{
	"--innodb-flush-log-at-trx-commit=1", "--sync-binlog=1",
	"--loose-innodb-log-file-size=96M", "--loose-innodb-redo-log-capacity=96M",
	"--max-connections=500",
}

func startServer(ctx context.Context) (_ *server, err error) {
	started, err := mysqltest.Start(ctx, mysqltest.Options{Args: durable})
	if err != nil {
		return nil, err
	}
	s := &server{Server: started, config: started.Config()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.config.DBName, err = s.CreateDatabase(ctx); err != nil {
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	pid, err := machine.ServerPID(ctx, s.admin)
	s.processes = processes{pid}
	return s, err
}

// useServer uses the database of that configuration, whose server goes on running.
func useServer(ctx context.Context, config *mysql.Config) (*server, error) {
	s := &server{config: config}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// prepare makes the tables in the database.
func (s *server) prepare(ctx context.Context) (err error) {
	if s.admin, err = mysqllock.Open(s.config); err != nil {
		return err
	}
	if err := mysqllock.Migrate(ctx, s.admin); err != nil {
		return err
	}
	return s.describe(ctx)
}

func (s *server) close() error {
	if s.admin != nil {
		_ = s.admin.Close() // nothing more is asked of it
	}
	if s.Server == nil {
		return nil
	}
	return s.Close()
}

func (s *server) describe(ctx context.Context) error {
	names := []string{"version", "innodb_flush_log_at_trx_commit", "log_bin", "sync_binlog", "innodb_flush_method", "innodb_doublewrite", "innodb_buffer_pool_size"}
	texts := make([]string, len(names))
	values := make([]any, len(names))
	for i := range names {
		values[i] = &texts[i]
	}
	if err := s.admin.QueryRowContext(ctx, "SELECT @@"+strings.Join(names, ", @@")).Scan(values...); err != nil {
		return err
	}
	version := texts[0]
	s.product = "MySQL "
	if strings.Contains(version, "MariaDB") {
		s.product = "MariaDB "
	}
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	s.product += major + "." + minor
	for i, name := range names {
		texts[i] = name + "=" + texts[i]
	}
	s.settings = version + " (" + strings.Join(texts[1:], ", ") + ")"
	return nil
}

// open makes a pool with a connection for each caller, so that none waits for another's: by mysqllock.Open, or as a user
// has it who knows nothing of this library.
func (s *server) open(ctx context.Context, callers int, byOpen bool) (*sql.DB, error) {
	var db *sql.DB
	if byOpen {
		var err error
		if db, err = mysqllock.Open(s.config); err != nil {
			return nil, err
		}
	} else {
		connector, err := mysql.NewConnector(s.config)
		if err != nil {
			return nil, err
		}
		db = sql.OpenDB(connector)
	}
	db.SetMaxOpenConns(callers)
	db.SetMaxIdleConns(callers)
	db.SetConnMaxLifetime(0)
	return db, db.PingContext(ctx)
}

// measuredOn says what was measured on, apart from the server.
func measuredOn() string {
	versions := map[string]string{}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			versions[m.Path] = m.Version
		}
	}
	text := fmt.Sprintf("%s, %s/%s, %s, go-sql-driver/mysql %s, client-go %s", runtime.Version(), runtime.GOOS, runtime.GOARCH, machine.Describe(),
		versions["github.com/go-sql-driver/mysql"], versions["k8s.io/client-go"])
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		text += ", load average " + string(bytes.Fields(load)[0]) + " at the end"
	}
	return text
}
