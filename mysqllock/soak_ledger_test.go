package mysqllock_test

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// The promise of Transact: whatever happens to five candidates and to their connections, what a
// leader commits comes before everything of its successors. The same work without the fence shows
// that the faults are such that it matters.
func TestLedgerHasNoEntryOfAStaleLeaderWhateverHappensToTheCandidates(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	exec(t, db, `CREATE TABLE counters (ledger VARCHAR(10) PRIMARY KEY, n BIGINT NOT NULL) ENGINE=InnoDB`)
	exec(t, db, `INSERT INTO counters VALUES ('fenced', 0), ('unfenced', 0)`)
	exec(t, db, `CREATE TABLE entries (ledger VARCHAR(10), n BIGINT, writer VARCHAR(20) NOT NULL, number BIGINT NOT NULL, token BIGINT NOT NULL,
		PRIMARY KEY (ledger, n), UNIQUE KEY (writer, number)) ENGINE=InnoDB`)
	random := seeded(t)
	s := &stage{
		cadence:  cadence{time.Second, 600 * time.Millisecond, 100 * time.Millisecond},
		attempts: map[attemptKey]*attempt{},
		plain:    map[attemptKey]*attempt{},
		unseen:   map[attemptKey]time.Time{},
	}
	var candidates []*ledgerCandidate
	var commits, guards atomic.Int64 // that networks saw
	start := func(c *ledgerCandidate) {
		through := c.network.config(config)
		// A writer that waits for the counter of one that is cut off gives up.
		work := through.Clone()
		work.Params = map[string]string{"innodb_lock_wait_timeout": "1"}
		c.start(t, open(t, through), open(t, work))
	}
	for i := range 5 {
		c := &ledgerCandidate{stage: s, name: string(rune('a' + i)), network: newProxy(t, config.Addr)}
		c.network.onRequest = func(request []byte) {
			if bytes.Contains(request, []byte("COMMIT")) {
				commits.Add(1)
				if c.atCommit.CompareAndSwap(true, false) {
					c.network.blackHole()
				}
			}
			if bytes.Contains(request, []byte("LOCK IN SHARE MODE")) {
				guards.Add(1)
				if c.atGuard.CompareAndSwap(true, false) {
					c.network.swallowReplies()
				}
			}
		}
		candidates = append(candidates, c)
		start(c)
	}
	t.Cleanup(func() {
		for _, c := range candidates {
			c.kill()
		}
	})

	// faults are those under way, and how each ends.
	type fault struct {
		until time.Time
		end   func()
	}
	faults := map[*ledgerCandidate]fault{}
	heal := func(now time.Time) {
		for c, f := range faults {
			if now.After(f.until) {
				f.end()
				delete(faults, c)
			}
		}
	}
	kinds := map[string]int{}
	disturb := func(c *ledgerCandidate) {
		kind := []string{"paused", "paused and cut off", "killed", "cut off", "replies swallowed", "cut off at COMMIT", "connections cut"}[random.IntN(7)]
		kinds[kind]++
		end := func() {
			c.atCommit.Store(false)
			if random.IntN(3) == 0 {
				c.network.cut() // what was held back is lost, not late
			}
			c.network.forward()
			c.electing.open()
			c.working.open()
		}
		switch kind {
		case "paused":
			c.electing.close()
			c.working.close()
		case "paused and cut off":
			c.electing.close()
			c.working.close()
			c.network.blackHole()
		case "killed":
			c.kill()
			end = func() { start(c) }
		case "cut off":
			c.network.blackHole()
		case "replies swallowed":
			c.network.swallowReplies()
		case "cut off at COMMIT":
			c.atCommit.Store(true)
		case "connections cut":
			c.network.cut()
		}
		// From less than a renewal to more than two leases.
		faults[c] = fault{time.Now().Add(100*time.Millisecond + time.Duration(random.Int64N(int64(2200*time.Millisecond)))), end}
	}
	// outlive pauses the leader between its check and its write until another leads. When it goes
	// on its work is faster than its elector, which is no more than the scheduler's choice.
	outlive := func() {
		heal(time.Now().Add(time.Hour))
		var stale *ledgerCandidate
		var token int64
		resume := func() {
			if stale != nil {
				stale.working.open()
				stale.electing.open()
			}
		}
		defer resume()
		eventually(t, 30*time.Second, "a leader stands between its check and its write", func() bool {
			newest := s.newest()
			if newest.who == nil {
				return false
			}
			if newest.who != stale {
				resume()
				stale = newest.who
				stale.electing.close()
				stale.working.close()
			}
			token, _ = stale.process.FencingToken()
			return token == newest.token && stale.working.stopped() == 2
		})
		eventually(t, 30*time.Second, "a successor leads and writes", func() bool {
			next := s.newest()
			return next.token > token && s.count(s.attempts, func(_ attemptKey, a *attempt) bool { return a.token == next.token && a.err == nil }) > 0
		})
		refused := func(_ attemptKey, a *attempt) bool {
			return a.token == token && errors.Is(a.err, mysqllock.ErrNotLeader)
		}
		written := func(_ attemptKey, a *attempt) bool { return a.token == token && a.err == nil }
		refusedBefore, writtenBefore := s.count(s.attempts, refused), s.count(s.plain, written)
		stale.working.open()
		eventually(t, 30*time.Second, "the stale leader's writers go on", func() bool {
			return s.count(s.attempts, refused) > refusedBefore && s.count(s.plain, written) > writtenBefore
		})
	}
	// straddle lets a lease end between the leader's guard and its COMMIT.
	straddle := func() {
		heal(time.Now().Add(time.Hour))
		var c *ledgerCandidate
		eventually(t, 30*time.Second, "a leader writes", func() bool {
			newest := s.newest()
			c = newest.who
			return c != nil && s.count(s.attempts, func(_ attemptKey, a *attempt) bool { return a.token == newest.token && a.err == nil }) > 0
		})
		token := s.newest().token
		c.electing.close()
		// Time has to pass: most of the lease, and then more than what is left of it, but less than
		// the lease after which the server drops a session that has guarded and says no more.
		most := time.NewTimer(s.cadence.lease * 8 / 10)
		defer most.Stop()
		<-most.C
		c.atGuard.Store(true)
		rest := time.NewTimer(s.cadence.lease * 7 / 10)
		defer rest.Stop()
		look := time.NewTicker(5 * time.Millisecond)
		defer look.Stop()
		for passed := false; !passed && s.newest().token == token; {
			select {
			case <-rest.C:
				passed = true
			case <-look.C:
			}
		}
		t.Logf("taken over between guard and COMMIT: %t", s.newest().token != token)
		c.atGuard.Store(false)
		c.network.forward()
		c.electing.open()
	}

	watching, stopWatching := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- s.watch(watching, db) }()
	defer stopWatching()
	began := time.Now()
	next, deliberate := began.Add(1500*time.Millisecond), 0
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for now := range tick.C {
		if now.Sub(began) > 13*time.Second {
			break
		}
		heal(now)
		if deliberate < 2 && now.Sub(began) > time.Duration(1+5*deliberate)*time.Second {
			outlive()
			straddle()
			deliberate++
		}
		if now.Before(next) {
			continue
		}
		next = now.Add(100*time.Millisecond + time.Duration(random.Int64N(int64(500*time.Millisecond))))
		victim := candidates[random.IntN(len(candidates))]
		if c := s.newest().who; c != nil && random.IntN(10) < 7 {
			victim = c // what happens to followers matters less
		}
		if _, suffers := faults[victim]; !suffers && len(faults) < 3 {
			disturb(victim)
		}
	}
	heal(time.Now().Add(time.Hour))
	healed := time.Now()
	eventually(t, 30*time.Second, "work goes on after the faults", func() bool {
		return s.count(s.attempts, func(_ attemptKey, a *attempt) bool { return a.err == nil && a.sent.After(healed) }) > 0
	})
	for _, c := range candidates {
		c.kill()
	}

	if commits.Load() == 0 || guards.Load() == 0 {
		t.Errorf("%d commits and %d guards were seen, so that none was cut off", commits.Load(), guards.Load())
	}

	stopWatching()
	if err := <-watched; err != nil {
		t.Error(err)
	}
	fenced, err := entriesAfter(t.Context(), db, "fenced", 0)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := entriesAfter(t.Context(), db, "unfenced", 0)
	if err != nil {
		t.Fatal(err)
	}
	committed := map[attemptKey]bool{}
	for i, e := range fenced {
		committed[e.attemptKey] = true
		if e.n != int64(i+1) {
			t.Errorf("entry %d has number %d: not all of a transaction was committed", i+1, e.n)
		}
	}
	var acknowledged, refused, unknown, unknownCommitted, failed int
	for key, a := range s.attempts {
		switch there := committed[key]; {
		case a.err == nil:
			acknowledged++
			if !there {
				t.Errorf("%v was acknowledged and is not there", key)
			}
		case errors.Is(a.err, mysqllock.ErrOutcomeUnknown):
			unknown++
			if there {
				unknownCommitted++
			}
		default:
			failed++
			if errors.Is(a.err, mysqllock.ErrNotLeader) {
				refused++
			}
			if there {
				t.Errorf("%v is there although it failed: %v", key, a.err)
			}
		}
		delete(committed, key)
	}
	for key := range committed {
		t.Errorf("%v is there, but nobody wrote it", key)
	}
	stale := s.staleEntries(plain, s.plain)
	t.Logf("%d terms; faults %v and %d pauses beyond the lease", len(s.begun), kinds, deliberate)
	t.Logf("fenced: %d entries of %d transactions: %d acknowledged, %d failed (%d of them ErrNotLeader), %d of unknown outcome (%d of them committed)",
		len(fenced), len(s.attempts), acknowledged, failed, refused, unknown, unknownCommitted)
	t.Logf("unfenced: %d entries, %d of them stale", len(plain), len(stale))
	for _, line := range s.staleEntries(fenced, s.attempts) {
		t.Error(line)
	}
	if len(stale) < deliberate {
		t.Errorf("only %d stale entries without the fence: these faults are none", len(stale))
	}
	if refused < deliberate {
		t.Errorf("the fence refused %d transactions, want at least %d", refused, deliberate)
	}
}
