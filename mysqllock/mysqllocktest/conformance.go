// Package mysqllocktest reports whether a server is fit for mysqllock: a suite of tests of everything that the lock needs of
// a server, for those who use some MySQL-compatible service, a proxy in between, or settings of their own.
//
// A test file of theirs is all that it takes:
//
//	package mydb
//
//	import (
//		"database/sql"
//		"testing"
//
//		_ "github.com/go-sql-driver/mysql"
//
//		"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
//	)
//
//	func TestMyServerIsFitForTheLock(t *testing.T) {
//		mysqllocktest.Run(t, func(t *testing.T) *sql.DB {
//			db, err := sql.Open("mysql", "app:secret@tcp(db.example.com:3306)/mydb?charset=utf8mb4")
//			if err != nil {
//				t.Fatal(err)
//			}
//			return db
//		})
//	}
//
// A subtest that fails is named after the requirement that the server does not meet; then elections are not safe there.
// That all pass shows that the statements do what they must. What no such test can see:
//
//   - Whether the server keeps what it acknowledged, through a power failure or a failover: for that ask
//     mysqllock.Preflight, and read the correctness boundary in the README.
//   - Whether a transaction can be torn apart. Where tables are spread over servers that commit one after the other, a
//     guard holds no longer than its own server's part. To see it by hand: begin a transaction, guard, write a row that
//     another server has, freeze that server (kill -STOP), commit, and let another candidate try to take over. If it
//     can, no transaction there may span servers. On Vitess Transact sees to that.
//   - What only some connections meet: a proxy that sends every hundredth statement elsewhere, a server that is
//     restarted now and then. Run the suite several times, and with the pools that your program uses.
//
// Where the engine is known to lack something, and the lock does without it there (mysqllock.Preflight says so), the
// suite tests what the lock does instead, and logs that.
//
// [Measure] counts what each operation of the lock costs on that server: statements, round trips and bytes.
// [ReferenceLock] is what client-go's LeaseLock would be on these tables, to compare with.
package mysqllocktest

import (
	"crypto/rand"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Run runs the suite, in a few seconds where the server is near. open is called several times and returns a pool of connections to one and
// the same database; Run closes it. The account needs what Migrate needs if the tables are not there yet, and CREATE for
// a table mysqllocktest_ledger, if that is not there; SELECT, INSERT and UPDATE on the three otherwise.
//
// On Vitess with shards the VSchema must have mysqllocktest_ledger with the vindex of the lock's tables, on its column entry.
//
// Elections that are there already are left alone: those of the suite have random names, which begin with
// "mysqllocktest/". What it writes stays; delete it by
//
//	DELETE FROM election_records WHERE election_name LIKE 'mysqllocktest/%'
func Run(t *testing.T, open func(t *testing.T) *sql.DB) {
	t.Helper()
	s := &suite{prefix: "mysqllocktest/" + strings.ToLower(rand.Text()[:10]) + "/"}
	s.open = func(t *testing.T) *sql.DB {
		t.Helper()
		db := open(t)
		t.Cleanup(func() { _ = db.Close() }) // nothing to lose
		return db
	}
	db := s.open(t)
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `SELECT 1 FROM mysqllocktest_ledger WHERE 1 = 0`); err != nil {
		const ledger = `CREATE TABLE IF NOT EXISTS mysqllocktest_ledger (entry VARCHAR(100) NOT NULL PRIMARY KEY) ENGINE=InnoDB`
		if _, err := db.ExecContext(t.Context(), ledger); err != nil {
			t.Fatal(err)
		}
	}
	s.askEngine(t, db)
	if s.engine == "Vitess" {
		s.awaitTables(t, db)
	}
	for _, requirement := range []struct {
		name string
		test func(*testing.T)
	}{
		{"a record comes back as it was written", s.records},
		{"names are compared byte by byte", s.names},
		{"a write is seen by every connection at once", s.reads},
		{"a connection reads from the server that it writes to", s.places},
		{"a connection has one clock", s.clocks},
		{"of candidates that create one election one wins", s.creates},
		{"of candidates that saw the same row one wins", s.takeovers},
		{"a compare-and-swap with an older row changes nothing", s.stale},
		{"a request to step down ends the renewals of that leader alone", s.stepsDown},
		{"a leader that is not ready is asked to step down", s.follows},
		{"fencing tokens grow", s.tokens},
		{"a guarded transaction commits", s.commits},
		{"a stale leader's transaction commits nothing", s.fences},
		{"a takeover is refused while a transaction guards the term", s.pins},
		{"a fenced statement of a stale leader changes nothing", s.fencesStatements},
		{"a takeover is refused while a fenced statement's transaction is open", s.pinsByStatements},
		{"a session that is cut off rolls back", s.cutOff},
		{"a statement that is given up ends", s.deadlines},
	} {
		t.Run(requirement.name, requirement.test)
	}
}

type suite struct {
	prefix string
	open   func(*testing.T) *sql.DB
	engine string // as mysqllock.Preflight calls it
}

// askEngine finds out what the server is.
func (s *suite) askEngine(t *testing.T, db *sql.DB) {
	t.Helper()
	findings, err := mysqllock.Preflight(t.Context(), db)
	must(t, "Preflight", err)
	for _, f := range findings {
		t.Log(f)
		if f.Subject == "engine" {
			s.engine, _, _ = strings.Cut(f.Problem, ":")
		}
	}
}

// awaitTables waits until vtgate has heard of tables that may have just been made. Until then it sends to every shard what
// it can't plan.
func (s *suite) awaitTables(t *testing.T, db *sql.DB) {
	t.Helper()
	for i, began := 0, time.Now(); ; i++ {
		err := s.lock(t, db, fmt.Sprintf("tables %d", i), "a").Create(t.Context(), record("a"))
		if err == nil {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("vtgate doesn't know the tables: Create: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// timeout is longer than a slow service needs for an operation, and shorter than a person waits.
const timeout = 20 * time.Second

func (s *suite) lock(t *testing.T, db *sql.DB, election, identity string, opts ...mysqllock.Option) *mysqllock.Lock {
	t.Helper()
	if len(opts) == 0 {
		opts = []mysqllock.Option{mysqllock.WithOperationTimeout(timeout)}
	}
	lock, err := mysqllock.New(db, s.prefix+election, resourcelock.ResourceLockConfig{Identity: identity}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

func record(identity string) resourcelock.LeaderElectionRecord {
	now := metav1.NewTime(time.Now().UTC().Truncate(time.Microsecond))
	return resourcelock.LeaderElectionRecord{HolderIdentity: identity, LeaseDurationSeconds: 60, AcquireTime: now, RenewTime: now}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// get reads the row, so that an Update may follow.
func get(t *testing.T, lock *mysqllock.Lock) *resourcelock.LeaderElectionRecord {
	t.Helper()
	r, _, err := lock.Get(t.Context())
	must(t, lock.Describe()+": Get", err)
	return r
}

// takeOver begins a term of the lock's candidate.
func takeOver(t *testing.T, lock *mysqllock.Lock) {
	t.Helper()
	get(t, lock)
	must(t, lock.Describe()+": a takeover", lock.Update(t.Context(), record(lock.Identity())))
}

func token(t *testing.T, lock *mysqllock.Lock) int64 {
	t.Helper()
	token, held := lock.FencingToken()
	if !held {
		t.Fatal("a leader has no fencing token")
	}
	return token
}
