package mysqllock_test

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// unhurried is for tests that are not about time: no operation ends by a
// deadline, however slow the machine is.
var unhurried = mysqllock.WithOperationTimeout(2 * time.Minute)

// openForMany is a pool like Open's that gives each of n goroutines a connection
// at once, whose statements wait for a lock as long as it takes.
func openForMany(t testing.TB, config *mysql.Config, n int) *sql.DB {
	t.Helper()
	config = config.Clone()
	params := map[string]string{"innodb_lock_wait_timeout": "120"}
	maps.Copy(params, config.Params)
	config.Params = params
	db := open(t, config)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db
}

// isBusy recognises a takeover that was refused as the fence row was locked at
// that moment: by a guard or, in a race, by another takeover.
func isBusy(err error) bool {
	var e *mysql.MySQLError
	return errors.As(err, &e) && (e.Number == 1205 || e.Number == 3572)
}

// together runs f(0) to f(n-1) at once and returns their errors.
func concurrently(n int, f func(int) error) []error {
	var (
		wg    sync.WaitGroup
		start = make(chan struct{})
		errs  = make([]error, n)
	)
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			<-start
			errs[i] = f(i)
		}()
	}
	close(start)
	wg.Wait()
	return errs
}

// storedFence is what the table says of the newest term.
func storedFence(t testing.TB, db *sql.DB, election string) (token int64, uid string) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT fencing_token, leader_uid FROM election_fences WHERE election_name = ?`, election).Scan(&token, &uid)
	if err != nil {
		t.Fatal(err)
	}
	return token, uid
}

// swapRaces lets n locks race to replace the row that all of them observed, and
// demands one winner in each round. It tells how often the others lost and how
// often they were turned away as busy.
func swapRaces(t testing.TB, db *sql.DB, election string, n, rounds int) {
	t.Helper()
	ctx := t.Context()
	locks := make([]*mysqllock.Lock, n)
	for i := range locks {
		locks[i] = newLock(t, db, election, fmt.Sprintf("candidate-%d", i), unhurried)
	}
	if err := locks[0].Create(ctx, record("candidate-0")); err != nil {
		t.Fatal(err)
	}
	leader := 0
	last, _ := locks[0].FencingToken()
	var renewals, lost, busy, slowRounds int
	for round := range rounds {
		// In most rounds a leader's renewal races against takeovers, in some
		// the election was released and all are takeovers.
		if round%4 == 3 {
			released := record("")
			if err := locks[leader].Update(ctx, released); err != nil {
				t.Fatalf("round %d: release: %v", round, err)
			}
			leader = -1
		}
		for i, err := range concurrently(n, func(i int) error {
			_, _, err := locks[i].Get(ctx)
			return err
		}) {
			if err != nil {
				t.Fatalf("round %d: Get of %d: %v", round, i, err)
			}
		}
		var winners []int
		turned := 0
		for i, err := range concurrently(n, func(i int) error { return locks[i].Update(ctx, record(locks[i].Identity())) }) {
			switch {
			case err == nil:
				winners = append(winners, i)
			case apierrors.IsConflict(err):
				lost++
			case isBusy(err):
				turned++
			default:
				t.Errorf("round %d: Update of %d is neither a success nor a Conflict nor busy: %v", round, i, err)
			}
		}
		busy += turned
		if turned > 0 {
			slowRounds++
		}
		if len(winners) != 1 {
			t.Fatalf("round %d: the winners are %v", round, winners)
		}
		winner := winners[0]
		token, held := locks[winner].FencingToken()
		switch {
		case !held:
			t.Fatalf("round %d: the winner has no fencing token", round)
		case winner == leader && token != last:
			t.Fatalf("round %d: a renewal changed the fencing token from %d to %d", round, last, token)
		case winner != leader && token <= last:
			t.Fatalf("round %d: the fencing token of a new term is %d, after %d", round, token, last)
		}
		if winner == leader {
			renewals++
		}
		leader, last = winner, token
		row := readRow(t, db, election)
		stored, uid := storedFence(t, db, election)
		if row.Holder != locks[winner].Identity() || stored != token || uid != row.UID {
			t.Fatalf("round %d: %s won with token %d, but the tables have %+v, token %d, uid %s", round, locks[winner].Identity(), token, row, stored, uid)
		}
		for i, lock := range locks {
			if _, held := lock.FencingToken(); held && i != winner {
				t.Fatalf("round %d: %d holds a token, and so does the winner %d", round, i, winner)
			}
		}
	}
	t.Logf("%d rounds of %d: %d renewals and %d takeovers won; %d updates lost, %d were busy (in %d rounds)", rounds, n, renewals, rounds-renewals, lost, busy, slowRounds)
}

func TestOfSixteenThatSawTheSameRowOneWins(t *testing.T) {
	_, config := newTables(t)
	const n = 16
	swapRaces(t, openForMany(t, config, n), "ns/swap-race", n, 500)
}

// createRaces lets n locks race to create an election, and demands one winner in
// each round.
func createRaces(t testing.TB, db *sql.DB, election string, n, rounds int) {
	t.Helper()
	ctx := t.Context()
	for round := range rounds {
		election := fmt.Sprintf("%s-%d", election, round)
		locks := make([]*mysqllock.Lock, n)
		for i := range locks {
			locks[i] = newLock(t, db, election, fmt.Sprintf("candidate-%d", i), unhurried)
		}
		winner := -1
		for i, err := range concurrently(n, func(i int) error { return locks[i].Create(ctx, record(locks[i].Identity())) }) {
			switch {
			case err == nil && winner < 0:
				winner = i
			case err == nil:
				t.Errorf("round %d: %d and %d created the election", round, winner, i)
			case !apierrors.IsAlreadyExists(err):
				t.Errorf("round %d: Create of %d: %v", round, i, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody created the election", round)
		}
		if row := readRow(t, db, election); row.Holder != locks[winner].Identity() {
			t.Errorf("round %d: %s won, but the row is %+v", round, locks[winner].Identity(), row)
		}
		for i, lock := range locks {
			if _, held := lock.FencingToken(); held != (i == winner) {
				t.Errorf("round %d: %d holds a token: %v; the winner is %d", round, i, held, winner)
			}
		}
	}
}

func TestOfTwentyThatCreateAnElectionOneWins(t *testing.T) {
	_, config := newTables(t)
	const n = 20
	createRaces(t, openForMany(t, config, n), "ns/create-race", n, 50)
}

// A follower that polls sees the election between the insert and the takeover
// of Create, as released. It may take it, and then the creator has lost.
func TestCreatesAndTakeoversOfANewElectionHaveOneWinner(t *testing.T) {
	_, config := newTables(t)
	const n = 12
	db := openForMany(t, config, n)
	ctx := t.Context()
	overtaken := 0
	for round := range 50 {
		election := fmt.Sprintf("ns/create-and-take-%d", round)
		locks := make([]*mysqllock.Lock, n)
		for i := range locks {
			locks[i] = newLock(t, db, election, fmt.Sprintf("candidate-%d", i), unhurried)
		}
		var winners []int
		for i, err := range concurrently(n, func(i int) error {
			if i%2 == 0 {
				return locks[i].Create(ctx, record(locks[i].Identity()))
			}
			for {
				found, _, err := locks[i].Get(ctx)
				switch {
				case apierrors.IsNotFound(err):
				case err != nil:
					return err
				case found.HolderIdentity == "":
					return locks[i].Update(ctx, record(locks[i].Identity()))
				default:
					return apierrors.NewConflict(leaseGroup, election, errors.New("held already"))
				}
			}
		}) {
			switch {
			case err == nil:
				winners = append(winners, i)
			case isBusy(err):
			case i%2 == 0 && !apierrors.IsAlreadyExists(err):
				t.Errorf("round %d: Create of %d: %v", round, i, err)
			case i%2 == 1 && !apierrors.IsConflict(err):
				t.Errorf("round %d: Update of %d: %v", round, i, err)
			}
		}
		if len(winners) != 1 {
			t.Fatalf("round %d: the winners are %v", round, winners)
		}
		if row := readRow(t, db, election); row.Holder != locks[winners[0]].Identity() {
			t.Errorf("round %d: %s won, but the row is %+v", round, locks[winners[0]].Identity(), row)
		}
		overtaken += winners[0] % 2
	}
	t.Logf("the creator was overtaken in %d of 50 rounds", overtaken)
}
