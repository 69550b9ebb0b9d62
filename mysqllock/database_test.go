package mysqllock_test

import (
	"bytes"
	"sync"
	"testing"
)

// A session of Open's pool in which somebody said USE before the lock's first operation leads the
// lock nowhere else.
func TestDatabaseOfALockIsThatOfItsConfigWhateverItsFirstSessionUses(t *testing.T) {
	_, config := newTables(t)
	other := otherDatabase(t)
	db := open(t, config)
	db.SetMaxOpenConns(1)
	exec(t, db, "USE `"+other+"`")
	lock := newLock(t, db, "e", "a")
	mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
	admin := open(t, config)
	if n := versionOf(t, admin, "e"); n == 0 {
		t.Error("no row in the config's database")
	}
}

// The token must still be the last one when a takeover is applied: somebody may have raised it since
// the takeover asked.
func TestTakeoverIsRefusedIfTheTokenIsNoLongerTheLastOne(t *testing.T) {
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
