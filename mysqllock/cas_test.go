package mysqllock_test

import (
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// What somebody else may put in the rows, by hand or by a tool, and in tables that he has altered:
// an election must not end by it.
func TestCASGoesOnWithRowsThatNoLockWrites(t *testing.T) {
	t.Parallel()
	for name, alter := range map[string]func(testing.TB, *sql.DB){"altered tables": loosen, "the tables": func(testing.TB, *sql.DB) {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testRowsThatNoLockWrites(t, alter)
		})
	}
}

func testRowsThatNoLockWrites(t *testing.T, alter func(testing.TB, *sql.DB)) {
	t.Helper()
	_, config := newTables(t)
	admin := openDSN(t, config, "charset=utf8mb4&sql_mode=%27%27") // takes the next best value
	alter(t, admin)
	hold(t, admin, "another", "b")
	for _, parameters := range []string{"charset=utf8mb4", "charset=utf8mb4&interpolateParams=true&clientFoundRows=true", "charset=latin1", "charset=gbk&interpolateParams=true"} {
		db := openDSN(t, config, parameters)
		for _, test := range []struct{ records, fences string }{
			{records: `leader_uid = NULL`},
			{records: `version = NULL`},
			{records: `leader_name = NULL, lease_duration_seconds = NULL, leader_transitions = NULL, strategy = NULL, preferred_holder = NULL, server = NULL, last_update = NULL`},
			{records: `leader_uid = _utf8mb4 '乗'`},                 // another string in latin1
			{records: `leader_uid = 0x815c27204f522031202d2d20`},   // in gbk a character whose second byte is a backslash, and SQL
			{records: `leader_uid = 0xfffe, leader_name = 0xfffe`}, // not UTF-8
			{records: `leader_uid = 'u '`},
			{records: `leader_uid = REPEAT('u', 2000), leader_name = REPEAT('x', 2000)`},
			{records: `leader_name = '{"holderIdentity":"a"}', strategy = '","holderIdentity":"a'`},
			{records: `leader_transitions = 2147483647`},
			{records: `leader_transitions = -2147483648`},
			{records: `leader_transitions = 9223372036854775807`},
			{records: `lease_duration_seconds = 9223372036854775807`},
			{records: `lease_duration_seconds = -9223372036854775808`},
			{records: `last_update = '9999-12-31', acquire_time = '9999-12-31', renew_time = '0000-00-00'`},
			{fences: `fencing_token = NULL`},
			{fences: `leader_uid = NULL, guards = NULL`},
			{fences: `fencing_token = -9223372036854775808`},
			{fences: `fencing_token = 0`},
		} {
			t.Run(parameters+" "+test.records+test.fences, func(t *testing.T) {
				exec(t, admin, `REPLACE INTO election_records (election_name, leader_name, leader_uid, strategy, preferred_holder, server, version, lease_duration_seconds, leader_transitions, last_update)`+
					` VALUES ('e', 'x', 'u', '', '', '', 1, 15, 0, UTC_TIMESTAMP(6))`)
				exec(t, admin, `REPLACE INTO election_fences (election_name, fencing_token, leader_uid) VALUES ('e', 5, 'u')`)
				if test.records != "" {
					exec(t, admin, `UPDATE election_records SET `+test.records+` WHERE election_name = 'e'`)
				} else {
					exec(t, admin, `UPDATE election_fences SET `+test.fences+` WHERE election_name = 'e'`)
				}
				goesOn(t, admin, func(identity string, opts ...mysqllock.Option) *mysqllock.Lock {
					return newLock(t, db, "e", identity, opts...)
				}, 0, 0)
			})
		}
	}
}

// The elector's fast path updates without a Get. What the lock read to explain the lost
// compare-and-swap must not be what the next Update compares with.
func TestCASOfALeaderThatLostItsRowFailsWithoutAGet(t *testing.T) {
	s := newLateServer(t)
	former, successor := s.lock("a"), s.lock("b")
	mine := record("a")
	if err := former.Create(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	s.get(successor)
	if err := successor.Update(t.Context(), record("b")); err != nil {
		t.Fatal(err)
	}
	row := readRow(t, s.db, s.election)
	token := s.token(successor)
	renewal := mine
	renewal.RenewTime.Time = renewal.RenewTime.Add(time.Second)
	for i, next := range []struct {
		name   string
		record func() error
	}{
		{"renewal", func() error { return former.Update(t.Context(), renewal) }},
		{"renewal", func() error { return former.Update(t.Context(), renewal) }},
		{"takeover", func() error { return former.Update(t.Context(), mine) }},
		{"renewal", func() error { return former.Update(t.Context(), renewal) }},
	} {
		if err := next.record(); !apierrors.IsConflict(err) {
			t.Errorf("%s %d without a Get: %v, not a Conflict", next.name, i, err)
		}
		if _, held := former.FencingToken(); held {
			t.Errorf("%s %d left a fencing token", next.name, i)
		}
	}
	if now := readRow(t, s.db, s.election); now != row {
		t.Errorf("the successor's row %+v became %+v", row, now)
	}
	if now := s.token(successor); now != token {
		t.Errorf("the successor's token %d became %d", token, now)
	}
	if err := successor.Update(t.Context(), record("b")); err != nil {
		t.Errorf("the successor's renewal: %v", err)
	}
}

// An UPDATE that waits for the row while somebody else changes it. MariaDB 11.8 answers with error
// 1020 under SERIALIZABLE, where others find that no row matches: the compare-and-swap is lost all
// the same.
func TestCASOfARowThatIsLostMeanwhileIsAConflictUnderEveryIsolationLevel(t *testing.T) {
	for _, level := range isolations() {
		for _, who := range []string{"leader", "follower"} {
			t.Run(level.name+", "+who, func(t *testing.T) {
				db, config := newTables(t)
				s := &lateServer{t: t, db: db, pool: level.open(t, config), election: "ns/lost"}
				leader, follower := s.lock("leader"), s.lock("follower")
				if err := leader.Create(t.Context(), record("leader")); err != nil {
					t.Fatal(err)
				}
				s.get(follower)
				lock := map[string]*mysqllock.Lock{"leader": leader, "follower": follower}[who]

				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = tx.Rollback() }()
				if _, err := tx.ExecContext(t.Context(), `UPDATE election_records SET leader_name = 'usurper', leader_uid = 'other', version = version + 1`); err != nil {
					t.Fatal(err)
				}
				result := make(chan error, 1)
				go func() { result <- lock.Update(t.Context(), record(who)) }()
				eventually(t, patience, "an Update that waits for the row", func() bool { return len(s.abandoned()) == 1 })
				if err := tx.Commit(); err != nil {
					t.Fatal(err)
				}
				if err := <-result; !apierrors.IsConflict(err) {
					t.Errorf("Update: %v, not a Conflict", err)
				}
				if token, held := lock.FencingToken(); held {
					t.Errorf("the token %d is still held", token)
				}
			})
		}
	}
}

// handOverSQL is how an administrator ends a term whose leader can't be told to stop: a holder that
// never renews. The leader can't renew any more and steps down at its RenewDeadline; the others see
// a new holder, and wait for a lease.
const handOverSQL = `UPDATE election_records SET leader_name = 'maintenance', leader_uid = 'maintenance', version = version + 1,
	last_update = UTC_TIMESTAMP(6) WHERE election_name = ?`

func TestCASLetsAnAdministratorForceAHandOverWithoutTwoLeaders(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	o := a.hold(t, true, short, func(c *contest) hazardResult {
		leader := c.run(c.lock(c.db, "leader"))
		leader.mustLead(c, 20*time.Second)
		followers := c.follow(2)
		exec(c, c.db, handOverSQL, c.election)
		return succession(c, leader, followers)
	}, unbroken)
	t.Logf("two leaders for %v", o)
}

func TestCASHasOneWinnerUnderEveryIsolationLevel(t *testing.T) {
	_, config := newTables(t)
	const n = 8
	for i, s := range isolations() {
		t.Run(s.name, func(t *testing.T) {
			db := s.open(t, config)
			db.SetMaxOpenConns(n)
			db.SetMaxIdleConns(n)
			var variable, level string
			row := db.QueryRowContext(t.Context(), `SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')`)
			if err := row.Scan(&variable, &level); err != nil || level != s.name {
				t.Fatalf("the session's isolation level is %s, not %s (%v)", level, s.name, err)
			}
			swapRaces(t, db, fmt.Sprintf("ns/isolation-%d", i), n, 40)
			createRaces(t, db, fmt.Sprintf("ns/isolation-create-%d", i), n, 10)
		})
	}
}

// A row that was deleted and made again must not match what a lock observed before (ABA), also when
// the old row's version is of a clock in the year 2100, to which the new row's could count up.
func TestCASNeverMatchesARowThatWasMadeAgain(t *testing.T) {
	db, _ := newTables(t)
	ctx := t.Context()
	year2100 := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for _, old := range []struct {
		name    string
		version int64
	}{{"now", 0}, {"2100", year2100}} {
		for _, released := range []bool{false, true} {
			for _, remake := range []string{"not", "held", "released"} {
				t.Run(fmt.Sprintf("version of %s, released %v, made again %s", old.name, released, remake), func(t *testing.T) {
					election := "ns/again"
					for range 10 {
						stale, next := newLock(t, db, election, "a", unhurried), newLock(t, db, election, "b", unhurried)
						must("Create", stale.Create(ctx, record("a")))
						if old.version != 0 {
							exec(t, db, `UPDATE election_records SET version = ? WHERE election_name = ?`, old.version, election)
							_, _, err := stale.Get(ctx)
							must("Get", err)
						}
						if released {
							must("release", stale.Update(ctx, record("")))
						}
						before := readRow(t, db, election)
						if old.version != 0 && before.Version < old.version {
							t.Fatalf("the version went back from %d to %d", old.version, before.Version)
						}
						exec(t, db, `DELETE FROM election_records WHERE election_name = ?`, election)
						want := "NotFound"
						if remake != "not" {
							want = "Conflict"
							must("Create again", next.Create(ctx, record("b")))
							if remake == "released" {
								must("release again", next.Update(ctx, record("")))
							}
							after := readRow(t, db, election)
							if after.Version == before.Version {
								t.Errorf("the version %d came back", after.Version)
							}
							// As many renewals as a stale lock may sleep for.
							for range 3 {
								if got := outcome(stale.Update(ctx, record("a"))); got != want {
									t.Errorf("Update of a row that was made again: %s, not %s", got, want)
								}
								if remake == "held" {
									must("renewal", next.Update(ctx, record("b")))
								}
							}
						} else if got := outcome(stale.Update(ctx, record("a"))); got != want {
							t.Errorf("Update of a row that is gone: %s, not %s", got, want)
						}
						if remake != "not" {
							holder := map[string]string{"held": "b", "released": ""}[remake]
							if row := readRow(t, db, election); row.Holder != holder {
								t.Errorf("the row made again became %+v", row)
							}
						}
						exec(t, db, `DELETE FROM election_records WHERE election_name = ?`, election)
					}
				})
			}
		}
	}
}

// After a failover that lost a write, or beside a client whose clock is ahead, two candidates can
// have written the same version.
func TestCASDoesNotMatchTheSameVersionOfAnotherHolder(t *testing.T) {
	db, _ := newTables(t)
	ctx := t.Context()
	for _, who := range []string{"leader", "follower"} {
		election := "ns/same-version-" + who
		leader, follower := newLock(t, db, election, "leader", unhurried), newLock(t, db, election, "follower", unhurried)
		if err := leader.Create(ctx, record("leader")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := follower.Get(ctx); err != nil {
			t.Fatal(err)
		}
		exec(t, db, `UPDATE election_records SET leader_name = 'usurper', leader_uid = 'other' WHERE election_name = ?`, election)
		lock := map[string]*mysqllock.Lock{"leader": leader, "follower": follower}[who]
		if err := lock.Update(ctx, record(who)); !apierrors.IsConflict(err) {
			t.Errorf("Update by the %s: %v, not a Conflict", who, err)
		}
		if row := readRow(t, db, election); row.Holder != "usurper" {
			t.Errorf("the %s overwrote another holder's row of the same version: %+v", who, row)
		}
	}
}

// swapRaces lets n locks race to replace the row that all of them observed, and demands one winner
// in each round. It logs how often the others lost and how often they were turned away as busy.
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
		// In most rounds a leader's renewal races against takeovers, in some the election was
		// released and all are takeovers.
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

func TestCASOfSixteenThatSawTheSameRowHasOneWinner(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	const n = 16
	swapRaces(t, openForMany(t, config, n), "ns/swap-race", n, 500)
}

// createRaces lets n locks race to create an election, and demands one winner in each round.
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

func TestCASOfTwentyThatCreateAnElectionHasOneWinner(t *testing.T) {
	_, config := newTables(t)
	const n = 20
	createRaces(t, openForMany(t, config, n), "ns/create-race", n, 50)
}

// A follower that polls sees the election between the insert and the takeover of Create, as
// released. It may take it, and then the creator has lost.
func TestCASOfCreatesAndTakeoversOfANewElectionHasOneWinner(t *testing.T) {
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
