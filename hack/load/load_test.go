package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == workerArgument { // started by run
		if err := runWorker(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func TestElectionsKeepTheirLeadersUnderFaults(t *testing.T) {
	t.Parallel()
	s := settings{
		elections: 20, candidates: 3, processes: 2, pool: 10, timings: elector.Default,
		window: 4 * time.Second, spread: time.Second, durability: durable, faults: true, outage: 2 * time.Second,
		seed: uint64(time.Now().UnixNano()),
	}
	r, err := run(t.Context(), s)
	if err != nil {
		t.Fatalf("seed %d: %v", s.seed, err)
	}
	for name, w := range map[string]*window{"quiet": r.quiet, "faults": r.faulty} {
		if len(w.lost) > 0 || len(w.overlaps) > 0 {
			t.Errorf("%s: seed %d: %d leases lost, two leaders at once: %q", name, s.seed, len(w.lost), w.overlaps)
		}
		if w.Renewals.count() == 0 || w.Polls.count() == 0 || w.CPU == 0 || w.Heap <= 0 || w.Goroutines < 40 {
			t.Errorf("%s: %d renewals, %d polls, CPU time %v, %d bytes of heap, %d goroutines", name,
				w.Renewals.count(), w.Polls.count(), w.CPU, w.Heap, w.Goroutines)
		}
	}
	if len(r.outages) == 0 || r.led != s.elections {
		t.Errorf("%d faults were injected, %d of %d elections had a leader", len(r.outages), r.led, s.elections)
	}
	var b strings.Builder
	if err := report(&b, nil, []*result{r}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\n| 20 | 2 | 10 |"); n != 4 { // two windows in two tables
		t.Errorf("%d rows in\n%s", n, b.String())
	}
}

func TestALeaseThatIsLostIsCounted(t *testing.T) {
	t.Parallel()
	s := settings{
		elections: 5, candidates: 2, processes: 1, pool: 10, timings: elector.Tight,
		window: time.Millisecond, spread: time.Millisecond, durability: relaxed, faults: true, outage: 10 * time.Second,
	}
	for ; ; s.seed++ { // until the first fault is a pause that no lease survives
		f := s.round(rand.New(rand.NewPCG(s.seed, s.seed)))[0]
		if f.kind == serverPaused && f.planned > 2*s.timings.LeaseDuration {
			break
		}
	}
	r, err := run(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.faulty.lost) < s.elections {
		t.Errorf("%d of %d leases lost while the server was paused", len(r.faulty.lost), s.elections)
	}
}

func TestALostLeaseNeedsAnOutageThatExplainsIt(t *testing.T) {
	t.Parallel()
	began := time.Now()
	at := func(seconds float64) time.Time { return began.Add(time.Duration(seconds * float64(time.Second))) }
	lease := func(kind string, candidate int, seconds float64) event {
		return event{Kind: kind, Candidate: candidate, Time: at(seconds)}
	}
	for _, test := range []struct {
		name           string
		outages        []outage
		lost, uncaused int
		overlaps       int
		events         []event
	}{
		{name: "without any outage", lost: 1, uncaused: 1},
		{name: "an outage that the timings survive", outages: []outage{{everyProcess, at(1), at(7)}}, lost: 1, uncaused: 1},
		{name: "a long outage", outages: []outage{{everyProcess, at(1), at(9)}}, lost: 1},
		{name: "a long outage of this process", outages: []outage{{0, at(1), at(9)}}, lost: 1},
		{name: "a long outage of another process", outages: []outage{{1, at(1), at(9)}}, lost: 1, uncaused: 1},
		{name: "a long outage afterwards", outages: []outage{{everyProcess, at(13), at(30)}}, lost: 1, uncaused: 1},
		{name: "a successor", events: []event{lease(leads, 1, 13)}, lost: 1, uncaused: 1},
		{name: "a successor that is too early", events: []event{lease(leads, 1, 11)}, lost: 1, uncaused: 1, overlaps: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := &fleet{settings: settings{processes: 2, timings: elector.Default}}
			f.events = append(test.events, lease(leads, 0, -1), lease(lost, 0, 12))
			w := &window{began: began, ended: at(60)}
			f.judge(w, test.outages)
			if len(w.lost) != test.lost || len(w.uncaused) != test.uncaused || len(w.overlaps) != test.overlaps {
				t.Errorf("%d lost, %d without cause, overlaps %q", len(w.lost), len(w.uncaused), w.overlaps)
			}
		})
	}
}

func TestQuantilesAreWithinASixteenth(t *testing.T) {
	t.Parallel()
	var c counters
	for i := range 1000 {
		c.observe(time.Duration(i+1) * time.Millisecond)
	}
	h := c.take()
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond, 1: time.Second} {
		if got := h.quantile(q); got < want || got > want*17/16 {
			t.Errorf("quantile %v is %v, not %v", q, got, want)
		}
	}
	if again := c.take(); again.count() != 0 {
		t.Errorf("%d are counted twice", again.count())
	}
	for _, d := range []time.Duration{-1, 0, 31 * time.Microsecond, 32 * time.Microsecond, time.Second, time.Hour} {
		if b := bucket(d); limit(b) < min(d, time.Minute).Truncate(time.Microsecond) {
			t.Errorf("%v is in a bucket that ends at %v", d, limit(b))
		}
	}
}
