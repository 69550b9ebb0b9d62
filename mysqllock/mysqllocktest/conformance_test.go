package mysqllocktest_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

const (
	// brokenVariable names what is broken between the suite and the server.
	brokenVariable = "MYSQLLOCKTEST_BROKEN"
	dsnVariable    = "MYSQLLOCK_TEST_DSN"
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
		[]string{"a stale leader's transaction commits nothing", "a takeover is refused at once while a transaction guards the term"},
	},
	{
		"an insert id that is not the expression's",
		strings.NewReplacer("LAST_INSERT_ID(GREATEST(", "(GREATEST("),
		[]string{"of candidates that create one election one wins", "fencing tokens grow"},
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
	mysqllocktest.Run(t, func(t *testing.T) *sql.DB {
		t.Helper()
		connector, err := mysql.NewConnector(config)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range breaks {
			if b.name == os.Getenv(brokenVariable) {
				connector = broken{connector, b.rewrite}
			}
		}
		return sql.OpenDB(connector)
	})
}

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
			if err == nil {
				t.Fatalf("it passes:\n%s", output)
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
	rewrite *strings.Replacer
}

func (b broken) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := b.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &brokenConn{conn.(whole), b.rewrite}, nil
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
	rewrite *strings.Replacer
}

func (c *brokenConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	return c.whole.PrepareContext(ctx, c.rewrite.Replace(query))
}

func (c *brokenConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.whole.ExecContext(ctx, c.rewrite.Replace(query), args)
}

func (c *brokenConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.whole.QueryContext(ctx, c.rewrite.Replace(query), args)
}
