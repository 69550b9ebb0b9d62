package mysqllock_test

import (
	"testing"
	"time"
)

// A client that guards first and then vanishes, with neither FIN nor RST, pins
// its term until the server drops the session: after wait_timeout, which only
// Transact shortens by itself. Its leader goes on renewing meanwhile, and the next
// one can lead when the session is gone.
func TestAClientThatIsCutOffAfterItsOwnGuardHoldsTakeoversOffUntilWaitTimeout(t *testing.T) {
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
	var session int64
	if err := tx.QueryRowContext(t.Context(), `SELECT CONNECTION_ID()`).Scan(&session); err != nil {
		t.Fatal(err)
	}
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
		if isThere && countSessions(t, db, `ID = ?`, session) == 1 {
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
