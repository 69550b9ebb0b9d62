package mysqllocktest_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

const (
	// brokenVariable names what is broken between the suite and the server.
	brokenVariable = "MYSQLLOCKTEST_BROKEN"
	dsnVariable    = "MYSQLLOCK_TEST_DSN"
	// databaseVariable names a database that is there, for a server where none can be made: a keyspace of Vitess.
	databaseVariable = "MYSQLLOCKTEST_DATABASE"
	// poolVariable is the pool: "open" (that of mysqllock.Open), or, by default, the driver's with the DSN's parameters.
	poolVariable = "MYSQLLOCKTEST_POOL"
)

// breaks are servers that can't be had, by what they make of the statements.
var breaks = []struct {
	name    string
	rewrite *strings.Replacer
	fails   []string // at least these requirements
}{
	{
		"a compare-and-swap that does not compare",
		strings.NewReplacer("COALESCE(r.version, 0) = ? AND COALESCE(HEX(r.leader_uid), LEFT('-', 0)) = ", "(r.version = ? OR 1 = 1) AND '-' <> "),
		[]string{"of candidates that saw the same row one wins", "a compare-and-swap with an older row changes nothing"},
	},
	{
		"locking reads that do not lock", // as on a replica, or at a node of a cluster
		strings.NewReplacer(" LOCK IN SHARE MODE", ""),
		[]string{"a stale leader's transaction commits nothing", "a takeover is refused while a transaction guards the term", "a takeover is refused while a fenced statement's transaction is open"},
	},
	{
		"a fence row that forgets its token, and a clock that stands still",
		strings.NewReplacer("SET f.fencing_token = ", "SET f.fencing_token = 0 * ", "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))", "1"),
		[]string{"fencing tokens grow", "a guarded transaction commits"},
	},
	{
		"requests to step down that reach nobody",
		strings.NewReplacer("SET step_down_uid = leader_uid", "SET step_down_uid = step_down_uid"),
		[]string{"a request to step down ends the renewals of that leader alone", "a leader that is not ready is asked to step down"},
	},
	{
		"reads that a replica answers",
		strings.NewReplacer("SELECT server, LEFT(CONCAT(@@hostname, ':', @@port, '#', @@server_id), 255)", "SELECT server, LEFT(CONCAT(@@hostname, ':', @@port, '#', @@server_id + 1), 255)"),
		[]string{"a connection reads from the server that it writes to"},
	},
	{
		"uptimes of many servers",
		strings.NewReplacer("SHOW GLOBAL STATUS LIKE 'Uptime'", "SELECT 'Uptime', FLOOR(RAND() * 1000000)"),
		[]string{"a connection has one clock"},
	},
	{
		"a clock of another server",
		strings.NewReplacer("SELECT TIMESTAMPDIFF(MICROSECOND, last_update, UTC_TIMESTAMP(6))", "SELECT TIMESTAMPDIFF(MICROSECOND, last_update, UTC_TIMESTAMP(6)) + 10000000"),
		[]string{"a connection has one clock"},
	},
	{
		"names without case",
		strings.NewReplacer("r.election_name = ?", "LOWER(r.election_name) = LOWER(?)"),
		[]string{"names are compared byte by byte"},
	},
}

func TestThisServerConforms(t *testing.T) {
	server, err := mysqltest.Shared(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() }) // a process of its own ends it otherwise
	config := server.Config()
	if config.DBName = os.Getenv(databaseVariable); config.DBName == "" {
		if config.DBName, err = server.CreateDatabase(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.DropDatabase(context.Background(), config.DBName); err != nil {
				t.Error(err)
			}
		})
	}
	var rewritten atomic.Bool
	mysqllocktest.Run(t, func(t *testing.T) *sql.DB {
		t.Helper()
		if os.Getenv(poolVariable) == "open" {
			db, err := mysqllock.Open(config)
			if err != nil {
				t.Fatal(err)
			}
			return db
		}
		connector, err := mysql.NewConnector(config)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range breaks {
			if b.name == os.Getenv(brokenVariable) {
				connector = broken{connector, b.rewrite, &rewritten}
			}
		}
		return sql.OpenDB(connector)
	})
	if name := os.Getenv(brokenVariable); name != "" && !rewritten.Load() {
		t.Errorf("%s of %q", nothingRewritten, name)
	}
}

const nothingRewritten = "no statement has the text"

// A suite that every server passes would tell nothing.
func TestTheSuiteFindsWhatIsBroken(t *testing.T) {
	server, err := mysqltest.Shared(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() }) // a process of its own ends it otherwise
	for _, b := range breaks {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			suite := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestThisServerConforms$")
			suite.Env = append(os.Environ(), brokenVariable+"="+b.name, dsnVariable+"="+server.Config().FormatDSN())
			output, err := suite.CombinedOutput()
			if err == nil || strings.Contains(string(output), nothingRewritten) {
				t.Fatalf("nothing is broken:\n%s", output)
			}
			for _, requirement := range b.fails {
				if !strings.Contains(string(output), "--- FAIL: TestThisServerConforms/"+strings.ReplaceAll(requirement, " ", "_")) {
					t.Errorf("%q does not fail:\n%s", requirement, output)
				}
			}
		})
	}
}

// broken changes the statements on their way to the server.
type broken struct {
	driver.Connector
	rewrite   *strings.Replacer
	rewritten *atomic.Bool // was any
}

func (b broken) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := b.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &brokenConn{conn.(whole), b}, nil
}

// whole is what the driver's connections are.
type whole interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.NamedValueChecker
	driver.SessionResetter
	driver.Validator
}

type brokenConn struct {
	whole
	by broken
}

func (c *brokenConn) rewrite(query string) string {
	rewritten := c.by.rewrite.Replace(query)
	if rewritten != query {
		c.by.rewritten.Store(true)
	}
	return rewritten
}

func (c *brokenConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	return c.whole.PrepareContext(ctx, c.rewrite(query))
}

func (c *brokenConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.whole.ExecContext(ctx, c.rewrite(query), args)
}

func (c *brokenConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.whole.QueryContext(ctx, c.rewrite(query), args)
}
