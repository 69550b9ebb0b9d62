package mysqllock_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// batchVariable makes every Lock of these tests one of many with a Batch, if it is set:
// hack/matrix.sh runs the tests of safety a second time so.
const batchVariable = "MYSQLLOCK_TEST_BATCH"

var companies sync.Map // *sql.DB -> *mysqllock.Batch

// batchInCompany returns the pool's Batch, which others use all the time, so that a Lock of the
// test is seldom alone in it.
func batchInCompany(t testing.TB, db *sql.DB) *mysqllock.Batch {
	t.Helper()
	batch := &mysqllock.Batch{}
	if known, loaded := companies.LoadOrStore(db, batch); loaded {
		return known.(*mysqllock.Batch)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var company sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		company.Wait()
		companies.Delete(db)
	})
	for i := range 2 {
		lock, err := mysqllock.New(db, fmt.Sprintf("company %p %d", batch, i), resourcelock.ResourceLockConfig{Identity: "company"},
			// A Batch waits for a tenth of that, so that the test's own timings don't suffer.
			mysqllock.WithOperationTimeout(100*time.Millisecond), mysqllock.WithBatch(batch), mysqllock.WithSameIdentityTakeover())
		if err != nil {
			t.Fatal(err)
		}
		company.Add(1)
		go func() {
			defer company.Done()
			tick := time.NewTicker(15 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				// Whatever fails: the server may be away, or the tables missing.
				if _, _, err := lock.Get(ctx); apierrors.IsNotFound(err) {
					_ = lock.Create(ctx, record(lock.Identity()))
				}
				_ = lock.Update(ctx, record(lock.Identity()))
				<-tick.C
			}
		}()
	}
	return batch
}

// batchOf makes elections of one pool that are led by Locks with one Batch.
func batchOf(t *testing.T, db *sql.DB, elections ...string) []*mysqllock.Lock {
	t.Helper()
	batch := &mysqllock.Batch{}
	locks := make([]*mysqllock.Lock, len(elections))
	for i, election := range elections {
		locks[i] = newLock(t, db, election, "a", mysqllock.WithOperationTimeout(2*time.Second), mysqllock.WithBatch(batch))
		mustSucceed(t, "Create", create(t.Context(), locks[i], record("a")))
	}
	return locks
}

// forAll calls f for each of n, all at once.
func forAll(n int, f func(i int)) {
	var all sync.WaitGroup
	all.Add(n)
	for i := range n {
		go func() {
			defer all.Done()
			f(i)
		}()
	}
	all.Wait()
}

// renewTogether renews all at once.
func renewTogether(t *testing.T, locks []*mysqllock.Lock) []error {
	t.Helper()
	errs := make([]error, len(locks))
	forAll(len(locks), func(i int) { errs[i] = locks[i].Update(t.Context(), record("a")) })
	return errs
}

func names(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("e%03d", i)
	}
	return names
}

// sent counts the statements that contain something, as they leave the pool.
type sent struct {
	text []byte
	n    atomic.Int64
	with []byte // if not nil, is sent in its place
}

type countingConn struct {
	net.Conn
	sent *sent
}

func (c countingConn) Write(b []byte) (int, error) {
	n := bytes.Count(b, c.sent.text)
	c.sent.n.Add(int64(n))
	if c.sent.with != nil {
		b = bytes.ReplaceAll(b, c.sent.text, c.sent.with)
	}
	return c.Conn.Write(b)
}

func (s *sent) open(t *testing.T, config *mysql.Config) *sql.DB {
	t.Helper()
	config = config.Clone()
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return countingConn{c, s}, err
	}
	return open(t, config)
}

func TestBatchSendsManyRenewalsAndPollsInOneStatement(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	for _, test := range []struct {
		name, text string
		do         func(*mysqllock.Lock) error
	}{
		{"renewals", "UPDATE ", func(l *mysqllock.Lock) error { return l.Update(t.Context(), record("a")) }},
		{"polls", "SELECT @@autocommit", func(l *mysqllock.Lock) error {
			r, _, err := l.Get(t.Context())
			if err == nil && (r.HolderIdentity != "a" || r.LeaseDurationSeconds != record("a").LeaseDurationSeconds) {
				return fmt.Errorf("read %+v", r)
			}
			return err
		}},
	} {
		s := &sent{text: []byte(test.text)}
		db := s.open(t, config)
		elections := names(120)
		for i := range elections {
			elections[i] = test.name + elections[i]
		}
		locks := batchOf(t, db, elections...)
		before := s.n.Load()
		forAll(len(locks), func(i int) {
			if err := test.do(locks[i]); err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
		})
		// Two, as one has room for a hundred; more if the calls come in slowly.
		if n := s.n.Load() - before; n < 2 || n > 20 {
			t.Errorf("%s of 120 elections took %d statements, want 2", test.name, n)
		}
	}
}

func TestBatchRenewsAsTheElectionAloneWould(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	locks := batchOf(t, db, "e", `o'"\x`, "ä", "日本")
	for _, lock := range locks {
		r := record("a")
		r.LeaderTransitions, r.Strategy, r.PreferredHolder = 7, "OldestEmulationVersion", "b'ü"
		token, _ := lock.FencingToken()
		errs := make([]error, len(locks))
		forAll(len(locks), func(i int) { errs[i] = locks[i].Update(t.Context(), r) })
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		found, _, err := lock.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if found.LeaderTransitions != 7 || found.Strategy != r.Strategy || found.PreferredHolder != r.PreferredHolder ||
			!found.RenewTime.Equal(&r.RenewTime) || !found.AcquireTime.Equal(&r.AcquireTime) || found.HolderIdentity != "a" {
			t.Errorf("wrote %+v, read %+v", r, found)
		}
		if now, held := lock.FencingToken(); !held || now != token {
			t.Errorf("a renewal changed the token: %d, %d", token, now)
		}
	}
}

// Else one election whose row somebody has locked would cost all others theirs.
func TestBatchIsNotHeldUpByARowThatIsLocked(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	locks := batchOf(t, db, names(5)...)
	other := open(t, config)
	tx, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `UPDATE election_records SET preferred_holder = 'x' WHERE election_name = 'e002'`); err != nil {
		t.Fatal(err)
	}
	for i, err := range renewTogether(t, locks) {
		if i == 2 {
			if err == nil {
				t.Error("the locked one was renewed")
			}
			continue
		}
		if err != nil {
			t.Errorf("renewal %d: %v", i, err)
		}
	}
	mustSucceed(t, "rollback", tx.Rollback)
	for i := range locks {
		eventually(t, 20*time.Second, fmt.Sprintf("renewal %d after the lock", i), func() bool {
			_, _, _ = locks[i].Get(t.Context())
			return locks[i].Update(t.Context(), record("a")) == nil
		})
	}
}

func TestBatchLosesALostLeaseAlone(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	locks := batchOf(t, db, names(5)...)
	successor := newLock(t, open(t, config), "e003", "b")
	takeOver(t, successor)
	exec(t, db, `DELETE FROM election_records WHERE election_name = 'e001'`)
	for i, err := range renewTogether(t, locks) {
		_, held := locks[i].FencingToken()
		switch i {
		case 1:
			if !apierrors.IsNotFound(err) || held {
				t.Errorf("its row is gone: %v, held %t", err, held)
			}
		case 3:
			if !apierrors.IsConflict(err) || held {
				t.Errorf("its lease is another's: %v, held %t", err, held)
			}
		default:
			if err != nil || !held {
				t.Errorf("renewal %d: %v, held %t", i, err, held)
			}
		}
	}
	if holder := holderOf(t, db, "e003"); holder != "b" {
		t.Errorf("the successor's row is held by %q", holder)
	}
}

// Versions may be ahead of the clock, of this machine or of an earlier leader's. A success of the
// first try must not be taken for one of the second: it would make the leader trust its lease for
// longer than it lasts.
func TestBatchDoesNotTakeALateRenewalForTheNextOne(t *testing.T) {
	if isMariaDB105() {
		return // it takes no statement for many that could come late
	}
	t.Parallel()
	db, config := newTables(t)
	network := newProxy(t, config.Addr)
	locks := batchOf(t, open(t, network.config(config)), names(3)...)
	exec(t, db, `UPDATE election_records SET version = 4102444800000000`) // in 2100
	forAll(len(locks), func(i int) { mustSucceed(t, "Get", get(t.Context(), locks[i])) })

	network.swallowReplies()
	for i, err := range renewTogether(t, locks) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("renewal %d without an answer: %v", i, err)
		}
	}
	network.cut()
	network.forward()
	eventually(t, 20*time.Second, "the renewals are applied", func() bool {
		return table(t, db, `SELECT COUNT(*) FROM election_records WHERE version = 4102444800000001`) == "3"
	})
	for i, err := range renewTogether(t, locks) {
		if !apierrors.IsConflict(err) {
			t.Errorf("renewal %d after one that was applied unseen: %v, want a conflict", i, err)
		}
	}
}

// The others may be far more patient.
func TestBatchIsSentInTimeForTheMostImpatient(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	batch := &mysqllock.Batch{}
	patient := newLock(t, db, "patient", "a", mysqllock.WithTimings(15*time.Second, 10*time.Second, 2*time.Second), mysqllock.WithBatch(batch))
	hurried := newLock(t, db, "hurried", "a", mysqllock.WithTimings(time.Second, 600*time.Millisecond, 200*time.Millisecond), mysqllock.WithBatch(batch))
	mustSucceed(t, "Create", create(t.Context(), patient, recordFor("a", 15)))
	mustSucceed(t, "Create", create(t.Context(), hurried, recordFor("a", 1)))
	for _, c := range []struct {
		name           string
		patient, hurry func() error
	}{
		{"Get", get(t.Context(), patient), get(t.Context(), hurried)},
		{"Update", update(t.Context(), patient, recordFor("a", 15)), update(t.Context(), hurried, recordFor("a", 1))},
	} {
		done := make(chan error, 1)
		go func() { done <- c.patient() }()
		eventually(t, 20*time.Second, "the patient one is first in the queue", func() bool { return batch.Waiting() == 1 })
		if err := c.hurry(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := <-done; err != nil {
			t.Errorf("%s of the patient one: %v", c.name, err)
		}
	}
}

func TestBatchPollsGiveEachElectionItsOwnRow(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	batchOf(t, db, names(3)...)
	batch := &mysqllock.Batch{}
	// Made by hand, as the lock refuses such a name; equal to "e002" for the key.
	exec(t, db, `UPDATE election_records SET election_name = 'e002 ' WHERE election_name = 'e002'`)
	latin := openDSN(t, config, "charset=latin1&interpolateParams=true")
	tests := []struct {
		election string
		isWanted func(*resourcelock.LeaderElectionRecord, error) bool
	}{
		{"e000", func(r *resourcelock.LeaderElectionRecord, err error) bool {
			return err == nil && r.HolderIdentity == "a"
		}},
		{"e002", func(r *resourcelock.LeaderElectionRecord, err error) bool {
			return err == nil && r.HolderIdentity == "a"
		}},
		{"none", func(_ *resourcelock.LeaderElectionRecord, err error) bool { return apierrors.IsNotFound(err) }},
		{"E000", func(_ *resourcelock.LeaderElectionRecord, err error) bool { return apierrors.IsNotFound(err) }},
		{"ä", func(_ *resourcelock.LeaderElectionRecord, err error) bool {
			return err != nil && strings.Contains(err.Error(), "character set is latin1")
		}},
	}
	forAll(len(tests), func(i int) {
		test := tests[i]
		lock := newLock(t, latin, test.election, "b", mysqllock.WithOperationTimeout(2*time.Second), mysqllock.WithBatch(batch))
		if r, _, err := lock.Get(t.Context()); !test.isWanted(r, err) {
			t.Errorf("%q: %+v, %v", test.election, r, err)
		}
	})
}

// A candidate that gives up must not take its neighbours with it.
func TestBatchIsLeftAloneByACancelledOperation(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	locks := batchOf(t, db, names(4)...)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond) // all wait for others for ten times as long
	defer cancel()
	errs := make([]error, len(locks))
	forAll(len(locks), func(i int) {
		if i == 0 {
			errs[i] = locks[i].Update(ctx, record("a"))
			return
		}
		errs[i] = locks[i].Update(t.Context(), record("a"))
	})
	for i, err := range errs {
		if (i == 0) != errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("renewal %d: %v", i, err)
		}
	}
}

// A version that doesn't know the statement, as MariaDB before 10.6, or an error that no single renewal would have met.
func TestBatchThatTheServerRefusesIsRenewedOneByOneAndSaysSoOnce(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	s := &sent{text: []byte("SKIP LOCKED"), with: []byte("SKIP LOCKET")}
	locks := batchOf(t, s.open(t, config), names(4)...)
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
	ctx := klog.NewContext(t.Context(), logger)
	asked := int64(0)
	for round := range 3 {
		errs := make([]error, len(locks))
		forAll(len(locks), func(i int) { errs[i] = locks[i].Update(ctx, record("a")) })
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
		if round == 0 {
			asked = s.n.Load()
		}
	}
	if asked == 0 {
		t.Error("nothing was batched")
	}
	if n := s.n.Load(); n != asked {
		t.Errorf("the server was asked %d times in the first round, and %d in all", asked, n)
	}
	if said := strings.Count(logger.GetSink().(ktesting.Underlier).GetBuffer().String(), "by a statement of its own"); said != 1 {
		t.Errorf("said %d times that each renewal is alone", said)
	}
}

func TestBatchIsForOnePoolAndOneDatabase(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	other := open(t, config)
	batch := &mysqllock.Batch{}
	newLock(t, db, "e", "a", mysqllock.WithBatch(batch))
	for name, try := range map[string]func() error{
		"another pool": func() error {
			_, err := mysqllock.New(other, "f", resourcelock.ResourceLockConfig{Identity: "a"}, mysqllock.WithBatch(batch))
			return err
		},
		"another database": func() error {
			_, err := mysqllock.New(db, "f", resourcelock.ResourceLockConfig{Identity: "a"}, mysqllock.WithBatch(batch), mysqllock.WithDatabase("x"))
			return err
		},
		"nil": func() error {
			_, err := mysqllock.New(db, "f", resourcelock.ResourceLockConfig{Identity: "a"}, mysqllock.WithBatch(nil))
			return err
		},
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), "WithBatch: the Batch") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
