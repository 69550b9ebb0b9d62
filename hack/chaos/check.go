package main

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
)

// The rules:
//
//   - No two candidates lead at a time. A process that did not run, or whose clock was slow (or the other's fast), may lead
//     on for exactly as long as it missed: it counts a lease from when it asked for it, and whoever takes over from when he
//     saw it at the earliest. So may both for a RenewDeadline after a promotion that lost a takeover.
//   - Tokens grow.
//   - The ledger has every entry that was acknowledged (but for what a promotion lost), no entry that was refused or failed,
//     none twice, and all in the order of the terms: no entry of a term after one of the next, whoever was paused.
//   - What clients of raw operations were told is linearizable.
//   - A leader works within a lease, two retries and what is under way, whenever all is healed. On a machine that starves
//     its processes, each time that a process could not run costs it that time, an operation and a retry.
//   - Candidates end when asked to, by no fault of their own, with no goroutine, session or busy pool left, having heard of
//     the server until the end.

// stall is the shortest time in which a process that doesn't run counts as stopped.
const stall = 50 * time.Millisecond

// entry is a row of a ledger, in the order of id. Ids are given when a row is inserted; as a guarded transaction of an
// older term ends before the next term begins, and so before that one's first insert, their order is that of the terms.
type entry struct {
	token int64
	who   string
	seq   int
}

// verdict is what the checker found.
type verdict struct {
	violations []violation
	terms      int
	posted     int
	refused    int
	unknown    int
	failed     int
	excused    int           // overlaps of leaders that were paused or starved
	longest    time.Duration // of them
	late       int           // recoveries that took longer, as the machine starved the candidates
	promoted   int           // overlaps and entries that a promotion lost
	stale      int           // unfenced writes of a leader after those of the next
	elections  int           // whose raw operations were found linearizable
	operations int           // these
}

type violation struct {
	at   time.Time // around this
	who  []string  // whom it concerns; nobody: all
	text string
	more []string // lines that show it
}

func (v *verdict) add(at time.Time, who []string, format string, args ...any) {
	v.violations = append(v.violations, violation{at: at, who: who, text: fmt.Sprintf(format, args...)})
}

// term is a time in which a candidate believed that it led.
type term struct {
	who        string
	token      int64
	start, end time.Time
}

// slowdown is a time in which a process ran at another rate than time does: 0 if it was stopped.
type slowdown struct {
	from, to time.Time
	rate     float64
}

// missed is how much less than true time passed for the process between two times; negative if more.
func missed(slowdowns []slowdown, from, to time.Time, count func(rate float64) bool) (sum time.Duration) {
	for _, s := range slowdowns {
		start, end := s.from, s.to
		if start.Before(from) {
			start = from
		}
		if end.After(to) {
			end = to
		}
		if end.After(start) && count(s.rate) {
			sum += time.Duration((1 - s.rate) * float64(end.Sub(start)))
		}
	}
	return sum
}

func isSlow(rate float64) bool { return rate < 1 }
func isFast(rate float64) bool { return rate > 1 }

// check holds a history against what the ledgers have in the end.
func check(events []event, ledger, unfenced []entry, t elector.Timings) *verdict {
	v := &verdict{}
	v.leaderships(events, t)
	v.entries(events, ledger)
	newest := int64(0)
	for _, e := range unfenced {
		if e.token < newest {
			v.stale++
		}
		newest = max(newest, e.token)
	}
	v.endings(events, t)
	v.idle(events)
	return v
}

// recoveryTime is how long it may take until a leader works after everything is healed: a lease, two retries of a follower
// that jitter makes up to 2.2 times as long, an operation that was under way, and a connection.
func recoveryTime(t elector.Timings) time.Duration {
	return t.LeaseDuration + 2*t.RetryPeriod*22/10 + 2*t.Operation() + time.Second
}

// starvation is the time that the candidate which was starved most lost by that.
func starvation(events []event, from, to time.Time, t elector.Timings) (most time.Duration) {
	cost := map[string]time.Duration{}
	for _, e := range events {
		if e.Kind == stalled && e.Time.After(from) && e.Time.Before(to) {
			cost[e.Who] += e.Duration + t.Operation() + t.RetryPeriod*22/10
			most = max(most, cost[e.Who])
		}
	}
	return most
}

// endings checks how candidates ended and how long everything took to recover.
func (v *verdict) endings(events []event, t elector.Timings) {
	calm := false
	for _, e := range events {
		who := []string{e.Who}
		switch e.Kind {
		case quiet:
			calm = true
		case bye:
			if e.Goroutines > 0 {
				v.add(e.Time, who, "%s ended with %d goroutines more than it began with", e.Who, e.Goroutines)
			}
			if e.Duration > t.RetryPeriod*22/10+2*time.Second && calm {
				v.add(e.Time, who, "%s had not heard of the server for %v when it was asked to end", e.Who, e.Duration)
			}
		case stuck:
			v.add(e.Time, who, "%s's pool is stuck: %s", e.Who, e.What)
		case babbled:
			v.add(e.Time, who, "%s said: %s", e.Who, e.What)
		case exited:
			if e.What != "<nil>" && e.What != "signal: killed" {
				v.add(e.Time, who, "%s ended by itself: %s", e.Who, e.What)
			}
		case fault:
			if strings.HasPrefix(e.What, failure) {
				v.add(e.Time, nil, "a fault could not be injected, or healed: %s", e.What)
			}
		case recovery:
			since := e.Time.Add(-e.Duration)
			starved := starvation(events, since, e.Time, t)
			switch {
			case e.Duration > recoveryTime(t)+starved:
				v.add(since, nil, "nothing was posted for %v after the last fault, more than %v and %v for starvation", e.Duration, recoveryTime(t), starved)
			case e.Duration > recoveryTime(t):
				v.late++
			}
		}
	}
}

// leaderships checks that tokens grow and that no two candidates led at a time.
func (v *verdict) leaderships(events []event, t elector.Timings) {
	var terms []*term
	running := map[string]*term{}
	slow := map[string][]slowdown{}
	var promotions []slowdown
	for _, e := range slices.SortedStableFunc(slices.Values(events), func(a, b event) int { return a.Time.Compare(b.Time) }) {
		switch e.Kind {
		case leads:
			running[e.Who] = &term{who: e.Who, token: e.Token, start: e.Time}
			terms = append(terms, running[e.Who])
		case leadsNot, exited:
			if last := running[e.Who]; last != nil {
				last.end = e.Time
				delete(running, e.Who)
			}
		case stalled, skewed:
			slow[e.Who] = append(slow[e.Who], slowdown{e.Time.Add(-e.Duration), e.Time, e.Rate})
		case lost:
			promotions = append(promotions, slowdown{from: e.Time.Add(-e.Duration), to: e.Time})
		}
	}
	v.terms = len(terms)
	for _, last := range running {
		last.end = events[len(events)-1].Time
	}
	for i, a := range terms {
		for _, b := range terms[i+1:] {
			v.order(a, b, slow)
			end := a.end
			if b.end.Before(end) {
				end = b.end
			}
			overlap := end.Sub(b.start)
			if overlap <= 0 {
				continue
			}
			before := b.start.Add(-t.LeaseDuration)
			allowed := missed(slow[a.who], before, end, isSlow) - missed(slow[b.who], before, b.start, isFast)
			if allowed > 0 && overlap <= allowed+2*stall { // what is shorter than a stall isn't noticed
				v.excused++
				v.longest = max(v.longest, overlap)
				continue
			}
			if slices.ContainsFunc(promotions, func(p slowdown) bool {
				return b.start.After(p.from) && end.Before(p.to.Add(t.RenewDeadline+t.RetryPeriod+t.Operation()+time.Second))
			}) {
				v.promoted++
				continue
			}
			v.add(b.start, []string{a.who, b.who}, "%s (token %d) and %s (token %d) led at once for %v; stops and clocks explain %v",
				a.who, a.token, b.who, b.token, overlap, allowed)
		}
	}
}

// order checks that of two terms the later one has the larger token.
func (v *verdict) order(a, b *term, slow map[string][]slowdown) {
	switch {
	case a.token == 0 || b.token == 0 || a.token < b.token:
	case a.token == b.token && a.who != b.who:
		v.add(b.start, []string{a.who, b.who}, "%s and %s have one token, %d", a.who, b.who, a.token)
	case a.token > b.token && missed(slow[b.who], a.start, b.start, isSlow) == 0: // else it could not say so earlier
		v.add(b.start, []string{a.who, b.who}, "the token %d of %s follows %d of %s", b.token, b.who, a.token, a.who)
	}
}

// entries checks that the ledger has what was acknowledged and nothing that was refused, in the order of the terms.
func (v *verdict) entries(events []event, ledger []entry) {
	there := map[entry]bool{}
	var newest entry
	for i, e := range ledger {
		if there[e] {
			v.add(when(events, e), []string{e.who}, "the ledger has the entry %+v twice", e)
		}
		there[e] = true
		switch {
		case i == 0:
			newest = e
		case e.token < newest.token:
			v.add(when(events, e), []string{e.who, newest.who}, "the ledger has %+v after %+v: a write of a stale leader", e, newest)
		case e.token == newest.token && (e.who != newest.who || e.seq < newest.seq):
			v.add(when(events, e), []string{e.who, newest.who}, "the ledger has %+v after %+v", e, newest)
		default:
			newest = e
		}
	}
	for _, e := range events {
		in := there[entry{e.Token, e.Who, e.Seq}]
		who := []string{e.Who}
		switch e.Kind {
		case posted:
			v.posted++
			switch {
			case in:
			case wasLost(events, e):
				v.promoted++
			default:
				v.add(e.Time, who, "%s's entry %d of term %d was acknowledged and is not in the ledger", e.Who, e.Seq, e.Token)
			}
		case refused:
			v.refused++
			if in {
				v.add(e.Time, who, "%s's entry %d of term %d was refused and is in the ledger", e.Who, e.Seq, e.Token)
			}
		case failed:
			v.failed++
			if in {
				v.add(e.Time, who, "%s's entry %d of term %d failed (%s) and is in the ledger", e.Who, e.Seq, e.Token, e.What)
			}
		case unknown:
			v.unknown++
		}
	}
}

// wasLost reports whether an entry was under way while what was committed did not reach the server that took over.
func wasLost(events []event, of event) bool {
	return slices.ContainsFunc(events, func(e event) bool {
		return e.Kind == lost && of.Time.After(e.Time.Add(-e.Duration)) && of.Time.Add(-of.Duration).Before(e.Time)
	})
}

// raw checks the operations of those elections that are over, apart from the ones in known.
func (v *verdict) raw(events []event, known map[string]bool) {
	histories := rawHistories(events)
	for _, election := range slices.Sorted(maps.Keys(histories)) {
		ops := histories[election]
		v.elections++
		v.operations += len(ops)
		if known[election] {
			continue
		}
		ok, decided, near := rawVerdict(ops)
		if ok {
			known[election] = true
			continue
		}
		at, text := time.Unix(0, ops[0].Call), "what clients of "+election+" were told is not linearizable"
		if !decided {
			text = "whether what clients of " + election + " were told is linearizable could not be decided within a minute"
		}
		if len(near) > 0 {
			at = time.Unix(0, near[len(near)-1].Call)
		}
		violation := violation{at: at, text: text}
		for _, op := range near {
			in, out := op.Input.(rawOperation), op.Output.(rawOperation) //nolint:errcheck,forcetypeassert // see rawHistories
			line := fmt.Sprintf("%s client %d: %s", time.Unix(0, op.Call).Format("15:04:05.000000"), op.ClientId, in.Op)
			if in.Op != "get" {
				line += fmt.Sprintf(" %v over %v", in.Next, in.Expected)
			}
			switch {
			case out.Outcome == noOutcome:
				line += ", without an answer"
			case out.Seen != content{}:
				line += fmt.Sprintf(": %v after %v", out.Seen, time.Duration(op.Return-op.Call).Truncate(time.Microsecond))
			default:
				line += fmt.Sprintf(": %s after %v", out.Outcome, time.Duration(op.Return-op.Call).Truncate(time.Microsecond))
			}
			violation.more = append(violation.more, line)
		}
		v.violations = append(v.violations, violation)
	}
}

// when is the time at which a candidate spoke of an entry.
func when(events []event, of entry) time.Time {
	for _, e := range events {
		if e.Who == of.who && e.Token == of.token && e.Seq == of.seq && e.Kind != leads {
			return e.Time
		}
	}
	return time.Time{}
}

// excerpt is what was heard around a violation of those whom it concerns, and of the faults, without what went well.
func excerpt(events []event, of violation, t elector.Timings) []event {
	var near []event
	for _, e := range events {
		concerns := len(of.who) == 0 || e.Who == "" || slices.Contains(of.who, e.Who) || e.Kind == fault
		small := e.Kind == posted || e.Kind == called || e.Kind == returned || e.Kind == stalled && e.Duration < 4*stall
		if concerns && !small && e.Time.After(of.at.Add(-2*t.LeaseDuration)) && e.Time.Before(of.at.Add(t.LeaseDuration)) {
			near = append(near, e)
		}
	}
	slices.SortStableFunc(near, func(a, b event) int { return cmp.Compare(a.Time.UnixNano(), b.Time.UnixNano()) })
	// Of a row of events that differ in nothing but their number, the first is enough.
	return slices.CompactFunc(near, func(a, b event) bool {
		return a.Kind == b.Kind && a.Who == b.Who && a.Token == b.Token && a.What == b.What
	})
}

func readLedger(ctx context.Context, db *sql.DB, query string) (entries []entry, err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what matters
	for rows.Next() {
		var e entry
		if err := rows.Scan(&e.token, &e.who, &e.seq); err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, rows.Err()
}
