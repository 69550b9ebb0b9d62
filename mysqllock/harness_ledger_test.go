package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// newLedger makes a table that leaders write to, and a pool of its own.
func newLedger(t testing.TB, config *mysql.Config) *sql.DB {
	t.Helper()
	return newLedgerIn(t, config, openOwn)
}

// newLedgerIn returns a pool of that kind.
func newLedgerIn(t testing.TB, config *mysql.Config, open openPool) *sql.DB {
	t.Helper()
	work := open(t, config)
	exec(t, work, `CREATE TABLE ledger (id INT AUTO_INCREMENT PRIMARY KEY, entry VARCHAR(60) NOT NULL) ENGINE=InnoDB`)
	return work
}

func insert(ctx context.Context, tx *sql.Tx, entry string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO ledger (entry) VALUES (?)`, entry)
	return err
}

func inserting(entry string) func(context.Context, *sql.Tx) error {
	return func(ctx context.Context, tx *sql.Tx) error { return insert(ctx, tx, entry) }
}

// ledger is all that was committed.
func ledger(t testing.TB, db *sql.DB) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT entry FROM ledger ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var entries []string
	for rows.Next() {
		var entry string
		if err := rows.Scan(&entry); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return entries
}

func wantLedger(t testing.TB, db *sql.DB, want ...string) {
	t.Helper()
	if got := ledger(t, db); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("committed: %q, want %q", got, want)
	}
}

// gate stops whoever passes while it is shut: so a process stands still when it is paused, its
// timers included.
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

// begunTerm is a takeover and when it was known to be done: it was committed earlier than that.
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

// attempt is one transaction: with that token, and sent not before that time, so that it was
// committed later.
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

// watch looks for new entries until ctx ends. What a look that began at some moment doesn't find
// was committed after that moment.
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

// ledgerCandidate is one machine. On it runs, most of the time, a process: an elector, and while
// that leads, two writers.
type ledgerCandidate struct {
	stage    *stage
	name     string
	network  *proxy
	electing gate // the elector's goroutine passes it around each call
	working  gate // the writers pass it between their check and their write
	// atCommit cuts the machine off when the next COMMIT comes along; atGuard delays the reply to
	// the next guard.
	atCommit, atGuard atomic.Bool
	runs              int
	process           *writingProcess // nil: it was killed
}

// writingProcess is one run of a ledgerCandidate.
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
	elector := start(t, p, c.stage.cadence, again, within(p.ctx))
	for _, f := range []func(){
		func() { <-elector.ended },
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

// kill ends the process as SIGKILL and a lost machine do: nothing is released, connections just
// end.
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

// unfenced returns the writer of the control: it looks whether it leads, and then writes.
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

// appendEntry writes one entry. The counter's row is locked until the commit, so that the entries'
// order is that of their commits; an AUTO_INCREMENT's is that of their INSERTs. It comes last, so
// that a transaction which is held up before doesn't hold up the others.
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

// staleEntries are those that a leader committed when its successor was known already, or that come
// after an entry of a later term.
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
