package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// ErrDuplicateIdentity tells why a compare-and-swap was lost, and the elector still sees the
// Conflict that it knows.
func TestNamesakeThatWonACompareAndSwapIsNamed(t *testing.T) {
	db, _ := newTables(t)
	first, second, stranger := newLock(t, db, "e", "twin"), newLock(t, db, "e", "twin"), newLock(t, db, "e", "stranger")
	takeOver(t, first)
	takeOver(t, second)
	err := first.Update(t.Context(), record("twin"))
	if !apierrors.IsConflict(err) || !errors.Is(err, mysqllock.ErrDuplicateIdentity) {
		t.Errorf("lost to a twin: %v", err)
	}
	takeOver(t, stranger)
	err = second.Update(t.Context(), record("twin"))
	if !apierrors.IsConflict(err) || errors.Is(err, mysqllock.ErrDuplicateIdentity) {
		t.Errorf("lost to a stranger: %v", err)
	}
}

func TestNamesakeThatWasRestartedResumesAtOnce(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	work := newLedger(t, config)
	c := cadence{time.Minute, 40 * time.Second, 2 * time.Second}
	// The process that is gone, though it doesn't know: nobody told its Lock that its term has
	// ended.
	old := newLock(t, db, "e", "web-0", c.option(), mysqllock.WithSameIdentityTakeover())
	held := c.record("web-0")
	held.LeaderTransitions = 7
	if err := old.Create(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	oldToken, _ := old.FencingToken()
	if err := old.Transact(t.Context(), work, nil, inserting("before")); err != nil {
		t.Fatal(err)
	}

	restarted := newLock(t, db, "e", "web-0", c.option(), mysqllock.WithSameIdentityTakeover())
	began := time.Now()
	candidate := start(t, restarted, c)
	<-candidate.leading
	took := candidate.from.Sub(began)
	t.Logf("resumed after %v, with a lease of %v", took.Round(time.Millisecond), c.lease)
	if took > 3*time.Second {
		t.Errorf("resumed only after %v", took)
	}
	token, leads := restarted.FencingToken()
	if token <= oldToken || !leads {
		t.Errorf("token %d (%t) after %d", token, leads, oldToken)
	}
	candidate.stop()

	// For client-go the term went on.
	r, _, err := newLock(t, db, "e", "reader").Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !r.AcquireTime.Equal(&held.AcquireTime) || r.LeaderTransitions != held.LeaderTransitions {
		t.Errorf("acquired at %v, %d transitions; want %v, %d", r.AcquireTime, r.LeaderTransitions, held.AcquireTime, held.LeaderTransitions)
	}

	// For the fence it did not.
	if stale, _ := old.FencingToken(); stale != oldToken {
		t.Fatalf("the old instance's token is %d: it is not the fence that refuses", stale)
	}
	if err := old.Transact(t.Context(), work, nil, inserting("stale")); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("the old instance's Transact: %v, want ErrNotLeader", err)
	}
	wantLedger(t, work, "before")
	err = old.Update(t.Context(), held)
	if !apierrors.IsConflict(err) || !errors.Is(err, mysqllock.ErrDuplicateIdentity) {
		t.Errorf("the old instance's renewal: %v, want a Conflict with ErrDuplicateIdentity", err)
	}
}

func TestNamesakesThatTakeOverFromEachOtherNeverBothHold(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	takeOver(t, newLock(t, db, "e", "a"))
	locks := [2]*mysqllock.Lock{}
	for i := range locks {
		locks[i] = newLock(t, db, "e", "a", mysqllock.WithSameIdentityTakeover())
	}
	holds := func(l *mysqllock.Lock) bool {
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }()
		err = l.Guard(t.Context(), tx)
		if err != nil && !errors.Is(err, mysqllock.ErrNotLeader) {
			t.Fatal(err)
		}
		return err == nil
	}
	var wins [2]int
	var largest int64
	for round := range 60 {
		// Both see the same row, which the one or the other holds, or nobody.
		for _, l := range locks {
			if holder := holderSeenBy(t, l); holder != "a" && holder != "" {
				t.Fatalf("round %d: with the option its own name reads %q", round, holder)
			}
		}
		var errs [2]error
		var both sync.WaitGroup
		for i, l := range locks {
			both.Add(1)
			go func() {
				defer both.Done()
				errs[i] = updateUncontended(t.Context(), l)
			}()
		}
		both.Wait()
		won := -1
		for i, err := range errs {
			switch {
			case err == nil && won >= 0:
				t.Fatalf("round %d: both won", round)
			case err == nil:
				won = i
			case !apierrors.IsConflict(err) || !errors.Is(err, mysqllock.ErrDuplicateIdentity):
				t.Fatalf("round %d: the loser got %v, want a Conflict with ErrDuplicateIdentity", round, err)
			}
		}
		if won < 0 {
			t.Fatalf("round %d: nobody won: %v", round, errs)
		}
		wins[won]++
		if token, held := locks[won].FencingToken(); token < largest || !held {
			t.Fatalf("round %d: token %d (%t) after %d", round, token, held, largest)
		} else {
			largest = token
		}
		if token, held := locks[1-won].FencingToken(); held || holds(locks[1-won]) {
			t.Fatalf("round %d: the loser holds a term as well, token %d", round, token)
		}
		if !holds(locks[won]) {
			t.Fatalf("round %d: the winner's guard was refused", round)
		}
		if round%5 == 4 {
			if err := locks[won].Update(t.Context(), record("")); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("wins: %v", wins)
}

// updateUncontended is an Update that is tried again as long as the other candidate has the fence
// row locked: such an Update has changed nothing, and its elector would try again as well.
func updateUncontended(ctx context.Context, l *mysqllock.Lock) error {
	for {
		err := l.Update(ctx, record(l.Identity()))
		if !isContention(err) {
			return err
		}
	}
}

// isContention reports whether err is what NOWAIT says of a locked row.
func isContention(err error) bool {
	var e *mysql.MySQLError
	return errors.As(err, &e) && (e.Number == 1205 || e.Number == 3572)
}

// Of two live processes under one name the one whose term has passed learns it by its next renewal,
// and its transactions are refused before.
func TestNamesakeThatTookOverLeavesTheLeaderNothing(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	work := newLedger(t, config)
	first := newLock(t, db, "e", "a", mysqllock.WithSameIdentityTakeover())
	second := newLock(t, db, "e", "a", mysqllock.WithSameIdentityTakeover())
	takeOver(t, first)
	err := first.Transact(t.Context(), work, nil, func(ctx context.Context, tx *sql.Tx) error {
		takeOver(t, second)
		return insert(ctx, tx, "first")
	})
	if !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("Transact: %v, want ErrNotLeader", err)
	}
	if err := first.Update(t.Context(), record("a")); !apierrors.IsConflict(err) || !errors.Is(err, mysqllock.ErrDuplicateIdentity) {
		t.Errorf("renewal: %v, want a Conflict with ErrDuplicateIdentity", err)
	}
	if err := first.Update(t.Context(), record("")); err == nil || apierrors.IsConflict(err) {
		t.Errorf("release: %v, want an error that is no conflict", err)
	}
	if err := second.Transact(t.Context(), work, nil, inserting("second")); err != nil {
		t.Error(err)
	}
	wantLedger(t, work, "second")
}

func TestNamesakesLeaseReadsAsSomeoneElsesWithoutTheOption(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	takeOver(t, newLock(t, db, "e", "a"))
	namesake := newLock(t, db, "e", "a")
	if holder := holderSeenBy(t, namesake); !strings.HasPrefix(holder, "a (another candidate, uid ") {
		t.Errorf("held by %q", holder)
	}
	if holder := holderSeenBy(t, newLock(t, db, "e", "a", mysqllock.WithSameIdentityTakeover())); holder != "a" {
		t.Errorf("with the option held by %q", holder)
	}
}
