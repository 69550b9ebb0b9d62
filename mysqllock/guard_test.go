package mysqllock_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// A client that guards first and then vanishes, with neither FIN nor RST, pins its term until the
// server drops the session: after wait_timeout, which only Transact shortens by itself. Its leader
// goes on renewing meanwhile, and the next one can lead when the session is gone.
func TestGuardOfAClientThatIsCutOffHoldsTakeoversOffUntilWaitTimeout(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	newLedger(t, config)
	leader, follower := newLock(t, db, "e", "a"), newLock(t, db, "e", "b")
	takeOver(t, leader)
	network := newSevered(t)
	bounded := network.config(config)
	bounded.Params = map[string]string{"wait_timeout": "4"}
	work := open(t, bounded)
	tx, err := work.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := leader.Guard(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	if err := insert(t.Context(), tx, "never committed"); err != nil {
		t.Fatal(err)
	}
	session := sessionID(t, tx)
	network.after(0)
	cutOff := time.Now()
	refused := 0
	eventually(t, 30*time.Second, "the follower takes over", func() bool {
		if err := leader.Update(t.Context(), record("a")); err != nil {
			t.Errorf("the leader's renewal: %v", err)
		}
		isThere := countSessions(t, db, `ID = ?`, session) == 1
		if tryTakeOver(t.Context(), follower) != nil {
			refused++
			return false
		}
		// At the end the list of sessions is behind for a moment.
		if isThere && countSessions(t, db, `ID = ?`, session) == 1 && time.Since(cutOff) < 3900*time.Millisecond {
			t.Errorf("the follower took over %v after the cut, while the guard's session was there", time.Since(cutOff))
		}
		return true
	})
	t.Logf("%d takeovers were refused, one succeeded %v after the cut, with a wait_timeout of 4 s", refused, time.Since(cutOff).Round(10*time.Millisecond))
	if refused == 0 {
		t.Error("no takeover was refused: nothing was shown")
	}
	wantLedger(t, db)
}

// A token is held, but there is no row that it could be compared with: nothing says that leadership
// has passed.
func TestGuardWithAMissingFenceRowIsNoLossOfLeadership(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	exec(t, db, `DELETE FROM election_fences`)
	tx, err := work.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Guard":    leader.Guard(t.Context(), tx),
		"Transact": leader.Transact(t.Context(), work, nil, inserting("unguarded")),
	} {
		if err == nil || errors.Is(err, mysqllock.ErrNotLeader) || !strings.Contains(err.Error(), "election_fences") {
			t.Errorf("%s: error %v, want one about election_fences that is not ErrNotLeader", what, err)
		}
	}
	mustSucceed(t, "Rollback", tx.Rollback)
	wantLedger(t, work)
}

func TestGuardKeepsOthersFromTakingOverWhileRenewalsGoOn(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	leader, follower := newLock(t, db, "e", "a"), newLock(t, db, "e", "b")
	takeOver(t, leader)
	for _, level := range isolationLevels {
		tx, err := work.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
		if err != nil {
			t.Fatal(err)
		}
		if err := leader.Guard(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := tryTakeOver(t.Context(), follower); err == nil {
				t.Fatalf("%v: the follower took over while the guard held", level)
			} else if apierrors.IsConflict(err) || !strings.Contains(err.Error(), "a transaction guards the current term") {
				t.Errorf("%v: %v", level, err)
			}
			if err := leader.Update(t.Context(), record("a")); err != nil {
				t.Errorf("%v: the renewal failed: %v", level, err)
			}
		}
		if err := insert(t.Context(), tx, level.String()); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		takeOver(t, follower)
		takeOver(t, leader)
	}
}

func TestGuardIsRefusedWhenLeadershipHasPassed(t *testing.T) {
	db, config := newTables(t)
	work := openDSN(t, config, "")
	a, b := newLock(t, db, "e", "a"), newLock(t, db, "e", "b")
	guard := func(l *mysqllock.Lock) error {
		tx, err := work.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }()
		return l.Guard(t.Context(), tx)
	}
	if err := guard(a); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("never led: %v", err)
	}
	takeOver(t, a)
	if err := guard(a); err != nil {
		t.Errorf("leads: %v", err)
	}
	takeOver(t, b)
	if err := guard(a); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("was taken over without noticing: %v", err)
	}
	released := record("")
	if err := b.Update(t.Context(), released); err != nil {
		t.Fatal(err)
	}
	if err := guard(b); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("released: %v", err)
	}
	takeOver(t, a)
	exec(t, db, `DELETE FROM election_fences`)
	// Not a sign that another leads: nobody can, without a row.
	if err := guard(a); err == nil || errors.Is(err, mysqllock.ErrNotLeader) || !strings.Contains(err.Error(), "no row in election_fences") {
		t.Errorf("the fence row is gone: %v", err)
	}
	takeOver(t, a)
	a.RecordEvent("stopped leading")
	if err := guard(a); !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("the elector stopped leading: %v", err)
	}
}

// The leader's renewals and takeovers of other elections must not make a guarded transaction fail,
// whatever its snapshot.
func TestGuardIsNotDisturbedByRenewals(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	for _, level := range isolationLevels {
		err := leader.Transact(t.Context(), work, &sql.TxOptions{Isolation: level}, func(ctx context.Context, tx *sql.Tx) error {
			if err := insert(ctx, tx, level.String()); err != nil {
				return err
			}
			var holder string
			if err := tx.QueryRowContext(ctx, `SELECT leader_name FROM election_records`).Scan(&holder); err != nil {
				return err
			}
			if level != sql.LevelSerializable { // which locks what it reads
				return leader.Update(ctx, record("a"))
			}
			return nil
		})
		if err != nil {
			t.Errorf("%v: %v", level, err)
		}
	}
}

// A transaction guards a term whose leader has stopped renewing; five followers want to take over
// meanwhile. They are refused at once, leave no session waiting at the server, and one leads soon
// after the guard has ended.
func TestGuardMakesFollowersNeitherQueueNorWaitLong(t *testing.T) {
	t.Parallel()
	o := newArena(t).hold(t, true, hasty, followersOfAGuardedTerm, unbroken)
	t.Logf("HAZARD | i: five followers of a guarded term | | %s", o.note)
}

func followersOfAGuardedTerm(c *contest) hazardResult {
	const n = 5
	gone := newLock(c, c.db, c.election, "gone", mysqllock.WithOperationTimeout(5*time.Second)) // its own pace doesn't matter
	ofTwoSeconds := record("gone")
	ofTwoSeconds.LeaseDurationSeconds = 2
	if err := gone.Create(c.Context(), ofTwoSeconds); err != nil {
		c.Fatal(err)
	}
	work := openDSN(c, c.config, "")
	tx, err := work.BeginTx(c.Context(), nil)
	if err != nil {
		c.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // of nothing, if all is well
	if err := gone.Guard(c.Context(), tx); err != nil {
		c.Fatal(err)
	}
	var followers []*candidate
	for i := range n {
		followers = append(followers, c.run(c.lock(open(c, c.config), fmt.Sprintf("follower %d", i+1))))
	}
	admin := openDSN(c, c.config, "")
	sessions := 0
	// The lease ends after 2 s; for the rest of the time followers try.
	end := time.After(7 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for guarded := true; guarded; {
		select {
		case <-tick.C:
			sessions = max(sessions, countSessions(c, admin, `DB = ?`, c.config.DBName))
		case <-end:
			guarded = false
		}
	}
	if slices.ContainsFunc(followers, (*candidate).leads) {
		c.Fatal("a follower leads while the guard holds")
	}
	if err := tx.Commit(); err != nil {
		c.Fatal(err)
	}
	ended := time.Now()
	whoLeads(c, followers, 10*time.Second)
	took := time.Since(ended)

	var refusals []time.Duration
	for _, f := range followers {
		for _, u := range f.history() {
			if u.err != nil && strings.Contains(u.err.Error(), "a transaction guards the current term") {
				refusals = append(refusals, u.returned.Sub(u.started))
			}
		}
	}
	if len(refusals) < 2*n {
		c.Fatalf("%d refusals only", len(refusals))
	}
	slices.Sort(refusals)
	median := refusals[len(refusals)/2]
	// One or two for each follower, and those of the leader, its work, the administrator and the
	// arena.
	if limit := 2*n + 5; sessions > limit {
		c.Errorf("%d sessions at the server, want at most %d", sessions, limit)
	}
	if median > c.pace.operationTimeout()/2 {
		c.Errorf("half of the refusals took %v and longer", median)
	}
	if limit := c.pace.takeoverWithin() - c.pace.lease; took > limit {
		c.Errorf("a new leader %v after the guard, want at most %v", took, limit)
	}
	return hazardResult{note: fmt.Sprintf("at most %d sessions, %d refusals, median %v, a new leader %v after the guard",
		sessions, len(refusals), median.Round(100*time.Microsecond), took.Round(time.Millisecond))}
}

// A guard with a fence row that somebody spoilt is of nobody: nothing is committed, and the next
// term is sound again.
func TestGuardCommitsNothingWithAFenceRowThatSomebodySpoilt(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	loosen(t, admin)
	work := newLedger(t, config)
	for _, spoil := range []string{`fencing_token = NULL`, `fencing_token = -1`, `fencing_token = 9223372036854775807`, `leader_uid = NULL`, `leader_uid = 0xff`, `leader_uid = ''`} {
		t.Run(spoil, func(t *testing.T) {
			lock := newLock(t, admin, spoil, "a")
			takeOver(t, lock)
			token, _ := lock.FencingToken()
			exec(t, admin, `UPDATE election_fences SET `+spoil+` WHERE election_name = ?`, spoil)
			if err := lock.Transact(t.Context(), work, nil, inserting("lost")); !errors.Is(err, mysqllock.ErrNotLeader) {
				t.Errorf("Transact: %v", err)
			}
			wantLedger(t, work)
			mustSucceed(t, "a renewal", update(t.Context(), lock, record("a")))
			exec(t, admin, `UPDATE election_fences SET fencing_token = ? WHERE fencing_token = 9223372036854775807`, token)
			lock.RecordEvent("stopped leading")
			takeOver(t, lock)
			mustSucceed(t, "Transact", func() error { return lock.Transact(t.Context(), work, nil, nop) })
		})
	}
}

// Each of the two tells a term by itself: a Lock may have several terms, and a server that lost a
// write may give a token twice.
func TestGuardGoesByTokenAndByInstance(t *testing.T) {
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

// A guard that comes between a takeover's two statements: the takeover has to wait for it, and must
// not keep the leader from renewing meanwhile.
func TestGuardThatATakeoverWaitsForHoldsNoRenewalsUp(t *testing.T) {
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
	// Seen several times, it is there to stay. (INNODB_TRX would tell of the wait itself, but
	// whoever reads it within 0.1 s of the last reader, be it another test, reads what that one
	// read.)
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
