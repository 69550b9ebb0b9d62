package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Beside its elector each candidate is a client that gets, creates, updates and releases another election in any order, as
// no elector would, and notes what it called and what it was told. Afterwards porcupine looks for an order in which a
// register with compare-and-swap would have answered so. The election changes every few seconds, so that each history is
// short.

const rawPeriod = 10 * time.Second

// content is what an election's row says: which write it is of, as each has a tag of its own (in leaderTransitions), and
// who holds it, "" if it was released. The zero value is no row.
type content struct {
	Tag    int
	Holder string
}

// rawOperation is one call on a lock, or one of the two statements of a Create.
type rawOperation struct {
	Election string
	Op       string // get, insert, take, update or release
	// Expected are the rows that a write compares with: the last that this client observed, for a release also those that
	// it may have written without an answer.
	Expected []content
	Next     content // what it writes
	Outcome  string  // "" while it is not known
	Seen     content // by a get
}

// The outcomes that say what was done. With no outcome, the write may happen at any later time, once, or never.
const (
	done      = "done"
	missing   = "NotFound"
	exists    = "AlreadyExists"
	conflict  = "Conflict"
	changed   = "Conflict of unknown cause" // the row could not be read afterwards
	notHeld   = "refused"                   // a release by one that doesn't hold the row
	noEffect  = "no effect"
	noOutcome = ""
)

// rawClient does operations on one election after the other.
type rawClient struct {
	db       *sql.DB
	identity string
	timings  elector.Timings
	tag      int
	wrap     func(*mysqllock.Lock, string) resourcelock.Interface
	say      func(event)

	lock     resourcelock.Interface
	election string
	observed *content // as the Lock observed it; nil: nothing yet
	missing  bool     // by the last get
	doubtful []content
	seq      int
}

func (c *rawClient) run(ctx context.Context) error {
	for ctx.Err() == nil {
		name := fmt.Sprintf("raw-%d", trueTime().UnixNano()/rawPeriod.Nanoseconds())
		if name != c.election {
			lock, err := mysqllock.New(c.db, name, resourcelock.ResourceLockConfig{Identity: c.identity},
				c.timings.Option())
			if err != nil {
				return err
			}
			c.lock, c.election, c.observed, c.missing, c.doubtful = c.wrap(lock, name), name, nil, false, nil
		}
		c.operate(context.WithoutCancel(ctx))                           // its own deadline ends it
		wait.For(ctx, time.Duration(10+rand.IntN(50))*time.Millisecond) //nolint:gosec // a pace, not a secret
	}
	return nil
}

func (c *rawClient) operate(ctx context.Context) {
	switch n := rand.IntN(100); { //nolint:gosec // a choice, not a secret
	case n >= 45 && n < 80 && c.observed != nil:
		c.write(ctx, "update", c.identity)
	case n >= 80 && n < 90 && c.observed != nil:
		c.write(ctx, "release", "")
	case n >= 90 && c.missing:
		c.create(ctx)
	default:
		c.get(ctx)
	}
}

// note says what is called, and afterwards what came of it.
func (c *rawClient) note(o rawOperation, call func() error) (rawOperation, error) {
	o.Election = c.election
	c.seq++
	c.say(event{Kind: called, Seq: c.seq, Raw: &o})
	err := call()
	answered := o
	answered.Outcome = outcome(err)
	return answered, err
}

func (c *rawClient) answer(o rawOperation) { c.say(event{Kind: returned, Seq: c.seq, Raw: &o}) }

func (c *rawClient) get(ctx context.Context) {
	var record *resourcelock.LeaderElectionRecord
	o, err := c.note(rawOperation{Op: "get"}, func() (err error) {
		record, _, err = c.lock.Get(ctx)
		return err
	})
	c.missing = o.Outcome == missing
	if err == nil {
		o.Seen = content{record.LeaderTransitions, record.HolderIdentity}
		seen := o.Seen
		c.observed = &seen
	}
	c.answer(o)
}

// record has a tag of its own and begins a term if need be.
func (c *rawClient) record(holder string) (resourcelock.LeaderElectionRecord, content) {
	c.tag++
	now := metav1.NewTime(time.Now().UTC())
	return resourcelock.LeaderElectionRecord{
		HolderIdentity: holder, LeaseDurationSeconds: int(c.timings.LeaseDuration.Seconds()),
		AcquireTime: now, RenewTime: now, LeaderTransitions: c.tag,
	}, content{c.tag, holder}
}

func (c *rawClient) write(ctx context.Context, op, holder string) {
	record, next := c.record(holder)
	o := rawOperation{Op: op, Expected: []content{*c.observed}, Next: next}
	if op == "release" {
		o.Expected = append(o.Expected, c.doubtful...)
	}
	mine := c.observed.Holder == c.identity
	o, err := c.note(o, func() error { return c.lock.Update(ctx, record) })
	if o.Outcome == notHeld && !mine {
		o.Outcome = noEffect // the server was not asked
	}
	c.wrote(o, err)
}

// create inserts a released row and takes it over: two steps, of which a fault may have let the first be done alone.
func (c *rawClient) create(ctx context.Context) {
	record, next := c.record(c.identity)
	o, err := c.note(rawOperation{Op: "create", Next: next}, func() error { return c.lock.Create(ctx, record) })
	if o.Outcome == noEffect {
		o.Outcome = noOutcome // of one of the two
	}
	c.wrote(o, err)
}

func (c *rawClient) wrote(o rawOperation, err error) {
	switch {
	case err == nil:
		c.observed = &o.Next
	case o.Outcome == noOutcome && o.Next.Holder != "":
		c.doubtful = append(c.doubtful, o.Next)
	}
	c.answer(o)
}

// outcome is what an error says about what was done.
func outcome(err error) string {
	var server *mysql.MySQLError
	switch {
	case err == nil:
		return done
	case apierrors.IsNotFound(err):
		return missing
	case apierrors.IsAlreadyExists(err):
		return exists
	case apierrors.IsConflict(err) && strings.HasSuffix(err.Error(), "the row has changed since it was observed"):
		return changed
	case apierrors.IsConflict(err):
		return conflict
	case strings.Contains(err.Error(), "not released, as this candidate does not hold the election"):
		return notHeld
	case strings.Contains(err.Error(), "not released, the lease is left to expire"):
		return noEffect
	case errors.As(err, &server) && slices.Contains(refusals, server.Number):
		return noEffect
	}
	return noOutcome
}

// refusals are the server's answers that say that a statement did nothing: missing tables and privileges, read-only, busy,
// full, rolled back, no connection to be had, the account locked.
var refusals = []uint16{1020, 1040, 1114, 1142, 1143, 1146, 1205, 1213, 1290, 1792, 1836, 3118, 3572, 4151}

// state is that of the register.
type state struct {
	content
	ended bool // the history is over: what is unknown by now doesn't happen
}

// register is the specification.
var register = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(before, input, output any) (bool, any) {
		s, o, told := before.(state), input.(rawOperation), output.(rawOperation) //nolint:errcheck,forcetypeassert // what rawHistory puts there
		present, matches := s.content != content{}, slices.Contains(o.Expected, s.content)
		written := state{content: o.Next}
		switch o.Op {
		case "end":
			s.ended = true
			return true, s
		case "get":
			return told.Outcome == missing && !present || told.Outcome == done && present && s.content == told.Seen, s
		case "insert":
			switch {
			case told.Outcome == noOutcome && s.ended:
				return true, s
			case !present:
				return true, written
			}
			return told.Outcome == exists, s // it can't have been done beside another row
		}
		switch told.Outcome {
		case done:
			return matches, written
		case exists: // the insert lost its race, or this second step did
			return !matches, s
		case changed: // what was observed; a write without an answer may have changed it
			return s.content != o.Expected[0], s
		case missing:
			return !present, s
		case conflict, notHeld:
			return present && !matches, s
		case noOutcome:
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

// rawHistories are those of the elections, with the time at which each ended.
func rawHistories(events []event) map[string][]porcupine.Operation {
	type call struct {
		who string
		seq int
	}
	type pending struct {
		event

		answer event
	}
	var calls []*pending
	open, clients := map[call]*pending{}, map[string]int{}
	for _, e := range events {
		switch e.Kind {
		case called:
			p := &pending{event: e}
			calls, open[call{e.Who, e.Seq}] = append(calls, p), p
			if _, ok := clients[e.Who]; !ok {
				clients[e.Who] = len(clients)
			}
		case returned:
			if p := open[call{e.Who, e.Seq}]; p != nil {
				p.answer = e
			}
		}
	}
	histories := map[string][]porcupine.Operation{}
	for _, p := range calls {
		o, told := *p.Raw, rawOperation{}
		if p.answer.Raw != nil {
			told = *p.answer.Raw
		}
		if told.Outcome == noEffect || told.Outcome == noOutcome && o.Op == "get" {
			continue // nothing to explain
		}
		steps := []rawOperation{o}
		if o.Op == "create" {
			insert, take := o, o
			insert.Op, insert.Next = "insert", content{Tag: o.Next.Tag}
			take.Op, take.Expected = "take", []content{insert.Next}
			steps = []rawOperation{insert, take}
		}
		for _, step := range steps {
			op := porcupine.Operation{ClientId: clients[p.Who], Input: step, Call: p.Time.UnixNano(), Output: told, Return: p.answer.Time.UnixNano()}
			if told.Outcome == noOutcome {
				op.Return = math.MaxInt64
			}
			histories[o.Election] = append(histories[o.Election], op)
		}
	}
	return histories
}

// closed is a history with an end, before which what is unknown may happen at any time, and after which it may be left out.
// What was seen was done, before it was first seen: without that, porcupine would try each at any later time.
func closed(ops []porcupine.Operation) []porcupine.Operation {
	var end int64
	seen := map[content]int64{} // and by the tag alone, without a holder, whoever holds it
	for _, op := range ops {
		end = max(end, op.Call)
		if op.Return == math.MaxInt64 {
			continue
		}
		end = max(end, op.Return)
		told := op.Output.(rawOperation) //nolint:errcheck,forcetypeassert // see rawHistories
		for _, sight := range []content{told.Seen, {Tag: told.Seen.Tag}} {
			if first, ok := seen[sight]; sight != (content{}) && (!ok || op.Return < first) {
				seen[sight] = op.Return
			}
		}
	}
	all := slices.Clone(ops)
	for i, op := range all {
		if op.Return != math.MaxInt64 {
			continue
		}
		o := op.Input.(rawOperation) //nolint:errcheck,forcetypeassert // see rawHistories
		all[i].Return = end + 3
		if first, ok := seen[o.Next]; ok {
			all[i].Output, all[i].Return = rawOperation{Outcome: done}, first
		}
	}
	return append(all, porcupine.Operation{Input: rawOperation{Op: "end"}, Call: end + 1, Output: rawOperation{Outcome: done}, Return: end + 2})
}

// rawVerdict is what porcupine says about one election: nil, or the operations around the first that nothing explains.
func rawVerdict(ops []porcupine.Operation) (ok, decided bool, near []porcupine.Operation) {
	result, info := porcupine.CheckOperationsVerbose(register, closed(ops), time.Minute)
	if result == porcupine.Ok {
		return true, true, nil
	}
	// The longest order that was found for a beginning of the history ends where it goes wrong.
	longest := 0
	for _, partial := range info.PartialLinearizationsOperations() {
		for _, p := range partial {
			longest = max(longest, len(p))
		}
	}
	all := slices.SortedFunc(slices.Values(ops), func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	from := min(max(0, longest-6), len(all))
	return false, result == porcupine.Illegal, all[from:min(from+12, len(all))]
}
