package mysqllock_test

import (
	"bytes"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// The token must still be the last one when a takeover is applied: somebody may have raised it
// since the takeover asked.
func TestTokenThatIsNoLongerTheLastOneEndsATakeover(t *testing.T) {
	db, config := newTables(t)
	network := newProxy(t, config.Addr)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	raised := tokenOf(t, db, "e") + int64(1e15)
	var once sync.Once
	network.onRequest = func(request []byte) {
		if bytes.Contains(request, []byte("STRAIGHT_JOIN")) {
			once.Do(func() { exec(t, db, `UPDATE election_fences SET fencing_token = ?`, raised) })
		}
	}
	follower := newLock(t, open(t, network.config(config)), "e", "b")
	mustSucceed(t, "Get", get(t.Context(), follower))
	if err := update(t.Context(), follower, record("b"))(); err == nil {
		t.Error("the takeover succeeded, with a token smaller than the last one")
	}
	if now := tokenOf(t, db, "e"); now != raised {
		t.Errorf("the token is %d after %d", now, raised)
	}
	mustSucceed(t, "Get", get(t.Context(), follower))
	mustSucceed(t, "the next try", update(t.Context(), follower, record("b")))
	if token, _ := follower.FencingToken(); token <= raised {
		t.Errorf("the token is %d after %d", token, raised)
	}
}

func TestTokensGrowWhateverHappensToTheRows(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	locks := []*mysqllock.Lock{newLock(t, db, "e", "a"), newLock(t, db, "e", "b"), newLock(t, db, "e", "c")}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	largest := int64(0)
	terms := 0
	for step := range 1000 {
		i := random.IntN(len(locks))
		switch random.IntN(8) {
		case 0:
			exec(t, db, `DELETE FROM election_records`)
		case 1:
			exec(t, db, `DELETE FROM election_fences`)
		case 2: // the process restarts
			locks[i] = newLock(t, db, "e", locks[i].Identity())
		case 3: // a release, if it leads
			if _, _, err := locks[i].Get(t.Context()); err == nil {
				_ = locks[i].Update(t.Context(), record(""))
			}
		default:
			before, held := locks[i].FencingToken()
			if err := tryTakeOver(t.Context(), locks[i]); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			token, leads := locks[i].FencingToken()
			switch {
			case !leads:
				t.Fatalf("seed %d, step %d: no token", seed, step)
			case held && token == before && token == largest: // a renewal
			case token <= largest:
				t.Fatalf("seed %d, step %d: token %d after %d", seed, step, token, largest)
			default:
				largest = token
				terms++
			}
		}
	}
	t.Logf("%d terms in 1000 steps, seed %d", terms, seed)
}

func TestTokenOfAReleasedAndRegainedElectionIsNew(t *testing.T) {
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a")
	takeOver(t, lock)
	first, _ := lock.FencingToken()
	if err := lock.Update(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if token, held := lock.FencingToken(); token != first || !held {
		t.Errorf("a renewal changed the token from %d to %d", first, token)
	}
	if err := lock.Update(t.Context(), record("")); err != nil {
		t.Fatal(err)
	}
	if token, held := lock.FencingToken(); token != 0 || held {
		t.Errorf("after the release: %d, %t", token, held)
	}
	if err := lock.Update(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if token, held := lock.FencingToken(); token <= first || !held {
		t.Errorf("the second term has token %d, the first had %d", token, first)
	}
}

// A client's clock in the year 2100 makes versions large, not tokens.
func TestTokenCantBeInflatedByAClientsClock(t *testing.T) {
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a")
	takeOver(t, lock)
	exec(t, db, `UPDATE election_records SET version = 4102444800000000`)
	other := newLock(t, db, "e", "b")
	takeOver(t, other)
	token, _ := other.FencingToken()
	if limit := time.Now().Add(time.Hour).UnixMicro(); token > limit {
		t.Errorf("token %d is in the future", token)
	}
}

// The largest token there is can't be followed by a larger one: the error says which row it is in,
// and an election whose row was deleted goes on.
func TestTokenThatIsTheLargestIsReported(t *testing.T) {
	t.Parallel()
	admin, _ := newTables(t)
	leader, standby := newLock(t, admin, "e", "a"), newLock(t, admin, "e", "b")
	takeOver(t, leader)
	exec(t, admin, `UPDATE election_fences SET fencing_token = 9223372036854775807`)
	const want = `mysqllock: update "e": the election's row in election_fences has the largest fencing token there is, so that no term can begin; ` +
		`delete that row, once nothing compares with this token any more`
	mustRefuse(t, admin, "a takeover", want, func() error { return tryTakeOver(t.Context(), standby) })
	mustSucceed(t, "a renewal", update(t.Context(), leader, record("a")))
	exec(t, admin, `DELETE FROM election_fences`)
	takeOver(t, standby)
}

// Each history is an election of its own, of three candidates and whatever may happen to them and
// to its rows.
func TestTokensGrowInAThousandHistories(t *testing.T) {
	t.Parallel()
	const workers, histories = 4, 1000
	random := seeded(t)
	var working sync.WaitGroup
	terms := make([]int, workers)
	for w := range workers {
		// A database each: histories that delete rows of one table would meet in the gaps between
		// them.
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

// tokenHistory lives through one history, and returns the number of terms. Its error tells the
// history as far as it went.
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
func TestTokensGrowAlsoWhenTheServersClockIsBehindThem(t *testing.T) {
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
