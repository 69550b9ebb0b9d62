package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
)

var tight = elector.Tight

// at is a time in a history, in seconds.
func at(seconds float64) time.Time {
	return time.Unix(1000, 0).Add(time.Duration(seconds * float64(time.Second)))
}

func leading(who string, token int64, from, to float64) []event {
	return []event{{Time: at(from), Who: who, Kind: leads, Token: token}, {Time: at(to), Who: who, Kind: leadsNot, Token: token}}
}

// found compares what the checker says with what it should; "" is nothing.
func found(t *testing.T, v *verdict, wanted string) {
	t.Helper()
	var texts []string
	for _, violation := range v.violations {
		texts = append(texts, violation.text)
	}
	if wanted == "" && len(texts) > 0 || wanted != "" && !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, wanted) }) {
		t.Errorf("wanted %q, found %q", wanted, texts)
	}
}

func TestTheCheckerFindsTwoLeadersUnlessOneWasStoppedForThatLong(t *testing.T) {
	t.Parallel()
	two := func(more ...event) []event {
		return slices.Concat(leading("a", 1, 0, 12), leading("b", 2, 10, 20), more)
	}
	second := time.Second
	for name, c := range map[string]struct {
		events []event
		wanted string
	}{
		"one after the other":                {slices.Concat(leading("a", 1, 0, 10), leading("b", 2, 10.1, 20)), ""},
		"at once":                            {two(), "led at once for 2s"},
		"one that never ended":               {slices.Concat(leading("a", 1, 0, 0)[:1], leading("b", 2, 10, 20)), "led at once for 10s"},
		"one that was killed":                {slices.Concat(leading("a", 1, 0, 0)[:1], []event{{Time: at(9), Who: "a", Kind: exited, What: "signal: killed"}}, leading("b", 2, 10, 20)), ""},
		"stopped for as long":                {two(event{Time: at(11.5), Who: "a", Kind: stalled, Duration: 3 * second}), ""},
		"stopped for less":                   {two(event{Time: at(11), Who: "a", Kind: stalled, Duration: second}), "led at once"},
		"stopped long before":                {two(event{Time: at(6), Who: "a", Kind: stalled, Duration: 3 * second}), "led at once"},
		"the successor was stopped":          {two(event{Time: at(11.5), Who: "b", Kind: stalled, Duration: 3 * second}), "led at once"},
		"a slow clock":                       {two(event{Time: at(12), Who: "a", Kind: skewed, Duration: 6 * second, Rate: 0.5}), ""},
		"a clock a little slow":              {two(event{Time: at(12), Who: "a", Kind: skewed, Duration: 6 * second, Rate: 0.95}), "led at once"},
		"a successor with a fast clock":      {two(event{Time: at(10), Who: "b", Kind: skewed, Duration: 3 * second, Rate: 1.7}), ""},
		"a leader with a fast clock":         {two(event{Time: at(12), Who: "a", Kind: skewed, Duration: 6 * second, Rate: 1.7}), "led at once"},
		"a promotion that lost the takeover": {two(event{Time: at(11), Kind: lost, Duration: 2 * second}), ""},
		"a promotion long ago":               {two(event{Time: at(5), Kind: lost, Duration: 2 * second}), "led at once"},
		"an older token later":               {slices.Concat(leading("a", 2, 0, 10), leading("b", 1, 11, 20)), "the token 1 of b follows 2 of a"},
		"one token for two":                  {slices.Concat(leading("a", 1, 0, 10), leading("b", 1, 11, 20)), "have one token"},
		"a term that was over at once":       {slices.Concat(leading("a", 2, 0, 10), leading("b", 0, 11, 20)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found(t, check(c.events, nil, nil, tight), c.wanted)
		})
	}
}

func TestTheCheckerHoldsTheLedgerAgainstWhatWasSaid(t *testing.T) {
	t.Parallel()
	said := func(k kind, token int64, seq int) event {
		return event{Time: at(float64(10*token) + float64(seq)), Who: "a", Kind: k, Token: token, Seq: seq, What: "why"}
	}
	for name, c := range map[string]struct {
		events []event
		ledger []entry
		wanted string
	}{
		"as it was said":          {[]event{said(posted, 1, 1), said(refused, 1, 2), said(posted, 2, 1)}, []entry{{1, "a", 1}, {2, "a", 1}}, ""},
		"acknowledged, not there": {[]event{said(posted, 1, 1)}, nil, "acknowledged and is not in the ledger"},
		"lost by a promotion":     {[]event{said(posted, 1, 1), {Time: at(12), Kind: lost, Duration: 2 * time.Second}}, nil, ""},
		"before what was lost":    {[]event{said(posted, 1, 1), {Time: at(13), Kind: lost, Duration: time.Second}}, nil, "acknowledged and is not"},
		"refused, and there":      {[]event{said(refused, 1, 1)}, []entry{{1, "a", 1}}, "refused and is in the ledger"},
		"failed, and there":       {[]event{said(failed, 1, 1)}, []entry{{1, "a", 1}}, "failed (why) and is in the ledger"},
		"unknown, and there":      {[]event{said(unknown, 1, 1)}, []entry{{1, "a", 1}}, ""},
		"unknown, not there":      {[]event{said(unknown, 1, 1)}, nil, ""},
		"twice":                   {nil, []entry{{1, "a", 1}, {1, "a", 1}}, "twice"},
		"a stale leader's":        {nil, []entry{{1, "a", 1}, {2, "b", 1}, {1, "a", 2}}, "a write of a stale leader"},
		"two in one term":         {nil, []entry{{1, "a", 1}, {1, "b", 2}}, "the ledger has"},
		"backwards in a term":     {nil, []entry{{1, "a", 2}, {1, "a", 1}}, "the ledger has"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			events := append([]event{{Time: at(0), Kind: healed}}, c.events...)
			found(t, check(events, c.ledger, nil, tight), c.wanted)
		})
	}
}

func TestTheCheckerFindsWhatIsLeftOverAndWhatIsLate(t *testing.T) {
	t.Parallel()
	limit := recoveryTime(tight)
	for name, c := range map[string]struct {
		events []event
		wanted string
	}{
		"a goroutine":               {[]event{{Kind: bye, Who: "a", Goroutines: 1}}, "1 goroutines more"},
		"a busy pool":               {[]event{{Kind: stuck, Who: "a", What: "why"}}, "pool is stuck: why"},
		"a panic":                   {[]event{{Kind: babbled, Who: "a", What: "panic"}}, "a said: panic"},
		"an end of its own":         {[]event{{Kind: exited, Who: "a", What: "exit status 1"}}, "ended by itself"},
		"an end by the nemesis":     {[]event{{Kind: exited, Who: "a", What: "signal: killed"}}, ""},
		"silence when all was well": {[]event{{Kind: quiet}, {Kind: bye, Who: "a", Duration: time.Minute}}, "had not heard of the server"},
		"silence while cut off":     {[]event{{Kind: bye, Who: "a", Duration: time.Minute}, {Kind: quiet}}, ""},
		"a leader in time":          {[]event{{Time: at(100), Kind: recovery, Duration: limit}}, ""},
		"a leader too late":         {[]event{{Time: at(100), Kind: recovery, Duration: limit + time.Second}}, "nothing was posted for"},
		"a starved leader":          {[]event{{Time: at(100), Kind: recovery, Duration: limit + time.Second}, {Time: at(99), Who: "a", Kind: stalled, Duration: time.Second}}, ""},
		"a fault that hit nothing":  {slices.Repeat([]event{{Kind: fault, What: commitLost}}, enough), "a fault has hit nothing in 15 times: reply to COMMIT lost"},
		"a fault that hit once":     {append(slices.Repeat([]event{{Kind: fault, What: commitLost}}, enough), event{Kind: hit, What: commitLost}), ""},
		"a fault that failed":       {[]event{{Kind: fault, What: failure + "why"}}, "could not be injected"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found(t, check(c.events, nil, nil, tight), c.wanted)
		})
	}
}

func TestTheCheckerFindsAnswersThatNoOrderExplains(t *testing.T) {
	t.Parallel()
	// A call and its answer; without an outcome it never returned.
	seq := 0
	call := func(who string, from, to float64, o rawOperation, outcome string, seen content) []event {
		seq++
		o.Election = "raw"
		answer := o
		answer.Outcome, answer.Seen = outcome, seen
		events := []event{{Time: at(from), Who: who, Kind: called, Seq: seq, Raw: &o}}
		if outcome != noOutcome {
			events = append(events, event{Time: at(to), Who: who, Kind: returned, Seq: seq, Raw: &answer})
		}
		return events
	}
	first, second, third := content{1, "a"}, content{2, "b"}, content{3, "c"}
	create := call("a", 0, 1, rawOperation{Op: "create", Next: first}, done, content{})
	update := func(who string, from, to float64, over, next content, outcome string) []event {
		return call(who, from, to, rawOperation{Op: "update", Expected: []content{over}, Next: next}, outcome, content{})
	}
	get := func(from, to float64, seen content) []event {
		return call("d", from, to, rawOperation{Op: "get"}, done, seen)
	}
	for name, c := range map[string]struct {
		events []event
		wanted string
	}{
		"one after the other":         {slices.Concat(create, update("b", 2, 3, first, second, done), get(4, 5, second)), ""},
		"one of two":                  {slices.Concat(create, update("b", 2, 3, first, second, done), update("c", 2, 3, first, third, conflict), get(4, 5, second)), ""},
		"both of two":                 {slices.Concat(create, update("b", 2, 3, first, second, done), update("c", 2, 3, first, third, done)), "not linearizable"},
		"a get that is behind":        {slices.Concat(create, update("b", 2, 3, first, second, done), get(4, 5, first)), "not linearizable"},
		"a conflict with nothing":     {slices.Concat(create, update("b", 2, 3, first, second, conflict)), "not linearizable"},
		"no answer, done later":       {slices.Concat(create, update("b", 2, 0, first, second, noOutcome), get(3, 4, first), get(5, 6, second)), ""},
		"no answer, never done":       {slices.Concat(create, update("b", 2, 0, first, second, noOutcome), get(3, 4, first)), ""},
		"no answer, done and undone":  {slices.Concat(create, update("b", 2, 0, first, second, noOutcome), get(3, 4, second), get(5, 6, first)), "not linearizable"},
		"done, and said to be nought": {slices.Concat(create, update("b", 2, 3, first, second, noEffect), get(4, 5, second)), "not linearizable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := &verdict{}
			v.raw(c.events, map[string]bool{})
			found(t, v, c.wanted)
		})
	}
}

func TestAControlIsCaughtByWhatItBreaksAndByNothingElse(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		broken string
		texts  []string
		wanted string
		err    error
	}{
		"a whole lock":              {"", nil, "", nil},
		"a whole lock that is not":  {"", []string{"anything"}, "", errViolated},
		"no violation":              {breakGuard, nil, "", errNotCaught},
		"another violation":         {breakGuard, []string{"a and b led at once for 1s"}, "", errNotCaught},
		"the first that shows it":   {breakRelease, []string{"nothing was posted", "a and b led at once for 1s", "c and d led at once for 1s"}, "caught after 2s: a and b led", nil},
		"a stale write":             {breakGuard, []string{"the ledger has {1 a 2} after {2 b 1}"}, "caught after 1s", nil},
		"answers that can't all be": {breakCAS, []string{"what clients of raw-1 were told is not linearizable"}, "caught after 1s", nil},
	} {
		v := &verdict{}
		for i, text := range c.texts {
			v.add(at(float64(i+1)), nil, "%s", text)
		}
		text, err := (&run{broken: c.broken}).outcome(v, at(0))
		if !strings.HasPrefix(text, c.wanted) || (text == "") != (c.wanted == "") || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v; want %q, %v", name, text, err, c.wanted, c.err)
		}
	}
}

func TestASeedGivesOneScheduleAndAnotherSeedAnother(t *testing.T) {
	t.Parallel()
	rounds := func(seed uint64) (all [][]injection) {
		s := (&run{seed: seed, candidates: 5, timings: tight, servers: single}).schedule()
		for range 20 {
			all = append(all, s.round())
		}
		return all
	}
	same := func(a, b [][]injection) bool { return slices.EqualFunc(a, b, slices.Equal[[]injection]) }
	if !same(rounds(1), rounds(1)) {
		t.Error("seed 1 gives two schedules")
	}
	if same(rounds(1), rounds(2)) {
		t.Error("seeds 1 and 2 give one schedule")
	}
}
