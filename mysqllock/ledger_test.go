package mysqllock_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// seeded is a source of random numbers whose seed is in the test's log.
// MYSQLLOCK_TEST_SEED sets it: the same faults are tried again, though not to
// the microsecond.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("MYSQLLOCK_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MYSQLLOCK_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// gate stops whoever passes while it is shut: so a process stands still when
// it is paused, its timers included.
type gate struct {
	mu      sync.Mutex
	shut    chan struct{} // closed when the gate opens; nil while it is open
	waiting int
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut == nil {
		g.shut = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut != nil {
		close(g.shut)
		g.shut = nil
	}
}

func (g *gate) pass() {
	g.mu.Lock()
	shut := g.shut
	if shut == nil {
		g.mu.Unlock()
		return
	}
	g.waiting++
	g.mu.Unlock()
	<-shut
	g.mu.Lock()
	g.waiting--
	g.mu.Unlock()
}

func (g *gate) stopped() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting
}

// stage is what the candidates of one ledger test have in common.
type stage struct {
	cadence  cadence
	mu       sync.Mutex
	begun    []begunTerm
	attempts map[attemptKey]*attempt
	// plain are the unfenced attempts.
	plain map[attemptKey]*attempt
	// unseen are the last times at which committed entries were not there yet.
	unseen map[attemptKey]time.Time
}

// begunTerm is a takeover and when it was known to be done: it was committed
// earlier than that.
type begunTerm struct {
	token int64
	who   *ledgerCandidate
	known time.Time
}

// attemptKey is what the ledger says of an entry.
type attemptKey struct {
	writer string
	number int64
}

// attempt is one transaction: with that token, and sent not before that time,
// so that it was committed later.
type attempt struct {
	token int64
	sent  time.Time
	err   error
	ended bool
}

// note begins an attempt.
func (s *stage) note(attempts map[attemptKey]*attempt, key attemptKey, token int64) *attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &attempt{token: token}
	attempts[key] = a
	return a
}

// took notes that a candidate holds a term now.
func (s *stage) took(who *ledgerCandidate, token int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.begun {
		if b.token == token {
			return
		}
	}
	s.begun = append(s.begun, begunTerm{token, who, time.Now()})
}

// newest is the last takeover that is known.
func (s *stage) newest() (newest begunTerm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.begun {
		if b.token > newest.token {
			newest = b
		}
	}
	return newest
}

// watch looks for new entries until ctx ends. What a look that began at some
// moment doesn't find was committed after that moment.
func (s *stage) watch(ctx context.Context, db *sql.DB) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	seen, looked := map[string]int64{}, map[string]time.Time{}
	for {
		for _, ledger := range []string{"fenced", "unfenced"} {
			began := time.Now()
			found, err := entriesAfter(ctx, db, ledger, seen[ledger])
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			s.mu.Lock()
			for _, e := range found {
				s.unseen[e.attemptKey], seen[ledger] = looked[ledger], e.n
			}
			s.mu.Unlock()
			looked[ledger] = began
		}
		<-tick.C
	}
}

// count counts ended attempts.
func (s *stage) count(attempts map[attemptKey]*attempt, which func(attemptKey, *attempt) bool) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, a := range attempts {
		if a.ended && which(key, a) {
			n++
		}
	}
	return n
}

// contender is one machine. On it runs, most of the time, a process: an
// elector, and while that leads, two writers.
type ledgerCandidate struct {
	stage    *stage
	name     string
	network  *proxy
	electing gate // the elector's goroutine passes it around each call
	working  gate // the writers pass it between their check and their write
	// atCommit cuts the machine off when the next COMMIT comes along; atGuard
	// delays the reply to the next guard.
	atCommit, atGuard atomic.Bool
	runs              int
	process           *writingProcess // nil: it was killed
}

// writingProcess is one run of a contender.
type writingProcess struct {
	*mysqllock.Lock
	on     *ledgerCandidate
	writer string // this run's name in the ledger
	pools  []*sql.DB
	ctx    context.Context
	cancel context.CancelFunc
	ending sync.WaitGroup
	number atomic.Int64
}

// noteTerm tells the stage what the last operation may have begun.
func (p *writingProcess) noteTerm(err error) error {
	if token, held := p.FencingToken(); err == nil && held {
		p.on.stage.took(p.on, token)
	}
	p.on.electing.pass()
	return err
}

func (p *writingProcess) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	p.on.electing.pass()
	record, raw, err := p.Lock.Get(ctx)
	p.on.electing.pass()
	return record, raw, err
}

func (p *writingProcess) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	p.on.electing.pass()
	return p.noteTerm(p.Lock.Create(ctx, record))
}

func (p *writingProcess) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	p.on.electing.pass()
	return p.noteTerm(p.Lock.Update(ctx, record))
}

// start starts the machine's process.
func (c *ledgerCandidate) start(t testing.TB, lockPool, workPool *sql.DB) {
	t.Helper()
	c.runs++
	p := &writingProcess{
		Lock:   newLock(t, lockPool, "e", c.name, c.stage.cadence.option()),
		on:     c,
		writer: fmt.Sprintf("%s/%d", c.name, c.runs),
		pools:  []*sql.DB{lockPool, workPool},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	c.process = p
	for _, f := range []func(){
		func() { p.campaign(t) },
		func() { p.write(p.fenced(workPool)) },
		func() { p.write(p.unfenced(workPool)) },
	} {
		p.ending.Add(1)
		go func() {
			defer p.ending.Done()
			f()
		}()
	}
}

// kill ends the process as SIGKILL and a lost machine do: nothing is released,
// connections just end.
func (c *ledgerCandidate) kill() {
	if c.process == nil {
		return
	}
	c.process.cancel()
	c.network.cut()
	c.electing.open()
	c.working.open()
	c.process.ending.Wait()
	for _, pool := range c.process.pools {
		_ = pool.Close()
	}
	c.process = nil
}

// campaign runs electors until the process ends.
func (p *writingProcess) campaign(t testing.TB) {
	for p.ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock:          p,
			LeaseDuration: p.on.stage.cadence.lease,
			RenewDeadline: p.on.stage.cadence.renewDeadline,
			RetryPeriod:   p.on.stage.cadence.retry,
			Callbacks:     leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) {}, OnStoppedLeading: func() {}},
		})
		if err != nil {
			t.Error(err)
			return
		}
		elector.Run(p.ctx)
	}
}

// write writes as long as the process leads, or believes that it does.
func (p *writingProcess) write(once func(token int64)) {
	pace := time.NewTicker(10 * time.Millisecond) // more entries would prove no more
	defer pace.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-pace.C:
		}
		if token, held := p.FencingToken(); held {
			once(token)
		}
	}
}

var errOtherTerm = errors.New("another term")

// fenced returns the writer that uses Transact.
func (p *writingProcess) fenced(work *sql.DB) func(int64) {
	return func(token int64) {
		s, key := p.on.stage, attemptKey{p.writer, p.number.Add(1)}
		a := s.note(s.attempts, key, token)
		ctx, cancel := context.WithTimeout(p.ctx, 5*s.cadence.lease)
		defer cancel()
		err := p.Transact(ctx, work, nil, func(ctx context.Context, tx *sql.Tx) error {
			if now, _ := p.FencingToken(); now != token {
				return errOtherTerm // the entry would have an earlier token than its transaction
			}
			p.on.working.pass()
			s.mu.Lock()
			a.sent = time.Now()
			s.mu.Unlock()
			return appendEntry(ctx, tx, "fenced", key, token)
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		a.err, a.ended = err, true
	}
}

// unfenced returns the writer of the control: it looks whether it leads, and
// then writes.
func (p *writingProcess) unfenced(work *sql.DB) func(int64) {
	return func(token int64) {
		s, key := p.on.stage, attemptKey{p.writer, p.number.Add(1)}
		a := s.note(s.plain, key, token)
		ctx, cancel := context.WithTimeout(p.ctx, 5*s.cadence.lease)
		defer cancel()
		p.on.working.pass()
		s.mu.Lock()
		a.sent = time.Now()
		s.mu.Unlock()
		err := func() error {
			tx, err := work.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }()
			if err := appendEntry(ctx, tx, "unfenced", key, token); err != nil {
				return err
			}
			return tx.Commit()
		}()
		s.mu.Lock()
		defer s.mu.Unlock()
		a.err, a.ended = err, true
	}
}

// appendEntry writes one entry. The counter's row is locked until the commit,
// so that the entries' order is that of their commits; an AUTO_INCREMENT's is
// that of their INSERTs. It comes last, so that a transaction which is held up
// before doesn't hold up the others.
func appendEntry(ctx context.Context, tx *sql.Tx, ledger string, key attemptKey, token int64) error {
	if _, err := tx.ExecContext(ctx, `UPDATE counters SET n = LAST_INSERT_ID(n + 1) WHERE ledger = ?`, ledger); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO entries (ledger, n, writer, number, token) VALUES (?, LAST_INSERT_ID(), ?, ?, ?)`, ledger, key.writer, key.number, token)
	return err
}

// entry is one that was committed.
type entry struct {
	attemptKey
	n, token int64
}

// entriesAfter are a ledger's entries with a larger number.
func entriesAfter(ctx context.Context, db *sql.DB, ledger string, n int64) ([]entry, error) {
	rows, err := db.QueryContext(ctx, `SELECT n, writer, number, token FROM entries WHERE ledger = ? AND n > ? ORDER BY n`, ledger, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var found []entry
	for rows.Next() {
		var e entry
		if err := rows.Scan(&e.n, &e.writer, &e.number, &e.token); err != nil {
			return nil, err
		}
		found = append(found, e)
	}
	return found, rows.Err()
}

// staleEntries are those that a leader committed when its successor was known
// already, or that come after an entry of a later term.
func (s *stage) staleEntries(all []entry, attempts map[attemptKey]*attempt) (stale []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var largest int64
	for _, e := range all {
		if e.token < largest {
			stale = append(stale, fmt.Sprintf("entry %d of %s has token %d, an entry before it has %d", e.n, e.writer, e.token, largest))
			continue
		}
		largest = e.token
		committedAfter := s.unseen[e.attemptKey]
		if a := attempts[e.attemptKey]; a.sent.After(committedAfter) {
			committedAfter = a.sent
		}
		for _, b := range s.begun {
			if b.token > e.token && b.known.Before(committedAfter) {
				stale = append(stale, fmt.Sprintf("entry %d of %s has token %d, committed at least %v after it was known that %s took over with %d",
					e.n, e.writer, e.token, committedAfter.Sub(b.known), b.who.name, b.token))
				break
			}
		}
	}
	return stale
}

// The promise of Transact: whatever happens to five candidates and to their
// connections, what a leader commits comes before everything of its successors.
// The same work without the fence shows that the faults are such that it matters.
func TestALedgerHasNoEntryOfAStaleLeaderWhateverHappensToTheCandidates(t *testing.T) {
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
	var contenders []*ledgerCandidate
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
		contenders = append(contenders, c)
		start(c)
	}
	t.Cleanup(func() {
		for _, c := range contenders {
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
	// outlive pauses the leader between its check and its write until another
	// leads. When it goes on its work is faster than its elector, which is no
	// more than the scheduler's choice.
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
		// Time has to pass: most of the lease, and then more than what is left
		// of it, but less than the lease after which the server drops a session
		// that has guarded and says no more.
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
		victim := contenders[random.IntN(len(contenders))]
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
	for _, c := range contenders {
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
