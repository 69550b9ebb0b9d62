package mysqllock_test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// busyMachine is how much later than its deadline a call may return on a machine that is busy with
// other things. A call without a deadline never returns.
const busyMachine = 3 * time.Second

// timeoutText is what a person reads after a timeout. Only a write can have been done all the same.
var timeoutText = regexp.MustCompile(`^mysqllock: (get "[^"]+": (context deadline exceeded|dial: i/o timeout); |` +
	`(create|update) "[^"]+": (context deadline exceeded|dial: i/o timeout); (the outcome is unknown; )?)the pool has \d+ connections open \(limit \d+, 0 is none\), \d+ in use, and was waited for \d+ times$`)

// mustTimeOut makes a call that must give up after d.
func mustTimeOut(t testing.TB, what string, d time.Duration, call func() error) {
	t.Helper()
	start := time.Now()
	err := call()
	took := time.Since(start)
	if took < d*9/10 || took > d+busyMachine {
		t.Errorf("%s took %v, want %v", what, took, d)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s: error %v, want context.DeadlineExceeded", what, err)
	} else if !timeoutText.MatchString(err.Error()) {
		t.Errorf("%s: error %q, want one that matches %s", what, err, timeoutText)
	}
	if apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		t.Errorf("%s: error %v, which the elector takes for the election's state", what, err)
	}
}

func TestDeadlineIsOutlivedByNoCallToAServerThatNeverAnswers(t *testing.T) {
	config := mysql.NewConfig()
	config.User, config.Passwd, config.Net, config.Addr, config.DBName = "u", "p", "tcp", newBlackHole(t), "d"
	config.Logger = &mysql.NopLogger{}
	var all calls
	for name, pool := range pools {
		db := pool(t, config)
		for _, test := range []struct {
			name    string
			options []mysqllock.Option
			ctx     time.Duration // of the context given, 0 if it has no deadline
			want    time.Duration
		}{
			{name: "by default", want: 1500 * time.Millisecond},
			{name: "with WithOperationTimeout", options: []mysqllock.Option{mysqllock.WithOperationTimeout(300 * time.Millisecond)}, want: 300 * time.Millisecond},
			{name: "with a context that ends later", ctx: time.Minute, want: 1500 * time.Millisecond},
			{name: "with a context that ends sooner", ctx: 200 * time.Millisecond, want: 200 * time.Millisecond},
		} {
			for _, op := range []string{"Get", "Create"} {
				lock := newLock(t, db, "e", "a", test.options...)
				all.start(func() {
					ctx := context.Background()
					if test.ctx > 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, test.ctx)
						defer cancel()
					}
					call := get(ctx, lock)
					if op == "Create" {
						call = create(ctx, lock, recordFor("a", 60))
					}
					mustTimeOut(t, name+", "+op+" "+test.name, test.want, call)
				})
			}
		}
		db.SetMaxOpenConns(100) // or they would wait for each other
	}
	all.Wait()
}

func TestDeadlineOfACancelledCallIsAtOnceAndItSaysSo(t *testing.T) {
	config := mysql.NewConfig()
	config.Net, config.Addr = "tcp", newBlackHole(t)
	db := open(t, config)
	lock := newLock(t, db, "e", "a", mysqllock.WithOperationTimeout(time.Minute))
	ctx, cancel := context.WithCancel(t.Context())
	returned := make(chan error, 1)
	go func() { returned <- get(ctx, lock)() }()
	eventually(t, 10*time.Second, "Get waits for the server", func() bool { return db.Stats().InUse > 0 })
	cancel()
	select {
	case err := <-returned:
		want := regexp.MustCompile(`^mysqllock: get "e": (context canceled|dial: operation was canceled)$`)
		if !errors.Is(err, context.Canceled) || !want.MatchString(err.Error()) {
			t.Errorf("error %v, want %s", err, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Get goes on")
	}
}

// The second call waits for the first one's turn, not for a connection.
func TestDeadlineOfACallThatWaitsForAnotherOneIsItsOwn(t *testing.T) {
	config := mysql.NewConfig()
	config.Net, config.Addr = "tcp", newBlackHole(t)
	db := open(t, config)
	lock := newLock(t, db, "e", "a", mysqllock.WithOperationTimeout(time.Minute))
	ctx, cancel := context.WithCancel(t.Context())
	var first calls
	first.start(func() { _ = get(ctx, lock)() })
	eventually(t, 10*time.Second, "the first call waits for the server", func() bool { return db.Stats().InUse > 0 })
	var others calls
	for range 5 {
		others.start(func() {
			hurried, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			mustTimeOut(t, "Get", 300*time.Millisecond, get(hurried, lock))
		})
	}
	others.Wait()
	cancel()
	first.Wait()
}

func TestDeadlineErrorNamesAPoolThatIsInUseElsewhere(t *testing.T) {
	db, config := newTables(t)
	full := open(t, config)
	full.SetMaxOpenConns(1)
	conn, err := full.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lock := newLock(t, full, "e", "a", mysqllock.WithOperationTimeout(200*time.Millisecond))
	err = get(context.Background(), lock)()
	want := `mysqllock: get "e": context deadline exceeded; the pool has 1 connections open (limit 1, 0 is none), 1 in use, and was waited for 1 times`
	if !errors.Is(err, context.DeadlineExceeded) || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	mustSucceed(t, "giving the connection back", conn.Close)
	mustSucceed(t, "Create afterwards", create(t.Context(), newLock(t, full, "e", "a"), record("a")))
	if holder := holderOf(t, db, "e"); holder != "a" {
		t.Errorf("held by %q", holder)
	}
}

// Each kind of call, on a connection that was good until then.
func TestDeadlineEndsACallOnADeadConnectionAndTheNextOneSucceedsOnceItHeals(t *testing.T) {
	db, config := newTables(t)
	account := newAccount(t, config, ordinary...)
	const d = 250 * time.Millisecond
	for poolName, pool := range pools {
		for mode, break_ := range map[string]func(*proxy){"black hole": (*proxy).blackHole, "replies lost": (*proxy).swallowReplies} {
			for _, test := range []struct {
				name   string
				call   func(*mysqllock.Lock) func() error
				effect bool // changes the row, once it reaches the server
			}{
				{"Get", func(l *mysqllock.Lock) func() error { return get(context.Background(), l) }, false},
				{"Create", func(l *mysqllock.Lock) func() error { return create(context.Background(), l, record("a")) }, false},
				{"Update", func(l *mysqllock.Lock) func() error { return update(context.Background(), l, record("a")) }, true},
				{"release", func(l *mysqllock.Lock) func() error { return update(context.Background(), l, recordFor("", 1)) }, true},
			} {
				election := poolName + ", " + mode + ", " + test.name
				t.Run(election, func(t *testing.T) {
					t.Parallel()
					p := newProxy(t, account.Addr)
					pool := pool(t, p.config(account))
					lock := newLock(t, pool, election, "a", mysqllock.WithOperationTimeout(d))
					patient := newLock(t, pool, election, "b", mysqllock.WithOperationTimeout(10*time.Second))
					mustSucceed(t, "Create through the proxy", func() error {
						return create(t.Context(), newLock(t, db, election, "seed"), recordFor("seed", 1))()
					})
					// The elector's own way to the lease.
					eventually(t, 20*time.Second, "a leads", func() bool {
						return get(t.Context(), lock)() == nil && update(t.Context(), lock, record("a"))() == nil
					})
					mustSucceed(t, "a first renewal, which is prepared", update(t.Context(), lock, record("a")))
					version := versionOf(t, db, election)

					break_(p)
					mustTimeOut(t, test.name, d, test.call(lock))
					p.forward()

					if test.effect && poolName == "Open" { // a statement that is one packet
						eventually(t, 20*time.Second, "the server applies the abandoned statement", func() bool {
							return versionOf(t, db, election) != version
						})
					}
					mustSucceed(t, "the next call", get(t.Context(), patient))
					eventually(t, 20*time.Second, "a leads again", func() bool {
						return get(t.Context(), lock)() == nil && update(t.Context(), lock, record("a"))() == nil
					})
					if holder := holderOf(t, db, election); holder != "a" {
						t.Errorf("held by %q", holder)
					}
				})
			}
		}
	}
}

// A reply after the deadline would extend the leader's trust in a lease beyond the lease. It is as
// good as none: an error, and nothing to build upon.
func TestDeadlineMakesALaterReplyCountAsLostEvenIfItSaysOK(t *testing.T) {
	db, config := newTables(t)
	const d = 300 * time.Millisecond
	newcomers := func(t *testing.T) (*mysqllock.Lock, *heedless, string) {
		pool, h := openHeedless(t, config)
		return newLock(t, pool, t.Name(), "a", mysqllock.WithOperationTimeout(d)), h, t.Name()
	}
	// inTime makes calls until one is not late by accident.
	inTime := func(t *testing.T, what string, call func() error) error {
		t.Helper()
		var err error
		eventually(t, 20*time.Second, what, func() bool {
			err = call()
			return !errors.Is(err, context.DeadlineExceeded)
		})
		return err
	}
	leading := func(t *testing.T) (*mysqllock.Lock, *heedless, string) {
		lock, h, election := newcomers(t)
		mustSucceed(t, "Create", create(t.Context(), newLock(t, db, election, "seed"), recordFor("seed", 1)))
		eventually(t, 20*time.Second, "a leads", func() bool {
			return get(t.Context(), lock)() == nil && update(t.Context(), lock, record("a"))() == nil
		})
		return lock, h, election
	}
	late := func(t *testing.T, h *heedless, what, statement string, call func() error) {
		t.Helper()
		h.late.Store(statement)
		mustTimeOut(t, what, d, call)
		h.late.Store("nothing")
	}
	mustBeHeldByItself := func(t *testing.T, lock *mysqllock.Lock) {
		t.Helper()
		var holder string
		mustSucceed(t, "Get", func() error {
			return inTime(t, "Get", func() error {
				r, _, err := lock.Get(t.Context())
				if err == nil {
					holder = r.HolderIdentity
				}
				return err
			})
		})
		if holder != "a" {
			t.Errorf("Get: held by %q, want a, whose write was applied", holder)
		}
	}

	t.Run("renewal", func(t *testing.T) {
		t.Parallel()
		lock, h, election := leading(t)
		token, version := tokenOf(t, db, election), versionOf(t, db, election)
		late(t, h, "Update", "UPDATE", update(context.Background(), lock, record("a")))
		if versionOf(t, db, election) == version {
			t.Fatal("the renewal was not applied, so that its reply was none that says OK")
		}
		if err := inTime(t, "Update", update(t.Context(), lock, record("a"))); !apierrors.IsConflict(err) {
			t.Errorf("the next renewal: %v, want a conflict, as the lock can't know of the late one", err)
		}
		mustBeHeldByItself(t, lock)
		mustSucceed(t, "Update", func() error { return inTime(t, "Update", update(t.Context(), lock, record("a"))) })
		if now := tokenOf(t, db, election); now != token {
			t.Errorf("the term with token %d became one with token %d", token, now)
		}
	})
	t.Run("takeover", func(t *testing.T) {
		t.Parallel()
		lock, h, election := newcomers(t)
		mustSucceed(t, "Create", create(t.Context(), newLock(t, db, election, "seed"), recordFor("seed", 1)))
		mustSucceed(t, "Get", func() error { return inTime(t, "Get", get(t.Context(), lock)) })
		late(t, h, "Update", "UPDATE", update(context.Background(), lock, record("a")))
		if holder := holderOf(t, db, election); holder != "a" {
			t.Fatalf("held by %q: the takeover was not applied, so that its reply was none that says OK", holder)
		}
		if _, held := lock.FencingToken(); held {
			t.Error("a fencing token is held after a takeover that failed")
		}
		token := tokenOf(t, db, election)
		mustBeHeldByItself(t, lock)
		if _, held := lock.FencingToken(); held {
			t.Error("Get made a term of a takeover whose reply was lost")
		}
		mustSucceed(t, "Update", func() error { return inTime(t, "Update", update(t.Context(), lock, record("a"))) })
		if now, held := lock.FencingToken(); !held || now <= token || now != tokenOf(t, db, election) {
			t.Errorf("fencing token %d, %v; want a further term's, larger than %d", now, held, token)
		}
	})
	for _, statement := range []string{"INSERT", "UPDATE"} {
		t.Run("creation, late "+statement, func(t *testing.T) {
			t.Parallel()
			lock, h, _ := newcomers(t)
			late(t, h, "Create", statement, create(context.Background(), lock, record("a")))
			if _, held := lock.FencingToken(); held {
				t.Error("a fencing token is held after a creation that failed")
			}
			if err := inTime(t, "Update", update(t.Context(), lock, record("a"))); err == nil || !strings.Contains(err.Error(), "no row was observed yet") {
				t.Errorf("Update after it: %v, want a refusal, as no row was observed", err)
			}
			if err := inTime(t, "Create", create(t.Context(), lock, record("a"))); !apierrors.IsAlreadyExists(err) {
				t.Errorf("the next creation: %v, want AlreadyExists", err)
			}
			mustSucceed(t, "Get", func() error { return inTime(t, "Get", get(t.Context(), lock)) })
			mustSucceed(t, "Update", func() error { return inTime(t, "Update", update(t.Context(), lock, record("a"))) })
			mustBeHeldByItself(t, lock)
		})
	}
	t.Run("release", func(t *testing.T) {
		t.Parallel()
		lock, h, election := leading(t)
		late(t, h, "Update", "UPDATE", update(context.Background(), lock, recordFor("", 1)))
		if holder := holderOf(t, db, election); holder != "" {
			t.Fatalf("held by %q: the release was not applied, so that its reply was none that says OK", holder)
		}
		if _, held := lock.FencingToken(); held {
			t.Error("a fencing token is held after a release")
		}
		if err := inTime(t, "Update", update(t.Context(), lock, record("a"))); !apierrors.IsConflict(err) {
			t.Errorf("a renewal after it: %v, want a conflict", err)
		}
		mustSucceed(t, "another candidate", func() error {
			other := newLock(t, db, election, "b")
			return errors.Join(get(t.Context(), other)(), update(t.Context(), other, record("b"))())
		})
		if err := inTime(t, "Update", update(t.Context(), lock, recordFor("", 1))); err == nil || apierrors.IsConflict(err) {
			t.Errorf("a second release: %v, want an error that is no conflict", err)
		}
		if holder := holderOf(t, db, election); holder != "b" {
			t.Errorf("held by %q after the second release, want b", holder)
		}
	})
	t.Run("poll", func(t *testing.T) {
		t.Parallel()
		lock, h, election := newcomers(t)
		mustSucceed(t, "Create", create(t.Context(), newLock(t, db, election, "seed"), recordFor("seed", 1)))
		late(t, h, "Get", "SELECT", get(context.Background(), lock))
		if err := inTime(t, "Update", update(t.Context(), lock, record("a"))); err == nil || !strings.Contains(err.Error(), "no row was observed yet") {
			t.Errorf("Update after it: %v, want a refusal, as no row was observed", err)
		}
	})
	t.Run("all, by the network", func(t *testing.T) {
		t.Parallel()
		p := newProxy(t, config.Addr)
		lock := newLock(t, open(t, p.config(config)), t.Name(), "a", mysqllock.WithOperationTimeout(d))
		eventually(t, 20*time.Second, "a leads", func() bool {
			if err := get(t.Context(), lock)(); apierrors.IsNotFound(err) {
				return lock.Create(t.Context(), record("a")) == nil
			} else if err != nil {
				return false
			}
			return lock.Update(t.Context(), record("a")) == nil
		})
		mustSucceed(t, "a first renewal, which is prepared", update(t.Context(), lock, record("a")))
		version := versionOf(t, db, t.Name())
		p.delayReplies(2 * d)
		mustTimeOut(t, "Update", d, update(context.Background(), lock, record("a")))
		if versionOf(t, db, t.Name()) == version {
			t.Error("the renewal was not applied, so that its reply was none that says OK")
		}
		mustTimeOut(t, "Get", d, get(context.Background(), lock))
		p.forward()
		mustBeHeldByItself(t, lock)
		mustSucceed(t, "Update", func() error { return inTime(t, "Update", update(t.Context(), lock, record("a"))) })
	})
}

// What a call may take when nobody said it by WithOperationTimeout. Each case measures one call to
// a black hole.
func TestDeadlineByDefaultIsATenthOfTheLease(t *testing.T) {
	db, config := newTables(t)
	ctx := context.Background()
	var all calls
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, lock, other *mysqllock.Lock)
		call    func(*mysqllock.Lock) func() error // default: Get
		options []mysqllock.Option
		want    time.Duration
	}{{
		name:    "no lease known yet",
		prepare: func(*testing.T, *mysqllock.Lock, *mysqllock.Lock) {},
		want:    1500 * time.Millisecond,
	}, {
		name: "of the own last record",
		prepare: func(t *testing.T, lock, _ *mysqllock.Lock) {
			mustSucceed(t, "Create", create(ctx, lock, recordFor("a", 4)))
		},
		want: 400 * time.Millisecond,
	}, {
		name: "of the record that is being written",
		prepare: func(t *testing.T, lock, _ *mysqllock.Lock) {
			mustSucceed(t, "Create", create(ctx, lock, recordFor("a", 60)))
		},
		call: func(lock *mysqllock.Lock) func() error { return update(ctx, lock, recordFor("a", 4)) },
		want: 400 * time.Millisecond,
	}, {
		name: "at most that of client-go's defaults",
		prepare: func(t *testing.T, lock, _ *mysqllock.Lock) {
			mustSucceed(t, "Create", create(ctx, lock, recordFor("a", 600)))
		},
		want: 1500 * time.Millisecond,
	}, {
		name: "of the observed row, before anything was written",
		prepare: func(t *testing.T, lock, other *mysqllock.Lock) {
			mustSucceed(t, "Create", create(ctx, other, recordFor("b", 4)))
			mustSucceed(t, "Get", get(ctx, lock))
		},
		want: 400 * time.Millisecond,
	}, {
		name: "of the own record rather than the observed row",
		prepare: func(t *testing.T, lock, other *mysqllock.Lock) {
			mustSucceed(t, "Create", create(ctx, lock, recordFor("a", 4)))
			mustSucceed(t, "Get", get(ctx, other))
			mustSucceed(t, "Update", update(ctx, other, recordFor("b", 60)))
			mustSucceed(t, "Get", get(ctx, lock))
		},
		want: 400 * time.Millisecond,
	}, {
		// client-go's release record has a lease of one second.
		name: "of the own last lease, in a release",
		prepare: func(t *testing.T, lock, _ *mysqllock.Lock) {
			mustSucceed(t, "Create", create(ctx, lock, recordFor("a", 8)))
		},
		call: func(lock *mysqllock.Lock) func() error { return update(ctx, lock, recordFor("", 1)) },
		want: 800 * time.Millisecond,
	}, {
		name: "of the own last lease, after a release",
		prepare: func(t *testing.T, lock, _ *mysqllock.Lock) {
			mustSucceed(t, "Create", create(ctx, lock, recordFor("a", 8)))
			mustSucceed(t, "release", update(ctx, lock, recordFor("", 1)))
			mustSucceed(t, "Get", get(ctx, lock))
		},
		want: 800 * time.Millisecond,
	}, {
		name: "not of somebody else's release",
		prepare: func(t *testing.T, lock, other *mysqllock.Lock) {
			mustSucceed(t, "Create", create(ctx, other, recordFor("b", 8)))
			mustSucceed(t, "Get", get(ctx, lock))
			mustSucceed(t, "release", update(ctx, other, recordFor("", 1)))
			mustSucceed(t, "Get", get(ctx, lock))
		},
		want: 1500 * time.Millisecond,
	}, {
		name: "not if WithOperationTimeout says otherwise",
		prepare: func(t *testing.T, lock, _ *mysqllock.Lock) {
			mustSucceed(t, "Create", create(ctx, lock, recordFor("a", 2)))
		},
		options: []mysqllock.Option{mysqllock.WithOperationTimeout(2 * time.Second)},
		want:    2 * time.Second,
	}} {
		p := newProxy(t, config.Addr)
		lock := newLock(t, open(t, p.config(config)), test.name, "a", test.options...)
		test.prepare(t, lock, newLock(t, db, test.name, "b"))
		p.blackHole()
		call := get(ctx, lock)
		if test.call != nil {
			call = test.call(lock)
		}
		all.start(func() {
			// On a busy machine one measurement may be too long, hardly five.
			var took time.Duration
			for range 5 {
				start := time.Now()
				err := call()
				took = time.Since(start)
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: error %v, want a timeout", test.name, err)
					return
				}
				if took < test.want+600*time.Millisecond {
					break
				}
			}
			if took < test.want*9/10 || took > test.want+600*time.Millisecond {
				t.Errorf("%s: the call took %v, want %v", test.name, took, test.want)
			}
		})
	}
	all.Wait()
}

// The deadline of an operation is the lock's own where the context has none.
func TestDeadlineEndsAnOperationOnAHeldRow(t *testing.T) {
	const brief = 300 * time.Millisecond
	s := newLateServer(t)
	lock := newLock(t, s.pool, s.election, "a", mysqllock.WithOperationTimeout(brief))
	creator := s.lock("b")
	if err := creator.Create(t.Context(), record("b")); err != nil {
		t.Fatal(err)
	}
	s.get(creator)
	if err := creator.Update(t.Context(), record("")); err != nil {
		t.Fatal(err)
	}
	letGo := s.hold("election_records")
	// A slow machine may need more than one Get within the deadline.
	eventually(t, patience, "a Get", func() bool {
		_, _, err := lock.Get(t.Context())
		return err == nil
	})
	started := time.Now()
	err := lock.Update(t.Context(), record("a"))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Update on a held row: %v", err)
	}
	if took := time.Since(started); took < brief || took > patience {
		t.Errorf("Update on a held row took %v, its deadline is %v", took, brief)
	}
	s.settle(letGo)
}
