package mysqllocktest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// What the lock needs of a server for elections.

func (s *suite) records(t *testing.T) {
	lock := s.lock(t, s.open(t), "records", "candidate")
	want := record("candidate")
	want.LeaderTransitions, want.Strategy, want.PreferredHolder = 7, "OldestEmulationVersion", "other"
	want.AcquireTime = metav1.NewTime(time.Date(2024, 2, 29, 23, 59, 59, 999999000, time.UTC))
	must(t, "Create", lock.Create(t.Context(), want))
	if got := get(t, lock); fmt.Sprint(*got) != fmt.Sprint(want) {
		t.Errorf("wrote %+v\nread  %+v", want, *got)
	}
}

func (s *suite) names(t *testing.T) {
	db := s.open(t)
	long := strings.Repeat("x", 250-len(s.prefix))
	names := []string{"a", "A", "á", "ä", "ß", "ss", "日本", "😀", "e\u0301", "é", `it's "a" \ name`, long + "1", long + "2"}
	for _, name := range names {
		lock := s.lock(t, db, name, name)
		must(t, fmt.Sprintf("Create of %q", name), lock.Create(t.Context(), record(name)))
	}
	for _, name := range names {
		if holder := get(t, s.lock(t, db, name, "reader")).HolderIdentity; holder != name {
			t.Errorf("the election %q is held by %q", name, holder)
		}
	}
}

func (s *suite) reads(t *testing.T) {
	db := s.open(t)
	writer := s.lock(t, db, "reads", "writer")
	must(t, "Create", writer.Create(t.Context(), record("writer")))
	var readers []*mysqllock.Lock
	for range 4 {
		other := s.open(t)
		other.SetMaxOpenConns(1)
		readers = append(readers, s.lock(t, other, "reads", "reader"))
	}
	for i := range 25 {
		r := record("writer")
		r.LeaderTransitions = i
		must(t, "a renewal", writer.Update(t.Context(), r))
		for _, reader := range readers {
			if got := get(t, reader).LeaderTransitions; got != i {
				t.Fatalf("renewal %d: a connection reads %d; are reads served by a replica?", i, got)
			}
		}
	}
}

const candidates = 8

// race lets all of them do it at once, and returns those that succeeded.
func race(t *testing.T, locks []*mysqllock.Lock, do func(*mysqllock.Lock) error) (winners []*mysqllock.Lock) {
	t.Helper()
	var all sync.WaitGroup
	var mu sync.Mutex
	start := make(chan struct{})
	for _, lock := range locks {
		all.Add(1)
		go func() {
			defer all.Done()
			<-start
			err := do(lock)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				winners = append(winners, lock)
			case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err):
				t.Logf("a loser's error: %v", err) // a deadlock, say: it has not won
			}
		}()
	}
	close(start)
	all.Wait()
	return winners
}

func (s *suite) pools(t *testing.T) []*sql.DB {
	var pools []*sql.DB
	for range candidates {
		db := s.open(t)
		db.SetMaxOpenConns(1)
		pools = append(pools, db)
	}
	return pools
}

func (s *suite) creates(t *testing.T) {
	pools := s.pools(t)
	won := 0
	for round := range 20 {
		var locks []*mysqllock.Lock
		for i, db := range pools {
			locks = append(locks, s.lock(t, db, fmt.Sprintf("creates-%d", round), fmt.Sprintf("c%d", i)))
		}
		winners := race(t, locks, func(l *mysqllock.Lock) error { return l.Create(t.Context(), record(l.Identity())) })
		if len(winners) > 1 {
			t.Fatalf("round %d: %d candidates created one election", round, len(winners))
		}
		won += len(winners)
		if len(winners) == 1 && get(t, locks[0]).HolderIdentity != winners[0].Identity() {
			t.Fatalf("round %d: the winner doesn't hold the election", round)
		}
	}
	if won < 10 {
		t.Errorf("somebody won in %d of 20 rounds only; the errors are above", won)
	}
}

func (s *suite) takeovers(t *testing.T) {
	pools := s.pools(t)
	var locks []*mysqllock.Lock
	for i, db := range pools {
		locks = append(locks, s.lock(t, db, "takeovers", fmt.Sprintf("c%d", i)))
	}
	must(t, "Create", locks[0].Create(t.Context(), record("c0")))
	won := 0
	for round := range 60 {
		for _, lock := range locks {
			get(t, lock)
		}
		winners := race(t, locks, func(l *mysqllock.Lock) error { return l.Update(t.Context(), record(l.Identity())) })
		if len(winners) > 1 {
			t.Fatalf("round %d: %d candidates won one election", round, len(winners))
		}
		won += len(winners)
		holder := get(t, s.lock(t, pools[0], "takeovers", "reader")).HolderIdentity
		if len(winners) == 1 && holder != winners[0].Identity() {
			t.Fatalf("round %d: %s won, %q holds the election", round, winners[0].Identity(), holder)
		}
	}
	if won < 30 {
		t.Errorf("somebody won in %d of 60 rounds only; the errors are above", won)
	}
}

func (s *suite) stale(t *testing.T) {
	first, second := s.lock(t, s.open(t), "stale", "first"), s.lock(t, s.open(t), "stale", "second")
	must(t, "Create", first.Create(t.Context(), record("first")))
	get(t, second)
	must(t, "a renewal", first.Update(t.Context(), record("first")))
	if err := second.Update(t.Context(), record("second")); !apierrors.IsConflict(err) {
		t.Fatalf("a takeover of a row that was renewed: error %v, want a Conflict", err)
	}
	takeOver(t, second)
	if err := first.Update(t.Context(), record("first")); !apierrors.IsConflict(err) {
		t.Fatalf("a renewal after a takeover: error %v, want a Conflict", err)
	}
	if holder := get(t, second).HolderIdentity; holder != "second" {
		t.Errorf("held by %q", holder)
	}
}

func (s *suite) stepsDown(t *testing.T) {
	db := s.open(t)
	leader, other := s.lock(t, db, "step-down", "leader"), s.lock(t, db, "step-down", "other")
	must(t, "Create", leader.Create(t.Context(), record("leader")))
	must(t, "RequestStepDown", mysqllock.RequestStepDown(t.Context(), db, s.prefix+"step-down"))
	if err := leader.Update(t.Context(), record("leader")); err == nil || apierrors.IsConflict(err) {
		t.Errorf("a renewal after the request: error %v, want one that is no Conflict", err)
	}
	takeOver(t, other)
	must(t, "a renewal of the next leader", other.Update(t.Context(), record("other")))
}

func (s *suite) follows(t *testing.T) {
	db := s.open(t)
	ready := func(context.Context) error { return nil }
	unready := atomic.Bool{}
	mayBe := func(context.Context) error {
		if unready.Load() {
			return errors.New("not ready")
		}
		return nil
	}
	const retry = 100 * time.Millisecond
	timings := mysqllock.WithTimings(60*time.Second, 10*time.Second, retry)
	leader := s.lock(t, db, "readiness", "leader", timings, mysqllock.WithReadiness(mayBe))
	follower := s.lock(t, db, "readiness", "follower", timings, mysqllock.WithReadiness(ready))
	must(t, "Create", leader.Create(t.Context(), record("leader")))
	unready.Store(true)
	must(t, "a renewal of a leader that is not ready", leader.Update(t.Context(), record("leader")))
	get(t, follower)
	tick := time.NewTicker(retry)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		if err := leader.Update(t.Context(), record("leader")); err != nil {
			break // asked
		}
		get(t, follower)
		if time.Since(began) > timeout {
			t.Fatal("a follower that is ready does not ask the leader to step down")
		}
	}
}

func (s *suite) tokens(t *testing.T) {
	db := s.open(t)
	a, b := s.lock(t, db, "tokens", "a"), s.lock(t, db, "tokens", "b")
	must(t, "Create", a.Create(t.Context(), record("a")))
	last := token(t, a)
	for round := range 10 {
		must(t, "a renewal", a.Update(t.Context(), record("a")))
		if got := token(t, a); got != last {
			t.Fatalf("round %d: a renewal changes the token from %d to %d", round, last, got)
		}
		must(t, "a release", a.Update(t.Context(), record("")))
		for _, next := range []*mysqllock.Lock{b, a} {
			takeOver(t, next)
			if got := token(t, next); got <= last {
				t.Fatalf("round %d: the token of a new term is %d after %d", round, got, last)
			}
			last = token(t, next)
		}
	}
}
