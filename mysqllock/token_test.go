package mysqllock_test

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

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
