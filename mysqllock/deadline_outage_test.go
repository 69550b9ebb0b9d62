package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// This file is about servers and networks that fail while an operation is under way.

func TestDeadlineIsNotWaitedForWhenAServerGoesAwayInMidStatement(t *testing.T) {
	db, config := newTables(t)
	account := newAccount(t, config, ordinary...)
	for name, pool := range map[string]func(testing.TB, *mysql.Config) *sql.DB{
		"Open": open, "plain DSN": func(t testing.TB, c *mysql.Config) *sql.DB { return openDSN(t, c, "interpolateParams=true") },
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, account.Addr)
			var armed atomic.Bool
			p.onRequest = func(request []byte) {
				// Of Open it is prepared; in a pool of one's own on MySQL another statement comes
				// before.
				if armed.Load() && (name == "Open" || isRenewal(request)) {
					p.swallowReplies()
				}
			}
			lock := newLock(t, pool(t, p.config(account)), name, "a", mysqllock.WithOperationTimeout(time.Minute))
			mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
			mustSucceed(t, "a first renewal, which is prepared", update(t.Context(), lock, record("a")))
			token, version := tokenOf(t, db, name), versionOf(t, db, name)

			armed.Store(true)
			returned := make(chan error, 1)
			go func() { returned <- lock.Update(context.Background(), record("a")) }()
			eventually(t, 20*time.Second, "the renewal is applied", func() bool { return versionOf(t, db, name) != version })
			armed.Store(false)
			p.cut()
			p.forward()
			select {
			case err := <-returned:
				if !errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, context.DeadlineExceeded) || apierrors.IsConflict(err) {
					t.Errorf("error %v, want mysql.ErrInvalidConn", err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("Update waits for a connection that was cut")
			}

			// As the elector goes on: it renews what it believes in, loses, looks.
			if err := lock.Update(t.Context(), record("a")); !apierrors.IsConflict(err) {
				t.Errorf("the next renewal: %v, want a conflict with the one whose reply was lost", err)
			}
			mustSucceed(t, "Get", get(t.Context(), lock))
			mustSucceed(t, "Update", update(t.Context(), lock, record("a")))
			if now := tokenOf(t, db, name); now != token {
				t.Errorf("the term with token %d became one with token %d", token, now)
			}
		})
	}
}

// A hung server, a crash in mid-statement, and a restart, of one real server.
func TestDeadlineHoldsOnAServerThatHangsOrCrashesAndTheNextCallSucceeds(t *testing.T) {
	locks := map[string]*mysqllock.Lock{} // by the pool's name and the candidate's
	own, config := ownServer(t)
	admin := open(t, config)
	mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), admin) })
	account := newAccount(t, config, ordinary...)
	const d = 300 * time.Millisecond
	for name, pool := range pools {
		db := pool(t, account)
		for candidate, timeout := range map[string]time.Duration{"a": d, "patient": 30 * time.Second} {
			locks[name+candidate] = newLock(t, db, name, candidate, mysqllock.WithOperationTimeout(timeout))
		}
	}
	leads := func(name string) func() bool {
		lock := locks[name+"a"]
		return func() bool {
			err := get(t.Context(), lock)()
			if apierrors.IsNotFound(err) {
				return lock.Create(t.Context(), record("a")) == nil
			}
			return err == nil && lock.Update(t.Context(), record("a")) == nil
		}
	}
	for name := range pools {
		eventually(t, 20*time.Second, "a leads", leads(name))
	}

	mustSucceed(t, "Pause", own.Pause)
	var all calls
	for name, pool := range pools {
		newcomer := newLock(t, pool(t, account), name+", new", "a", mysqllock.WithOperationTimeout(d))
		all.start(func() {
			mustTimeOut(t, name+", Get", d, get(context.Background(), locks[name+"a"]))
			mustTimeOut(t, name+", Update", d, update(context.Background(), locks[name+"a"], record("a")))
			mustTimeOut(t, name+", Create", d, create(context.Background(), newcomer, record("a")))
		})
	}
	all.Wait()
	mustSucceed(t, "Resume", own.Resume)
	for name := range pools {
		mustSucceed(t, name+", the next call", get(t.Context(), locks[name+"patient"]))
		eventually(t, 20*time.Second, name+": a leads again", leads(name))
	}

	// Row locks keep two takeovers in mid-statement until the server dies.
	tx, err := admin.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), `UPDATE election_records SET version = version + 1`); err != nil {
		t.Fatal(err)
	}
	user := account.Clone()
	user.Params = map[string]string{"innodb_lock_wait_timeout": "50"} // as by default, for Open too
	returned := make(chan error, len(pools))
	for name, pool := range pools {
		lock := newLock(t, pool(t, user), name, "b", mysqllock.WithOperationTimeout(time.Minute))
		mustSucceed(t, "Get", get(t.Context(), lock))
		all.start(func() { returned <- lock.Update(context.Background(), record("b")) })
	}
	eventually(t, 20*time.Second, "the takeovers wait for their rows", func() bool {
		waiting := strings.Join(statementsOf(t.Context(), t, admin, account.User), "\n")
		return strings.Count(waiting, "election_fences AS f STRAIGHT_JOIN") == len(pools)
	})
	mustSucceed(t, "Kill", own.Kill)
	for range pools {
		select {
		case err := <-returned:
			if err == nil || errors.Is(err, context.DeadlineExceeded) || apierrors.IsConflict(err) {
				t.Errorf("a takeover when the server died: %v, want the broken connection", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("Update waits for a server that is gone")
		}
	}
	all.Wait()
	_ = tx.Rollback() // of a session that died with the server
	for name := range pools {
		err := get(context.Background(), locks[name+"a"])()
		if want := `mysqllock: get "` + name + `": dial: connect: connection refused`; err == nil || err.Error() != want {
			t.Errorf("without a server: %v, want %s", err, want)
		}
	}
	mustSucceed(t, "Restart", func() error { return own.Restart(t.Context()) })
	for name := range pools {
		mustSucceed(t, name+", the next call", get(t.Context(), locks[name+"patient"]))
		eventually(t, 20*time.Second, name+": a leads again", leads(name))
	}
}

// The reason for a deadline of the lock's own: a standby's or a leader's connection dies in
// silence, and its elector must go on all the same.
func TestDeadlineOfALeaderInABlackHoleLetsAStandbyTakeOver(t *testing.T) {
	db, config := newTables(t)
	account := newAccount(t, config, ordinary...)
	for name, break_ := range map[string]func(*proxy){"black hole": (*proxy).blackHole, "replies lost": (*proxy).swallowReplies} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProxy(t, account.Addr)
			history := make(chan string, 100)
			a := start(t, newLock(t, open(t, p.config(account)), name, "a", mysqllock.WithOperationTimeout(400*time.Millisecond)), cadence{4 * time.Second, 2 * time.Second, 300 * time.Millisecond}, releasing, telling(history))
			mustComeNext(t, history, "a leads")
			b := start(t, newLock(t, open(t, account), name, "b", mysqllock.WithOperationTimeout(400*time.Millisecond)), cadence{4 * time.Second, 2 * time.Second, 300 * time.Millisecond}, releasing, telling(history))

			break_(p)
			mustComeNext(t, history, "a stopped")
			mustComeNext(t, history, "b leads")
			<-a.ended

			// What the old leader sent in vain arrives now, and matches nothing.
			p.forward()
			for range 3 {
				version := versionOf(t, db, name)
				eventually(t, 20*time.Second, "b renews", func() bool { return versionOf(t, db, name) != version })
			}
			if holder := holderOf(t, db, name); holder != "b" {
				t.Errorf("held by %q after the old leader's connection healed", holder)
			}
			b.stop()
			mustComeNext(t, history, "b stopped")
		})
	}
}

func TestDeadlineOfAStandbyOnADeadConnectionLetsItTakeOverOnceItHeals(t *testing.T) {
	db, config := newTables(t)
	account := newAccount(t, config, ordinary...)
	p := newProxy(t, account.Addr)
	history := make(chan string, 100)
	leader := newLock(t, db, "e", "a")
	mustSucceed(t, "Create", create(t.Context(), leader, recordFor("a", 60)))

	pool := open(t, p.config(account))
	p.blackHole()
	b := start(t, newLock(t, pool, "e", "b", mysqllock.WithOperationTimeout(400*time.Millisecond)), cadence{4 * time.Second, 2 * time.Second, 300 * time.Millisecond}, releasing, telling(history))
	// It doesn't hang: it has given a connection up and tries another one.
	for _, connections := range []int{1, 0, 1} {
		eventually(t, 20*time.Second, "the standby tries again", func() bool { return pool.Stats().InUse == connections })
	}
	mustSucceed(t, "release", update(t.Context(), leader, recordFor("", 1)))
	p.forward()
	mustComeNext(t, history, "b leads")
	b.stop()
	mustComeNext(t, history, "b stopped")
}

func mustComeNext(t testing.TB, history <-chan string, want string) {
	t.Helper()
	select {
	case got := <-history:
		if got != want {
			t.Fatalf("%s, but next should be: %s", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("not within 30s: %s", want)
	}
}
