package mysqllock_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// server is the one that the tests of this package share; each test has a database of its own
// there. Tests that stop servers start their own.
var server *mysqltest.Server

// isMariaDB105 is for what MariaDB before 10.6 does in another way.
func isMariaDB105() bool { return server.MariaDB() && strings.HasPrefix(server.Version(), "10.5.") }

func TestMain(m *testing.M) {
	var err error
	if server, err = mysqltest.Shared(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("server:", server.Version())
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.Cleanup(func(code int) {
		if err := server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// newConfig makes a database for one test and returns the administrator's configuration for it.
func newConfig(t testing.TB) *mysql.Config {
	t.Helper()
	name, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.DropDatabase(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	config := server.Config()
	config.DBName = name
	return config
}

// ownServer starts a server for one test, with these arguments more, and returns it with the
// administrator's configuration for a database of it.
func ownServer(t *testing.T, args ...string) (*mysqltest.Server, *mysql.Config) {
	t.Helper()
	own, err := mysqltest.Start(t.Context(), mysqltest.Options{Args: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	})
	config := own.Config()
	if config.DBName, err = own.CreateDatabase(t.Context()); err != nil {
		t.Fatal(err)
	}
	return own, config
}

// open is mysqllock.Open for the duration of a test.
func open(t testing.TB, config *mysql.Config) *sql.DB {
	t.Helper()
	db, err := mysqllock.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// openDSN is a user's own pool: the driver's defaults and the given parameters of a DSN, such as
// "parseTime=true&loc=Local".
func openDSN(t testing.TB, config *mysql.Config, parameters string) *sql.DB {
	t.Helper()
	dsn := fmt.Sprintf("%s:%s@tcp(%s)/%s?%s", config.User, config.Passwd, config.Addr, config.DBName, parameters)
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// openPool opens a pool of some kind.
type openPool func(testing.TB, *mysql.Config) *sql.DB

// openOwn opens a pool as users make it who don't know of Open.
func openOwn(t testing.TB, config *mysql.Config) *sql.DB {
	t.Helper()
	return openDSN(t, config, "")
}

// inEachPool runs a test in each kind of pool.
func inEachPool(t *testing.T, f func(t *testing.T, openWork openPool)) {
	t.Helper()
	t.Run("Open", func(t *testing.T) { f(t, open) })
	t.Run("a user's own", func(t *testing.T) { f(t, openOwn) })
}

// newTables makes a database with the tables in it.
func newTables(t testing.TB) (*sql.DB, *mysql.Config) {
	t.Helper()
	config := newConfig(t)
	db := open(t, config)
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return db, config
}

// newLock is mysqllock.New for a candidate of that name.
func newLock(t testing.TB, db *sql.DB, election, identity string, opts ...mysqllock.Option) *mysqllock.Lock {
	t.Helper()
	if os.Getenv(batchVariable) != "" {
		opts = append(opts, mysqllock.WithBatch(batchInCompany(t, db)))
	}
	lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: identity}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

// exec runs a statement that must succeed.
func exec(t testing.TB, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// eventually waits until condition holds.
func eventually(t testing.TB, timeout time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", timeout, what)
		}
		<-tick.C
	}
}

// newAccount makes an account, for the duration of the test, that has the privileges of the grants:
// "SELECT ON {db}.election_records". At the end no session of it may be left at the server.
func newAccount(t testing.TB, config *mysql.Config, grants ...string) *mysql.Config {
	t.Helper()
	admin := open(t, config)
	account := config.Clone()
	account.User, account.Passwd = "t_"+strings.ToLower(rand.Text()[:16]), rand.Text()
	user := "'" + account.User + "'@'%'"
	exec(t, admin, `CREATE USER `+user+` IDENTIFIED BY '`+account.Passwd+`'`)
	t.Cleanup(func() {
		// The pools of the test were closed before.
		ctx := context.Background()
		left := -1
		deadline := time.Now().Add(20 * time.Second)
		for tick := time.Tick(20 * time.Millisecond); left != 0 && time.Now().Before(deadline); <-tick {
			left = sessions(ctx, t, admin, account.User)
		}
		if left != 0 {
			t.Errorf("%d sessions of the test are left at the server", left)
		}
		if _, err := admin.ExecContext(ctx, `DROP USER `+user); err != nil {
			t.Error(err)
		}
	})
	for _, grant := range grants {
		exec(t, admin, `GRANT `+strings.ReplaceAll(grant, "{db}", "`"+config.DBName+"`")+` TO `+user)
	}
	return account
}

// ordinary are the privileges that the README asks for.
var ordinary = []string{"SELECT, INSERT, UPDATE ON {db}.election_records", "SELECT, INSERT, UPDATE ON {db}.election_fences"}
