package mysqllock_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// operationCosts is what each operation costs through a pool of Open, and how many round trips it
// makes through a user's own pool, whose driver prepares each statement with parameters first.
// Statements and round trips are exact. Bytes are at most these, of which a tenth is room for
// servers that say more. A change that makes an operation cheaper changes its line; one that makes
// it dearer needs a reason.
var operationCosts = []struct {
	operation  string
	open       mysqltest.Cost
	fromMySQL  int // bytes received, if more: a MariaDB since 10.6 describes a prepared statement's columns once
	roundTrips int // through a user's own pool
	// writes is whether MySQL is sent a ROLLBACK before, in a user's own pool: others may have left
	// a transaction open there, which MySQL doesn't tell.
	writes bool
	// more is how many statements more that pool is sent: the BEGIN, and the ROLLBACK of database/sql.
	more int
}{
	{"first poll of a connection", mysqltest.Cost{Statements: 2, RoundTrips: 3, Sent: 957, Received: 1427}, 2502, 3, false, 0},
	{"poll before there is a row", mysqltest.Cost{Statements: 2, RoundTrips: 2, Sent: 309, Received: 364}, 1440, 3, false, 0},
	{"create", mysqltest.Cost{Statements: 5, RoundTrips: 5, Sent: 2660, Received: 690}, 0, 9, true, 0},
	{"poll", mysqltest.Cost{Statements: 1, RoundTrips: 1, Sent: 44, Received: 144}, 1158, 2, false, 0},
	{"first renewal of a connection", mysqltest.Cost{Statements: 1, RoundTrips: 2, Sent: 928, Received: 461}, 0, 2, true, 0},
	{"renewal", mysqltest.Cost{Statements: 1, RoundTrips: 1, Sent: 282, Received: 57}, 0, 2, true, 0},
	{"release", mysqltest.Cost{Statements: 1, RoundTrips: 1, Sent: 958, Received: 57}, 0, 2, true, 0},
	{"takeover", mysqltest.Cost{Statements: 3, RoundTrips: 3, Sent: 1793, Received: 656}, 0, 5, true, 0},
	{"lost renewal", mysqltest.Cost{Statements: 2, RoundTrips: 2, Sent: 318, Received: 201}, 1216, 4, true, 0},
	{"first guard of a term", mysqltest.Cost{Statements: 1, RoundTrips: 1, Sent: 229, Received: 320}, 0, 1, false, 0},
	{"guard", mysqltest.Cost{Statements: 1, RoundTrips: 1, Sent: 229, Received: 320}, 0, 1, false, 0},
	{"Transact of nothing after others", mysqltest.Cost{Statements: 7, RoundTrips: 7, Sent: 753, Received: 393}, 0, 8, false, 1},
	{"Transact of nothing", mysqltest.Cost{Statements: 6, RoundTrips: 6, Sent: 732, Received: 381}, 0, 8, false, 2},
}

func TestCostOfEachOperationIsTheStatementsThatItNeedsAndNoOther(t *testing.T) {
	for _, pool := range []struct {
		name string
		open func(testing.TB, *mysql.Config) *sql.DB
	}{
		{"Open", open},
		{"a user's own pool", func(t testing.TB, config *mysql.Config) *sql.DB {
			connector, err := mysql.NewConnector(config)
			if err != nil {
				t.Fatal(err)
			}
			db := sql.OpenDB(connector)
			t.Cleanup(func() { _ = db.Close() })
			return db
		}},
	} {
		t.Run(pool.name, func(t *testing.T) {
			_, config := newTables(t)
			var meter mysqltest.Meter
			config.DialFunc = meter.Dial
			operations, err := mysqllocktest.Measure(t.Context(), pool.open(t, config), &meter)
			if err != nil {
				t.Fatal(err)
			}
			if len(operations) != len(operationCosts) {
				t.Fatalf("%d operations, want the %d of operationCosts", len(operations), len(operationCosts))
			}
			for i, got := range operations {
				c := operationCosts[i]
				t.Logf("%s: %v", got.Name, got.Cost)
				want := c.open
				if !server.MariaDB() || isMariaDB105() {
					want.Received = max(want.Received, c.fromMySQL)
				}
				if pool.name != "Open" {
					want.Statements += c.more
					want.RoundTrips = c.roundTrips
					if c.writes && !server.MariaDB() {
						want.Statements++
						want.RoundTrips++
					}
				}
				if got.Name != c.operation || got.RoundTrips != want.RoundTrips || got.Statements != want.Statements {
					t.Errorf("%s: %v, want for %s: %v", got.Name, got.Cost, c.operation, want)
				}
				if pool.name != "Open" {
					continue // its bytes depend on the parameters of its DSN
				}
				if got.Sent > want.Sent || got.Received > want.Received {
					t.Errorf("%s: %v, want at most %v", got.Name, got.Cost, want)
				}
				// Or the bounds would say nothing after a few improvements.
				if got.Sent < want.Sent*3/4 || got.Received < want.Received*3/4 {
					t.Errorf("%s: %v, far less than %v; lower the bounds", got.Name, got.Cost, want)
				}
			}
		})
	}
}

// Allocations are at most these, of which a tenth is room for other releases of Go and for the race
// detector.
func TestCostIsFewAllocations(t *testing.T) {
	ctx := t.Context()
	db, _ := newTables(t)
	// Names as long as those in use.
	const election, candidate = "default/my-controller", "candidate-a_0123456789abcdef"
	leader, follower := newLock(t, db, election, candidate), newLock(t, db, election, "candidate-b_0123456789abcdef")
	if err := leader.Create(ctx, record(candidate)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		operation string
		most      float64
		f         func() error
	}{
		{"poll", 58, func() error { _, _, err := follower.Get(ctx); return err }},
		{"renewal", 40, func() error { return leader.Update(ctx, record(candidate)) }},
		{"Transact of nothing", 99, func() error {
			return leader.Transact(ctx, db, nil, func(context.Context, *sql.Tx) error { return nil })
		}},
	} {
		var failed error
		allocations := testing.AllocsPerRun(100, func() {
			if err := c.f(); err != nil {
				failed = err
			}
		})
		if failed != nil {
			t.Fatal(failed)
		}
		t.Logf("%s: %.0f allocations", c.operation, allocations)
		if allocations > c.most {
			t.Errorf("%s: %.0f allocations, want at most %.0f", c.operation, allocations, c.most)
		}
		if allocations < c.most*3/4 {
			t.Errorf("%s: %.0f allocations, far less than %.0f; lower the bound", c.operation, allocations, c.most)
		}
	}
}

// A process may have thousands of Locks, whose statements are 7 kB.
func TestCostOfALockIsLittleMemory(t *testing.T) {
	db, err := mysqllock.Open(mysql.NewConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // never connected
	result := testing.Benchmark(func(b *testing.B) {
		for range b.N {
			if _, err := mysqllock.New(db, "small", resourcelock.ResourceLockConfig{Identity: "a"}); err != nil {
				b.Fatal(err)
			}
		}
	})
	if n := result.AllocedBytesPerOp(); n == 0 || n > 2000 {
		t.Errorf("a Lock is made of %d bytes", n)
	}
}
