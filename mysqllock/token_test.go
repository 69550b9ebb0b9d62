package mysqllock_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Each history is an election of its own, of three candidates and whatever may
// happen to them and to its rows.
func TestFencingTokensGrowInAThousandHistories(t *testing.T) {
	t.Parallel()
	const workers, histories = 4, 1000
	random := seeded(t)
	var working sync.WaitGroup
	terms := make([]int, workers)
	for w := range workers {
		// A database each: histories that delete rows of one table would meet in
		// the gaps between them.
		db, _ := newTables(t)
		random := rand.New(rand.NewPCG(random.Uint64(), 0))
		working.Add(1)
		go func() {
			defer working.Done()
			for i := range histories / workers {
				election := fmt.Sprintf("history %d of worker %d", i, w)
				n, err := tokenHistory(t, db, election, random)
				if err != nil {
					t.Errorf("%s: %v", election, err)
					return
				}
				terms[w] += n
			}
		}()
	}
	working.Wait()
	sum := 0
	for _, n := range terms {
		sum += n
	}
	t.Logf("%d terms in %d histories", sum, histories)
	if sum < 2*histories {
		t.Errorf("%d terms only: hardly any history has two tokens to compare", sum)
	}
}

// tokenHistory lives through one history, and returns the number of terms. Its
// error tells the history as far as it went.
func tokenHistory(t *testing.T, db *sql.DB, election string, random *rand.Rand) (terms int, err error) {
	var steps []string
	fail := func(format string, args ...any) (int, error) {
		return 0, fmt.Errorf("after %q: %s", steps, fmt.Sprintf(format, args...))
	}
	candidate := func(identity string) *mysqllock.Lock { return newLock(t, db, election, identity, unhurried) }
	locks := []*mysqllock.Lock{candidate("a"), candidate("b"), candidate("c")}
	largest := int64(0)
	for range 10 {
		i := random.IntN(len(locks))
		lock := locks[i]
		step := []string{"takes over", "takes over", "renews or takes over", "releases", "releases and takes over", "restarts and takes over", "the record is deleted", "the fence is deleted", "both are deleted"}[random.IntN(9)]
		steps = append(steps, lock.Identity()+": "+step)
		begins := false
		switch step {
		case "takes over":
			begins = true
			if _, held := lock.FencingToken(); held { // a new term all the same
				lock = candidate(lock.Identity())
				locks[i] = lock
			}
		case "renews or takes over":
			begins = true
		case "releases and takes over", "releases":
			begins = step != "releases"
			if _, _, err := lock.Get(t.Context()); err == nil {
				_ = lock.Update(t.Context(), resourcelock.LeaderElectionRecord{LeaseDurationSeconds: 1}) // refused if it doesn't lead
			}
			if token, held := lock.FencingToken(); held {
				return fail("the token %d is held after a release", token)
			}
		case "restarts and takes over":
			begins = true
			lock = candidate(lock.Identity())
			locks[i] = lock
		default:
			for _, table := range map[string][]string{"the record is deleted": {"records"}, "the fence is deleted": {"fences"}, "both are deleted": {"records", "fences"}}[step] {
				if _, err := db.ExecContext(t.Context(), `DELETE FROM election_`+table+` WHERE election_name = ?`, election); err != nil {
					return fail("%v", err)
				}
			}
		}
		if !begins {
			continue
		}
		before, held := lock.FencingToken()
		if err := tryTakeOver(t.Context(), lock); err != nil {
			return fail("%v", err)
		}
		token, leads := lock.FencingToken()
		switch {
		case !leads:
			return fail("a leader has no token")
		case held && token == before && token == largest: // a renewal
		case token <= largest:
			return fail("token %d after %d", token, largest)
		default:
			largest = token
			terms++
		}
	}
	return terms, nil
}

// A server's clock that was set back, by an administrator or a failover.
func TestFencingTokensGrowAlsoWhenTheServersClockIsBehindThem(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	const ahead = int64(4102444800000000) // the year 2100
	takeOver(t, newLock(t, db, "e", "a"))
	exec(t, db, `UPDATE election_fences SET fencing_token = ?`, ahead)
	for i := range int64(3) {
		lock := newLock(t, db, "e", "b")
		takeOver(t, lock)
		if token, held := lock.FencingToken(); token != ahead+1+i || !held {
			t.Errorf("token %d (held: %t), want %d", token, held, ahead+1+i)
		}
	}
}

// Each of the two tells a term by itself: a Lock may have several terms, and a
// server that lost a write may give a token twice.
func TestAGuardGoesByTokenAndByInstance(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	work := newLedger(t, config)
	for name, change := range map[string]string{
		"another token": `UPDATE election_fences SET fencing_token = fencing_token + 1 WHERE election_name = ?`,
		"another Lock":  `UPDATE election_fences SET leader_uid = 'another' WHERE election_name = ?`,
	} {
		lock := newLock(t, db, name, "a")
		takeOver(t, lock)
		if err := lock.Transact(t.Context(), work, nil, inserting("before")); err != nil {
			t.Errorf("%s: before: %v", name, err)
		}
		exec(t, db, change, name)
		if err := lock.Transact(t.Context(), work, nil, inserting("after")); !errors.Is(err, mysqllock.ErrNotLeader) {
			t.Errorf("%s: error %v, want ErrNotLeader", name, err)
		}
	}
	wantLedger(t, work, "before", "before")
}

// A guard that comes between a takeover's two statements: the takeover has to
// wait for it, and must not keep the leader from renewing meanwhile.
func TestATakeoverThatWaitsForAGuardDoesNotHoldRenewalsUp(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	work := openDSN(t, config, "")
	guarded := make(chan *sql.Tx, 1)
	network := newProxy(t, config.Addr)
	network.onRequest = func(packet []byte) {
		if !bytes.Contains(packet, []byte("STRAIGHT_JOIN")) {
			return
		}
		tx, err := work.BeginTx(t.Context(), nil)
		if err == nil {
			err = leader.Guard(t.Context(), tx)
		}
		if err != nil {
			t.Error(err)
		}
		guarded <- tx
	}
	through := network.config(config)
	through.Params = map[string]string{"innodb_lock_wait_timeout": "50"}
	follower := newLock(t, open(t, through), "e", "waits for the guard", mysqllock.WithOperationTimeout(time.Minute))
	result := make(chan error, 1)
	go func() { result <- tryTakeOver(t.Context(), follower) }()
	var tx *sql.Tx
	select {
	case tx = <-guarded:
	case err := <-result:
		t.Fatalf("the takeover never came to its statement: %v", err)
	}
	// Seen several times, it is there to stay. (INNODB_TRX would tell of the wait
	// itself, but whoever reads it within 0.1 s of the last reader, be it another
	// test, reads what that one read.)
	seen := 0
	eventually(t, patience, "the takeover waits", func() bool {
		if seen++; !waiting(t, db, "UPDATE%election_fences AS f", follower.Identity()) {
			seen = 0
		}
		return seen == 20
	})
	if err := leader.Update(t.Context(), record("a")); err != nil {
		t.Errorf("the renewal: %v", err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !apierrors.IsConflict(err) {
		t.Errorf("the takeover, of a lease that was renewed meanwhile: %v", err)
	}
}
