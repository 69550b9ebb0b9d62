package main

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"
)

// stall is the shortest time in which a process that doesn't run counts as stopped.
const stall = 150 * time.Millisecond

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
	excused    int // overlaps of leaders that were paused or starved
	stale      int // unfenced writes of a leader after those of the next
}

type violation struct {
	at   time.Time // around this
	text string
}

func (v *verdict) add(at time.Time, format string, args ...any) {
	v.violations = append(v.violations, violation{at, fmt.Sprintf(format, args...)})
}

// term is a time in which a candidate believed that it led.
type term struct {
	who        string
	token      int64
	start, end time.Time
}

// check holds a history against what the ledgers have in the end.
func check(events []event, ledger, unfenced []entry, t timings) *verdict {
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
	for _, e := range events {
		switch {
		case e.Kind == bye && e.Goroutines > 0:
			v.add(e.Time, "%s ended with %d goroutines more than it began with", e.Who, e.Goroutines)
		case e.Kind == recovery && e.Duration > recoveryTime(t):
			v.add(e.Time, "nothing was posted for %v after the last fault, more than %v", e.Duration, recoveryTime(t))
		}
	}
	return v
}

// recoveryTime is how long it may take until a leader works after everything is healed: a lease, two retries of a follower
// that jitter makes up to 2.2 times as long, an operation that was under way, and a connection.
func recoveryTime(t timings) time.Duration {
	operation := (t.LeaseDuration - t.RenewDeadline - t.RetryPeriod) / 2
	return t.LeaseDuration + 2*t.RetryPeriod*22/10 + 2*operation + time.Second
}

// leaderships checks that tokens grow and that no two candidates led at a time, apart from those that were stopped.
func (v *verdict) leaderships(events []event, t timings) {
	var terms []*term
	running := map[string]*term{}
	stalls := map[string][]event{}
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
		case stalled:
			stalls[e.Who] = append(stalls[e.Who], e)
		}
	}
	v.terms = len(terms)
	for _, last := range running {
		last.end = events[len(events)-1].Time
	}
	for i, a := range terms {
		for _, b := range terms[i+1:] {
			if b.token < a.token {
				v.add(b.start, "the token %d of %s follows %d of %s", b.token, b.who, a.token, a.who)
			}
			if b.token == a.token && b.who != a.who {
				v.add(b.start, "%s and %s have one token, %d", a.who, b.who, a.token)
			}
			overlap := min(a.end.Sub(b.start), b.end.Sub(b.start))
			if overlap <= 0 {
				continue
			}
			// A process that did not run for some of the lease before, or since, couldn't know.
			var paused time.Duration
			for _, s := range stalls[a.who] {
				if s.Time.After(b.start.Add(-t.LeaseDuration)) && s.Time.Add(-s.Duration).Before(b.start.Add(overlap)) {
					paused += s.Duration
				}
			}
			// When it runs again it finds out by its next renewals, for RenewDeadline.
			if paused > 0 && overlap <= paused+t.RenewDeadline+t.RetryPeriod*22/10 {
				v.excused++
				continue
			}
			v.add(b.start, "%s (token %d) and %s (token %d) led at once for %v; the former had been stopped for %v",
				a.who, a.token, b.who, b.token, overlap, paused)
		}
	}
}

// entries checks that the ledger has what was acknowledged and nothing that was refused, in the order of the terms.
func (v *verdict) entries(events []event, ledger []entry) {
	there := map[entry]bool{}
	var newest entry
	for i, e := range ledger {
		if there[e] {
			v.add(time.Time{}, "the ledger has the entry %+v twice", e)
		}
		there[e] = true
		switch {
		case i == 0:
			newest = e
		case e.token < newest.token:
			v.add(v.when(events, e), "the ledger has %+v after %+v: a write of a stale leader", e, newest)
		case e.token == newest.token && (e.who != newest.who || e.seq < newest.seq):
			v.add(v.when(events, e), "the ledger has %+v after %+v", e, newest)
		default:
			newest = e
		}
	}
	for _, e := range events {
		in := there[entry{e.Token, e.Who, e.Seq}]
		switch e.Kind {
		case posted:
			v.posted++
			if !in {
				v.add(e.Time, "%s's entry %d of term %d was acknowledged and is not in the ledger", e.Who, e.Seq, e.Token)
			}
		case refused:
			v.refused++
			if in {
				v.add(e.Time, "%s's entry %d of term %d was refused and is in the ledger", e.Who, e.Seq, e.Token)
			}
		case failed:
			v.failed++
			if in {
				v.add(e.Time, "%s's entry %d of term %d failed (%s) and is in the ledger", e.Who, e.Seq, e.Token, e.What)
			}
		case unknown:
			v.unknown++
		}
	}
}

// when is the time at which a candidate spoke of an entry.
func (*verdict) when(events []event, of entry) time.Time {
	for _, e := range events {
		if e.Who == of.who && e.Token == of.token && e.Seq == of.seq && e.Kind != leads {
			return e.Time
		}
	}
	return time.Time{}
}

// excerpt is what was heard around a violation, without the entries that were posted as they should be.
func excerpt(events []event, around time.Time, t timings) []event {
	var near []event
	for _, e := range events {
		if e.Kind != posted && e.Time.After(around.Add(-2*t.LeaseDuration)) && e.Time.Before(around.Add(t.LeaseDuration)) {
			near = append(near, e)
		}
	}
	slices.SortStableFunc(near, func(a, b event) int { return cmp.Compare(a.Time.UnixNano(), b.Time.UnixNano()) })
	return near
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
