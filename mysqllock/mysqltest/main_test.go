//go:build unix

package mysqltest

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"
)

// common is the server of the tests that need no server of their own; they leave it running.
var common = sync.OnceValues(func() (*Server, error) {
	began := time.Now()
	s, err := Start(context.Background(), Options{})
	if err == nil {
		fmt.Printf("%s: started in %v\n", s.Version(), time.Since(began).Round(time.Millisecond))
	}
	return s, err
})

func TestMain(m *testing.M) {
	if os.Getenv(ownerVariable) != "" {
		owner()
		return
	}
	code := m.Run()
	if s, err := common(); err == nil {
		// Before Close: a running server must not need a goroutine, as those who start one use goleak too.
		if err := goleak.Find(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, "with a running server:", err)
			code = 1
		}
		if err := s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func commonServer(t *testing.T) *Server {
	t.Helper()
	s, err := common()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t *testing.T, config *mysql.Config) *sql.DB {
	t.Helper()
	config.Logger = &mysql.NopLogger{} // servers are crashed here
	connector, err := mysql.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	t.Cleanup(func() { db.Close() })
	return db
}

// testDatabase is a pool on a new database with a table t of one row.
func testDatabase(t *testing.T, s *Server) *sql.DB {
	t.Helper()
	name, err := s.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.DropDatabase(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	config := s.Config()
	config.DBName = name
	db := open(t, config)
	mustExec(t, db, "CREATE TABLE t (n INT PRIMARY KEY) ENGINE=InnoDB")
	mustExec(t, db, "INSERT INTO t VALUES (0)")
	return db
}

func mustExec(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func count(t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM t").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
