//go:build engines

package engines

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

const lease = 5 * time.Second

func config(t *testing.T) *mysql.Config {
	t.Helper()
	config, err := mysql.ParseDSN(os.Getenv("MYSQLLOCK_TEST_DSN"))
	if err != nil || config.DBName == "" {
		t.Fatalf("MYSQLLOCK_TEST_DSN names no database: %v", err)
	}
	return config
}

func open(t *testing.T, config *mysql.Config) *sql.DB {
	t.Helper()
	db, err := mysqllock.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// tables makes those of the lock, and one for work, which on Vitess is spread over the shards by owner.
func tables(t *testing.T, db *sql.DB) {
	t.Helper()
	must(t, "Migrate", mysqllock.Migrate(t.Context(), db))
	exec(t, db, `CREATE TABLE IF NOT EXISTS work (owner VARCHAR(255) NOT NULL PRIMARY KEY, n INT NOT NULL) ENGINE=InnoDB`)
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func exec(t *testing.T, db *sql.DB, statement string, args ...any) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), statement, args...)
	must(t, statement, err)
}

func record(identity string) resourcelock.LeaderElectionRecord {
	now := metav1.Now()
	return resourcelock.LeaderElectionRecord{HolderIdentity: identity, LeaseDurationSeconds: int(lease.Seconds()), AcquireTime: now, RenewTime: now}
}

// newName is an election that nobody has had.
func newName(prefix string) string {
	return "engines/" + prefix + "/" + strings.ToLower(rand.Text()[:10])
}

func newLock(t *testing.T, db *sql.DB, election, identity string, opts ...mysqllock.Option) *mysqllock.Lock {
	t.Helper()
	lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: identity}, append([]mysqllock.Option{mysqllock.WithOperationTimeout(2 * time.Second)}, opts...)...)
	must(t, "New", err)
	return lock
}

func takeOver(ctx context.Context, lock *mysqllock.Lock) error {
	if _, _, err := lock.Get(ctx); err != nil {
		return err
	}
	return lock.Update(ctx, record(lock.Identity()))
}

func isEngine(names ...string) bool {
	return slices.Contains(names, os.Getenv("MYSQLLOCK_TEST_ENGINE"))
}

func TestPreflightKnowsTheEngineAndFindsNothingWrong(t *testing.T) {
	db := open(t, config(t))
	tables(t, db)
	found, err := mysqllock.Preflight(t.Context(), db)
	must(t, "Preflight", err)
	engine := ""
	for _, f := range found {
		t.Log(f)
		if f.Subject == "engine" {
			engine, _, _ = strings.Cut(f.Problem, ":")
		}
		if f.Severity == mysqllock.SeverityError || f.Severity == mysqllock.SeverityWarning && f.Subject != "grants" && f.Subject != "replication" {
			t.Error(f)
		}
	}
	if engine != os.Getenv("MYSQLLOCK_TEST_ENGINE") {
		t.Errorf("it takes the server for %q", engine)
	}
}

// owners are two rows of work: one on the election's shard, one on another. Where there are no shards, any two.
func owners(t *testing.T, db *sql.DB, election string) (same, other string) {
	t.Helper()
	must(t, "a row", insertWork(t.Context(), db, election))
	for range 50 {
		conn, err := db.Conn(t.Context())
		must(t, "Conn", err)
		owner := newName("owner")
		err = insertBoth(t.Context(), conn, election, owner)
		_ = conn.Close()
		if err != nil {
			must(t, "a row", insertWork(t.Context(), db, owner))
			return election, owner
		}
	}
	return election, ""
}

func insertWork(ctx context.Context, db *sql.DB, owner string) error {
	_, err := db.ExecContext(ctx, `INSERT INTO work (owner, n) VALUES (?, 0)`, owner)
	return err
}

// insertBoth fails if the two rows are on two shards. It changes nothing.
func insertBoth(ctx context.Context, conn *sql.Conn, one, two string) error {
	if _, err := conn.ExecContext(ctx, `SET transaction_mode = 'single'`); err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	for _, owner := range []string{one, two} {
		if _, err := tx.ExecContext(ctx, `UPDATE work SET n = n WHERE owner = ?`, owner); err != nil {
			return err
		}
	}
	return nil
}

func total(t *testing.T, db *sql.DB, owners ...string) (n int) {
	t.Helper()
	for _, owner := range owners {
		var one int
		must(t, "reading", db.QueryRowContext(t.Context(), `SELECT n FROM work WHERE owner = ?`, owner).Scan(&one))
		n += one
	}
	return n
}

// Shards commit one after the other. A guard on one of them says nothing of the others.
func TestTransactThatWouldSpanShardsIsRefusedAndTheSessionIsAsItWas(t *testing.T) {
	c := config(t)
	db := open(t, c)
	tables(t, db)
	election := newName("torn")
	same, other := owners(t, db, election)
	if other == "" {
		t.Fatal("one shard has everything; run this on a Vitess with shards")
	}
	leader := newLock(t, db, election, "a")
	must(t, "Create", leader.Create(t.Context(), record("a")))
	work := open(t, c)
	work.SetMaxOpenConns(1)
	exec(t, work, `SET transaction_mode = 'multi'`)
	add := func(owners ...string) error {
		return leader.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
			for _, owner := range owners {
				if _, err := tx.ExecContext(ctx, `UPDATE work SET n = n + 1 WHERE owner = ?`, owner); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(t, "Transact on the election's shard", add(same))
	for _, both := range [][]string{{same, other}, {other, same}, {other}} {
		err := add(both...)
		if err == nil || errors.Is(err, mysqllock.ErrNotLeader) || !strings.Contains(err.Error(), "multi-db") {
			t.Errorf("Transact of %v: error %v, want one that refuses it", both, err)
		}
		t.Log(err)
	}
	if n := total(t, db, same, other); n != 1 {
		t.Errorf("%d updates are committed, want the one of the election's shard", n)
	}
	var mode string
	must(t, "the mode", work.QueryRowContext(t.Context(), `SELECT @@transaction_mode`).Scan(&mode))
	if !strings.EqualFold(mode, "multi") {
		t.Errorf("the session's transaction_mode is %s after it, and was multi", mode)
	}
	tx, err := work.BeginTx(t.Context(), nil)
	must(t, "BEGIN", err)
	defer func() { _ = tx.Rollback() }()
	if err := leader.Guard(t.Context(), tx); err == nil || !strings.Contains(err.Error(), "'single'") {
		t.Errorf("Guard in a transaction that may span shards: error %v", err)
	}
}

// With these settings TiDB takes LOCK IN SHARE MODE and SERIALIZABLE, and ignores both. Its own error advises the first.
func TestGuardHoldsWhateverTiDBsSettingsAre(t *testing.T) {
	db := open(t, config(t))
	tables(t, db)
	for _, mode := range []string{"pessimistic", "optimistic"} {
		for _, level := range []sql.IsolationLevel{sql.LevelDefault, sql.LevelReadCommitted, sql.LevelSerializable} {
			t.Run(mode+" "+level.String(), func(t *testing.T) {
				c := config(t)
				c.Params = map[string]string{"tidb_enable_noop_functions": "1", "tidb_skip_isolation_level_check": "1", "tidb_txn_mode": "'" + mode + "'"}
				work := open(t, c)
				exec(t, work, `SELECT 1 FROM election_fences WHERE 1 = 0 LOCK IN SHARE MODE`) // the trap is set
				election := newName("noop")
				stale, next := newLock(t, work, election, "a"), newLock(t, work, election, "b")
				must(t, "Create", stale.Create(t.Context(), record("a")))
				opts := &sql.TxOptions{Isolation: level}

				tx, err := work.BeginTx(t.Context(), opts)
				must(t, "BEGIN", err)
				must(t, "Guard", stale.Guard(t.Context(), tx))
				_, err = tx.ExecContext(t.Context(), `INSERT INTO work (owner, n) VALUES (?, 1)`, election)
				must(t, "INSERT", err)
				taken, committed := takeOver(t.Context(), next), tx.Commit()
				t.Logf("a takeover in between: %v; the commit: %v", taken, committed)
				if taken == nil && committed == nil {
					t.Fatal("a takeover succeeded during a guard, and the guarded transaction was committed")
				}
				if committed == nil {
					must(t, "a takeover afterwards", takeOver(t.Context(), next))
				}
				late := newName("owner")
				insert := func(ctx context.Context, tx *sql.Tx) error {
					_, err := tx.ExecContext(ctx, `INSERT INTO work (owner, n) VALUES (?, 1)`, late)
					return err
				}
				third := newLock(t, work, election, "c")
				err = next.Transact(t.Context(), work, opts, func(ctx context.Context, tx *sql.Tx) error {
					must(t, "INSERT", insert(ctx, tx))
					return takeOver(ctx, third)
				})
				t.Logf("deposed: %v", err)
				var n int
				must(t, "reading", db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM work WHERE owner = ?`, late).Scan(&n))
				if err == nil || n != 0 {
					t.Errorf("Transact of who was deposed: error %v, %d rows", err, n)
				}
			})
		}
	}
}

// How long a client that is cut off right after its guard keeps others from leading.
func TestGuardOfAClientThatIsCutOffHoldsTakeoversOffForABoundedTime(t *testing.T) {
	const limit = 45 * time.Second // a lease, a tablet's transaction timeout, or what a proxy keeps open
	c := config(t)
	db := open(t, c)
	tables(t, db)
	election := newName("cut")
	leader, follower := newLock(t, db, election, "a"), newLock(t, db, election, "b")
	must(t, "Create", leader.Create(t.Context(), record("a")))
	proxy, err := mysqltest.NewProxy(c.Addr)
	must(t, "a proxy", err)
	defer proxy.Close()
	cut := c.Clone()
	cut.Addr = proxy.Addr()
	work := open(t, cut)
	owner := newName("owner")
	if isEngine("Vitess") {
		owner = election // the same shard
	}
	began := make(chan struct{})
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var once sync.Once
	var worked atomic.Bool
	var since atomic.Int64
	// Encrypted, it is the third request after the function's: RELEASE SAVEPOINT, the guard, COMMIT.
	isCommit := func(packet []byte) bool {
		return bytes.Contains(packet, []byte("COMMIT")) || c.TLSConfig != "" && worked.Load() && since.Add(1) == 3
	}
	proxy.Watch(func() mysqltest.Hooks {
		return mysqltest.Hooks{Request: func(packet []byte) {
			if isCommit(packet) {
				once.Do(func() {
					proxy.Set(mysqltest.Network{HoldRequests: true, HoldReplies: true})
					close(began)
				})
			}
		}}
	})
	go func() {
		done <- leader.Transact(ctx, work, nil, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO work (owner, n) VALUES (?, 1)`, owner)
			worked.Store(true)
			return err
		})
	}()
	select {
	case <-began:
	case err := <-done:
		t.Fatalf("Transact ended before its COMMIT: %v", err)
	}
	from, refused := time.Now(), 0
	for takeOver(t.Context(), follower) != nil {
		refused++
		if time.Since(from) > limit {
			t.Fatalf("after %v nobody can take over", limit)
		}
		time.Sleep(100 * time.Millisecond) // between two tries; the limit is the deadline
	}
	t.Logf("after %d refusals another candidate led %v after the cut, with a lease of %v", refused, time.Since(from).Round(100*time.Millisecond), lease)
	if refused == 0 {
		t.Error("no takeover was refused: nothing was shown")
	}
	var n int
	must(t, "reading", db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM work WHERE owner = ?`, owner).Scan(&n))
	if n != 0 {
		t.Error("a transaction that another candidate took over from is committed")
	}
	if err := <-done; err == nil {
		t.Error("Transact: no error")
	}
}

// A server that refuses the statement for many is asked once.
func TestBatchOnThisEngineRenewsAllAndSaysOnceIfOneByOne(t *testing.T) {
	db := open(t, config(t))
	tables(t, db)
	var log bytes.Buffer
	klog.LogToStderr(false)
	klog.SetOutput(&log)
	defer klog.LogToStderr(true)
	batch := &mysqllock.Batch{}
	var locks []*mysqllock.Lock
	for i := range 10 {
		lock := newLock(t, db, newName(fmt.Sprint(i)), "a", mysqllock.WithBatch(batch))
		must(t, "Create", lock.Create(t.Context(), record("a")))
		locks = append(locks, lock)
	}
	for range 5 {
		errs := make([]error, len(locks))
		var all sync.WaitGroup
		for i, lock := range locks {
			all.Go(func() { errs[i] = lock.Update(t.Context(), record("a")) })
		}
		all.Wait()
		must(t, "a renewal", errors.Join(errs...))
	}
	klog.Flush()
	said := strings.Count(log.String(), "by a statement of its own")
	t.Logf("said %d times that each renewal is alone", said)
	if one := isEngine("TiDB", "Vitess") && os.Getenv("MYSQLLOCK_TEST_SHARDS") != "1"; said > 1 || one && said != 1 {
		t.Errorf("said %d times that each renewal is alone:\n%s", said, log.String())
	}
}
