package mysqllock_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// content is what an election's row says: which write it is of, as each has a tag of its own (in
// leaderTransitions), and which client holds it. The zero value is no row.
type content struct {
	tag    int
	holder string // empty: released
}

// state is that of the model.
type state struct {
	content
	ended bool // the history is over: what is unknown by now doesn't happen
}

// step is one step of an operation; most operations have one.
type step struct {
	kind string
	// expected are the rows that a write compares with: the last that this client observed, for a
	// release also those that it may have written without an answer.
	expected []content
	next     content // what it writes
}

// The steps. A Create inserts a released row and takes it over, so it is two.
const (
	stepGet     = "get"
	stepInsert  = "insert"
	stepTake    = "take"
	stepUpdate  = "update"
	stepRelease = "release"
	stepDelete  = "delete"
	stepEnd     = "end" // of the history
)

// result is what the client was told.
type result struct {
	outcome string
	seen    content // of a get
}

// The outcomes. Of an unknown one the step may happen at any later time, once, or never.
const (
	done     = "done"
	missing  = "NotFound"
	exists   = "AlreadyExists"
	lostRace = "Conflict"
	changed  = "Conflict, cause unknown" // the row could not be read afterwards
	refused  = "refused"                 // a release by one that doesn't hold the row
	unknown  = "unknown"
)

// election is the specification: a register with compare-and-swap.
var election = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(before, input, output any) (bool, any) {
		s, in, out := before.(state), input.(step), output.(result)
		present := s.content != content{}
		matches := slices.Contains(in.expected, s.content)
		written := state{content: in.next}
		switch in.kind {
		case stepEnd:
			s.ended = true
			return true, s
		case stepGet:
			return out.outcome == missing && !present || out.outcome == done && present && s.content == out.seen, s
		case stepDelete:
			return true, state{}
		case stepInsert:
			switch {
			case out.outcome == unknown && s.ended:
				return true, s
			case !present:
				return true, written
			}
			// An insert can't have been done beside another row; an unknown one that does nothing
			// does so at the end.
			return out.outcome == exists, s
		}
		switch out.outcome {
		case done:
			return matches, written
		case exists: // the insert lost its race, or this second step did
			return !matches, s
		case changed: // what was observed; a write without an answer may have changed it
			return s.content != in.expected[0], s
		case missing:
			return !present, s
		case lostRace, refused:
			return present && !matches, s
		case unknown:
			if s.ended {
				return true, s
			}
			return matches, written
		}
		return false, s
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
	DescribeState:     func(s any) string { return fmt.Sprintf("%+v", s) },
}

// history is what the clients did and were told.
type history struct {
	began time.Time
	mu    sync.Mutex
	steps []porcupine.Operation
	tags  atomic.Int64
	// versions are those of the rows that were seen: one row has one version, and no other row ever
	// has it.
	versions map[content]int64
	problems []string
	full     func() // called when there are as many steps as can be checked
}

// maxSteps is how many steps porcupine checks in seconds, also on a busy machine.
const maxSteps = 1000

const openEnded = -1 // the return of a step whose outcome is unknown

func (h *history) now() int64 { return time.Since(h.began).Nanoseconds() }

// add adds a step that was called then, and ends now.
func (h *history) add(client int, called int64, in step, out result) {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := porcupine.Operation{ClientId: client, Input: in, Call: called, Output: out, Return: h.now()}
	if out.outcome == unknown {
		op.Return = openEnded
	}
	h.steps = append(h.steps, op)
	if len(h.steps) == maxSteps {
		h.full()
	}
}

func (h *history) problem(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problems = append(h.problems, fmt.Sprintf(format, args...))
}

func (h *history) noteVersion(c content, version int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v, ok := h.versions[c]; ok && v != version {
		h.problems = append(h.problems, fmt.Sprintf("%+v has the versions %d and %d", c, v, version))
	}
	h.versions[c] = version
}

// closed is the history with an end, before which what is unknown may happen at any time, and after
// which it may be left out.
func closed(steps []porcupine.Operation) []porcupine.Operation {
	var last int64
	for _, op := range steps {
		last = max(last, op.Call, op.Return)
	}
	closed := slices.Clone(steps)
	for i, op := range closed {
		if op.Return == openEnded {
			closed[i] = bounded(op, steps, last+3)
		}
	}
	return append(closed, porcupine.Operation{Input: step{kind: stepEnd}, Call: last + 1, Output: result{outcome: done}, Return: last + 2})
}

// bounded is a step of unknown outcome as far as its effects tell more: one that was seen was done,
// before it was first seen, and after any deletion which was over when that get began, as no
// deletion came in between. Without that the checker would have to try each of them at any later
// time.
func bounded(op porcupine.Operation, steps []porcupine.Operation, end int64) porcupine.Operation {
	op.Return = end
	wrote := op.Input.(step)
	var sight *porcupine.Operation
	for i := range steps {
		in, out := steps[i].Input.(step), steps[i].Output.(result)
		seen := out.seen == wrote.next || wrote.kind == stepInsert && out.seen.tag == wrote.next.tag
		if in.kind == stepGet && out.outcome == done && seen && (sight == nil || steps[i].Return < sight.Return) {
			sight = &steps[i]
		}
	}
	if sight == nil {
		return op
	}
	op.Output, op.Return = result{outcome: done}, sight.Return
	for _, deletion := range steps {
		if deletion.Input.(step).kind == stepDelete && deletion.Return < sight.Call {
			op.Call = max(op.Call, deletion.Call)
		}
	}
	return op
}

// client is one candidate, whose elector does whatever it likes.
type client struct {
	id       int
	history  *history
	lock     *mysqllock.Lock
	network  *proxy
	random   *rand.Rand
	observed *content  // as the Lock observed it; nil: nothing yet
	missing  bool      // by the last get
	doubtful []content // held by this client, if its unknown writes were done
	outcomes map[string]int
}

func (c *client) name() string { return c.lock.Identity() }

// record is one with a tag of its own, which begins a term if need be.
func (c *client) record(holder string) (resourcelock.LeaderElectionRecord, content) {
	tag := int(c.history.tags.Add(1))
	now := metav1.NewTime(time.Now().UTC().Truncate(time.Microsecond))
	return resourcelock.LeaderElectionRecord{HolderIdentity: holder, LeaseDurationSeconds: 15, AcquireTime: now, RenewTime: now, LeaderTransitions: tag},
		content{tag, holder}
}

// classify tells what an error means. noEffect: the server refused the statement, or it was not
// sent, so that there is nothing to explain.
func (c *client) classify(op string, err error) (outcome string, noEffect bool) {
	var server *mysql.MySQLError
	switch {
	case err == nil:
		outcome = done
	case apierrors.IsNotFound(err):
		outcome = missing
	case apierrors.IsAlreadyExists(err):
		outcome = exists
	case apierrors.IsConflict(err) && strings.HasSuffix(err.Error(), "the row has changed since it was observed"):
		outcome = changed
	case apierrors.IsConflict(err):
		outcome = lostRace
	case strings.Contains(err.Error(), "not released, as this candidate does not hold the election"):
		outcome = refused
	case errors.As(err, &server):
		c.outcomes[fmt.Sprintf("%s error %d", op, server.Number)]++
		return "", true
	case strings.Contains(err.Error(), "the session refused the write"):
		c.history.problem("%s: %v", op, err)
		return "", true
	default:
		outcome = unknown
	}
	c.outcomes[op+" "+outcome]++
	return outcome, false
}

func (c *client) get(ctx context.Context) {
	called := c.history.now()
	r, raw, err := c.lock.Get(ctx)
	outcome, noEffect := c.classify(stepGet, err)
	if noEffect || outcome == unknown {
		return
	}
	out := result{outcome: outcome}
	c.missing = outcome == missing
	if err == nil {
		out.seen = content{r.LeaderTransitions, r.HolderIdentity}
		c.observed = &out.seen
	}
	c.history.add(c.id, called, step{kind: stepGet}, out)
	if err == nil {
		var bytes struct{ Version int64 }
		if err := json.Unmarshal(raw, &bytes); err != nil || bytes.Version == 0 {
			c.history.problem("bytes %s: %v", raw, err)
		}
		c.history.noteVersion(out.seen, bytes.Version)
	}
}

func (c *client) create(ctx context.Context) {
	record, next := c.record(c.name())
	inserted := content{tag: next.tag}
	called := c.history.now()
	err := c.lock.Create(ctx, record)
	outcome, noEffect := c.classify("create", err)
	if noEffect {
		// One of the two statements was refused, perhaps after the other.
		outcome = unknown
	}
	if outcome == unknown {
		c.doubtful = append(c.doubtful, next)
	}
	c.history.add(c.id, called, step{kind: stepInsert, next: inserted}, result{outcome: outcome})
	c.history.add(c.id, called, step{kind: stepTake, expected: []content{inserted}, next: next}, result{outcome: outcome})
	if err == nil {
		c.observed = &next
	}
}

func (c *client) update(ctx context.Context) {
	record, next := c.record(c.name())
	in := step{kind: stepUpdate, expected: []content{*c.observed}, next: next}
	called := c.history.now()
	err := c.lock.Update(ctx, record)
	outcome, noEffect := c.classify(stepUpdate, err)
	if noEffect {
		return
	}
	if outcome == unknown {
		c.doubtful = append(c.doubtful, next)
	}
	c.history.add(c.id, called, in, result{outcome: outcome})
	if err == nil {
		c.observed = &next
	}
}

func (c *client) release(ctx context.Context) {
	record, next := c.record("")
	mine := c.observed.holder == c.name()
	in := step{kind: stepRelease, expected: append([]content{*c.observed}, c.doubtful...), next: next}
	called := c.history.now()
	err := c.lock.Update(ctx, record)
	outcome, noEffect := c.classify(stepRelease, err)
	if noEffect {
		return
	}
	if outcome == refused && !mine {
		return // without asking the server
	}
	if !mine {
		c.history.problem("%s saw %+v and released: %v", c.name(), *c.observed, err)
	}
	c.history.add(c.id, called, in, result{outcome: outcome})
	if err == nil {
		c.observed = &next
	}
}

// run does operations until ctx ends, now and then with a fault of the network.
func (c *client) run(ctx context.Context, timeout time.Duration) {
	for ctx.Err() == nil {
		faulty := c.random.IntN(100) < 4
		lose := c.random.IntN(2) == 0
		if faulty {
			switch c.random.IntN(4) {
			case 0:
				c.network.delayReplies(timeout/2 + time.Duration(c.random.Int64N(int64(timeout))))
			case 1:
				c.network.swallowReplies()
			case 2:
				c.network.blackHole()
			case 3: // in the middle of whatever comes
				after := time.AfterFunc(time.Duration(c.random.Int64N(int64(3*time.Millisecond))), c.network.cut)
				defer after.Stop()
			}
		}
		background := context.Background() // the operation's own deadline ends it
		switch n := c.random.IntN(100); {
		case n < 45 || c.observed == nil && n < 90:
			c.get(background)
		case n < 80:
			c.update(background)
		case n < 90:
			c.release(background)
		case n < 97 && !c.missing: // as no elector would create it
			c.get(background)
		default:
			c.create(background)
		}
		if faulty {
			if lose {
				c.network.cut()
			}
			c.network.forward() // what was held back arrives now
		}
	}
}

func TestLinearizabilityOfConcurrentOperationsWhateverTheNetworkDoes(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	random := seeded(t)
	const timeout = 200 * time.Millisecond
	h := &history{began: time.Now(), versions: map[content]int64{}}
	var clients []*client
	for i := range 8 {
		network := newProxy(t, config.Addr)
		pool := open(t, network.config(config))
		clients = append(clients, &client{
			id: i, history: h, network: network, random: rand.New(rand.NewPCG(random.Uint64(), 0)), outcomes: map[string]int{},
			lock: newLock(t, pool, "e", string(rune('a'+i)), mysqllock.WithOperationTimeout(timeout)),
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	h.full = cancel
	var running sync.WaitGroup
	for _, c := range clients {
		running.Add(1)
		go func() {
			defer running.Done()
			c.run(ctx, timeout)
		}()
	}

	// The administrator deletes the row now and then, or keeps it locked until what waits for it
	// was given up: all that is applied afterwards, late.
	for pause := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		if ctx.Err() != nil {
			pause.Stop()
			break
		}
		if random.IntN(5) > 0 {
			called := h.now()
			if _, err := db.ExecContext(t.Context(), `DELETE FROM election_records`); isDeadlock(err) {
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			h.add(len(clients), called, step{kind: stepDelete}, result{outcome: done})
			continue
		}
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.ExecContext(t.Context(), `SELECT version FROM election_records FOR UPDATE`); isDeadlock(err) {
			_ = tx.Rollback()
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		held := time.NewTimer(timeout * 3 / 2) // time has to pass
		<-held.C
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
	}
	running.Wait()

	outcomes := map[string]int{}
	for _, c := range clients {
		for outcome, n := range c.outcomes {
			outcomes[outcome] += n
		}
	}
	unknowns := 0
	for _, op := range h.steps {
		if op.Return == openEnded {
			unknowns++
		}
	}
	t.Logf("%d steps, %d of them of unknown outcome: %v", len(h.steps), unknowns, outcomes)
	for _, problem := range h.problems {
		t.Error(problem)
	}
	byVersion := map[int64]content{}
	for c, version := range h.versions {
		if other, ok := byVersion[version]; ok {
			t.Errorf("%+v and %+v have the same version, %d", c, other, version)
		}
		byVersion[version] = c
	}
	for _, outcome := range []string{"get done", "get NotFound", "create done", "create AlreadyExists", "update done", "update Conflict", "update NotFound", "update unknown", "release done"} {
		if outcomes[outcome] == 0 {
			t.Errorf("not one %q: too little was tried", outcome)
		}
	}
	began := time.Now()
	verdict := porcupine.CheckOperationsTimeout(election, closed(h.steps), 30*time.Second)
	t.Logf("%v after %v", verdict, time.Since(began).Round(time.Millisecond))
	if verdict != porcupine.Ok { // Unknown: nothing was found that explains it
		explain(t, h.steps)
		t.Errorf("linearizable: %v", verdict)
	}
}

// explain leaves a picture of a history that isn't linearizable.
func explain(t testing.TB, steps []porcupine.Operation) {
	t.Helper()
	_, info := porcupine.CheckOperationsVerbose(election, closed(steps), 10*time.Second)
	folder, err := os.MkdirTemp("", "mysqllock-history") // not t.TempDir: it is to outlive the test
	if err != nil {
		t.Fatal(err)
	}
	picture := filepath.Join(folder, "history.html")
	if err := porcupine.VisualizePath(election, info, picture); err != nil {
		t.Fatal(err)
	}
	t.Log("see " + picture)
}

// sequence is a history of operations one after the other; an unknown one is never over.
func sequence(ops ...porcupine.Operation) []porcupine.Operation {
	for i := range ops {
		ops[i].Call, ops[i].Return = int64(10*i), int64(10*i+5)
		if out, ok := ops[i].Output.(result); ok && out.outcome == unknown {
			ops[i].Return = openEnded
		}
	}
	return ops
}

// atOnce makes operations concurrent.
func atOnce(ops ...porcupine.Operation) []porcupine.Operation {
	ops = sequence(ops...)
	for i := range ops {
		ops[i].Call = 0
		if ops[i].Return != openEnded {
			ops[i].Return = int64(10 * len(ops))
		}
	}
	return ops
}

// A checker that finds nothing wrong with anything would be no test.
func TestLinearizabilityCheckerRejectsWhatNoLockMayDo(t *testing.T) {
	op := func(in step, outcome string) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: result{outcome: outcome}}
	}
	get := func(seen content) porcupine.Operation {
		return porcupine.Operation{Input: step{kind: stepGet}, Output: result{done, seen}}
	}
	// create is the first row, of client a.
	var (
		inserted, a1, a2, b2, b3, released = content{1, ""}, content{1, "a"}, content{2, "a"}, content{3, "b"}, content{4, "b"}, content{5, ""}
		none                               = op(step{kind: stepGet}, missing)
		remove                             = op(step{kind: stepDelete}, done)
	)
	insert := func(outcome string) porcupine.Operation { return op(step{kind: stepInsert, next: inserted}, outcome) }
	take := func(outcome string) porcupine.Operation {
		return op(step{kind: stepTake, expected: []content{inserted}, next: a1}, outcome)
	}
	swap := func(from, to content, outcome string) porcupine.Operation {
		return op(step{kind: stepUpdate, expected: []content{from}, next: to}, outcome)
	}
	release := func(from content, outcome string) porcupine.Operation {
		return op(step{kind: stepRelease, expected: []content{from}, next: released}, outcome)
	}
	created := func(more ...porcupine.Operation) []porcupine.Operation {
		return sequence(append([]porcupine.Operation{insert(done), take(done)}, more...)...)
	}
	for _, test := range []struct {
		name    string
		history []porcupine.Operation
		want    bool
	}{
		{"a term and its end", created(get(a1), swap(a1, a2, done), get(a2), release(a2, done), get(released), swap(released, b2, done)), true},
		{"a lost race", created(swap(a1, b2, done), swap(a1, a2, lostRace), get(b2)), true},
		{"a row that is deleted", created(remove, none, swap(a1, a2, missing)), true},
		{"a late write is seen later", created(swap(a1, a2, unknown), get(a1), get(a2)), true},
		{"a late write is never done", created(swap(a1, a2, unknown), get(a1), swap(a1, b2, done), get(b2)), true},
		{"a late write explains a Conflict", created(swap(a1, a2, unknown), swap(a1, b2, lostRace)), true},
		{"a Conflict of unknown cause on a row that is gone", created(remove, swap(a1, a2, changed)), true},
		{"a create without an answer is done halfway", sequence(insert(unknown), take(unknown), none, get(inserted), get(inserted)), true},
		{"a create loses its row halfway", atOnce(insert(exists), take(exists), swap(inserted, b2, done)), true},
		{"two at once, one wins", append(created(), atOnce(swap(a1, a2, done), swap(a1, b2, lostRace))...), true},

		{"both win", created(swap(a1, a2, done), swap(a1, b2, done)), false},
		{"both win at once", append(created(), atOnce(swap(a1, a2, done), swap(a1, b2, done))...), false},
		{"a stale read", created(swap(a1, b2, done), get(a1)), false},
		{"a write that was acknowledged is lost", created(swap(a1, b2, done), get(b2), get(a1)), false},
		{"a release erases the successor", created(swap(a1, b2, done), release(a1, done), get(released)), false},
		{"a Conflict although nothing has changed", created(swap(a1, a2, lostRace)), false},
		{"a Conflict on a row that is missing", created(remove, swap(a1, a2, lostRace)), false},
		{"NotFound on a row that is there", created(swap(a1, a2, missing)), false},
		{"AlreadyExists on a row that is missing", sequence(insert(exists), take(exists), none), false},
		{"a create beside a row", created(op(step{kind: stepInsert, next: content{9, ""}}, done)), false},
		{"a refused write is there", created(swap(a1, b2, done), swap(a1, a2, lostRace), get(a2)), false},
		{"a late write is done over a later one", created(swap(a1, a2, unknown), swap(a1, b2, done), get(b2), get(a2)), false},
		{"a Conflict of unknown cause although nothing has changed", created(swap(a1, a2, changed)), false},
		{"a late write is done twice", created(swap(a1, a2, unknown), get(a2), swap(a2, a1, done), get(a2)), false},
		{"a late write over a row that was made again", created(swap(a1, a2, unknown), remove, op(step{kind: stepInsert, next: b3}, done), get(a2)), false},
	} {
		steps := test.history
		if got := porcupine.CheckOperations(election, closed(steps)); got != test.want {
			t.Errorf("%s: linearizable %t, want %t", test.name, got, test.want)
		}
	}
}

// isDeadlock reports whether the server gave this statement up for another one: it did nothing.
func isDeadlock(err error) bool {
	var server *mysql.MySQLError
	return errors.As(err, &server) && server.Number == 1213
}
