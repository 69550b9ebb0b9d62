package mysqllock_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

func TestElectorAsksForOneUpdatePerRenewalAndNothingElse(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	c := begin(t, db, "ns/sequence", "a", patient, releasing)
	const count = 7
	eventually(t, electorPatience, "seven operations", func() bool { return len(c.names()) >= count })
	want := []string{"get", "create", "update", "update", "update", "update", "update"}
	if diff := cmp.Diff(want, c.names()[:count]); diff != "" {
		t.Errorf("operations of a leader on an empty election (-want +got):\n%s", diff)
	}
	c.stop()
	names := c.names()
	if last := names[len(names)-1]; last != "release" {
		t.Errorf("the last operation is %s, not release", last)
	}
	for _, call := range c.history()[1:] {
		if call.err != nil {
			t.Errorf("%s: %v", call.name, call.err)
		}
	}
}

func TestElectorLeadsRenewsAndStopsInOrder(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	c := begin(t, db, "ns/order", "a", patient)
	eventually(t, electorPatience, "leading", c.leads)
	first := readRow(t, db, "ns/order")
	if first.Holder != "a" || first.UID == "" || first.Transitions != 0 {
		t.Errorf("the row of the first leader is %+v", first)
	}
	// Two renewals: what is written at the first sight may still be the takeover.
	last := first
	for range 2 {
		before := last
		eventually(t, electorPatience, "a renewal that changes version and last_update", func() bool {
			last = readRow(t, db, "ns/order")
			return last.Version > before.Version && last.LastUpdate > before.LastUpdate
		})
	}
	if last.Holder != first.Holder || last.UID != first.UID || last.Transitions != first.Transitions {
		t.Errorf("a renewal changed %+v to %+v", first, last)
	}
	if c.told("ended") || c.told("stopped") {
		t.Error("the term ended by itself")
	}
	c.stop()
	eventually(t, electorPatience, "the end of the work's context", func() bool { return c.told("ended") })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.story[0] != "started" || len(c.story) != 3 {
		t.Errorf("the callbacks told %v", c.story)
	}
}

// The bounds below are the elector's: one RetryPeriod until it tries, then RenewDeadline. A lock
// that makes up a success, or that hangs, breaks them.
const stepDownSlack = 5 * time.Second

func expectStepDown(t *testing.T, c *candidate, since time.Time, timings cadence) {
	t.Helper()
	limit := timings.retry + timings.renewDeadline + stepDownSlack
	eventually(t, limit, "OnStoppedLeading", func() bool { return c.told("stopped") })
	eventually(t, electorPatience, "the end of the work's context", func() bool { return c.told("ended") })
	c.mu.Lock()
	defer c.mu.Unlock()
	t.Logf("stepped down after %v; retry period and renew deadline are %v", c.stopped.Sub(since), timings.retry+timings.renewDeadline)
}

func TestElectorWhoseRowWasTakenStepsDownAndLeavesTheRow(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	timings := cadence{lease: 4 * time.Second, renewDeadline: 1500 * time.Millisecond, retry: 200 * time.Millisecond}
	c := begin(t, db, "ns/taken", "a", timings, releasing)
	eventually(t, electorPatience, "leading", c.leads)
	usurp(t, db, "ns/taken")
	taken := readRow(t, db, "ns/taken")
	expectStepDown(t, c, time.Now(), timings)
	<-c.ended
	if diff := cmp.Diff(taken, readRow(t, db, "ns/taken")); diff != "" {
		t.Errorf("the deposed leader changed its successor's row (-want +got):\n%s", diff)
	}
}

func TestElectorThatTheServerRefusesStepsDown(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	restricted := newAccount(t, config, ordinary...)
	timings := cadence{lease: 4 * time.Second, renewDeadline: 1500 * time.Millisecond, retry: 200 * time.Millisecond}
	c := begin(t, open(t, restricted), "ns/refused", "a", timings, releasing)
	eventually(t, electorPatience, "leading", c.leads)
	exec(t, db, fmt.Sprintf("REVOKE SELECT, INSERT, UPDATE ON `%s`.election_records FROM '%s'@'%%'", config.DBName, restricted.User))
	since := time.Now()
	before := readRow(t, db, "ns/refused")
	expectStepDown(t, c, since, timings)
	<-c.ended
	// Not compared by version: a renewal may have been under way.
	if after := readRow(t, db, "ns/refused"); after.Holder != "a" || after.UID != before.UID {
		t.Errorf("a leader that the server refuses changed the row from %+v to %+v", before, after)
	}
}

func TestElectorTakesOverFromAVanishedLeaderOnlyWhenTheLeaseHasPassed(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	first := begin(t, db, "ns/vanished", "a", hasty)
	eventually(t, electorPatience, "the first leads", first.leads)
	second := begin(t, db, "ns/vanished", "b", hasty)
	eventually(t, electorPatience, "the second sees the first", func() bool { return len(second.sawLeaders()) > 0 })
	first.stop()
	eventually(t, 2*electorPatience, "the second leads", second.leads)
	i := slices.IndexFunc(second.history(), func(c call) bool { return c.name != "get" && c.err == nil })
	took := second.history()[i]
	if waited := took.started.Sub(first.renewed()); waited < hasty.lease {
		t.Errorf("taken over %v after the last renewal, before the lease of %v had passed", waited, hasty.lease)
	}
	row := readRow(t, db, "ns/vanished")
	if row.Holder != "b" || row.Transitions != 1 {
		t.Errorf("the row after the takeover is %+v", row)
	}
	if took.name != "update" {
		t.Errorf("taken over by %s", took.name)
	}
}

func TestElectorTakesNoRenewedLeaseOver(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	// Twice the lease is watched. A leader that is too slow to renew may lose it honestly: then its
	// own last renewal is a lease old.
	first := begin(t, db, "ns/renewed", "a", hasty)
	eventually(t, electorPatience, "the first leads", first.leads)
	second := begin(t, db, "ns/renewed", "b", hasty)
	eventually(t, electorPatience, "two leases have passed or the second leads", func() bool {
		names := second.history()
		return second.leads() || len(names) > 0 && time.Since(names[0].started) > 2*hasty.lease
	})
	if second.leads() {
		i := slices.IndexFunc(second.history(), func(c call) bool { return c.name != "get" && c.err == nil })
		if waited := second.history()[i].started.Sub(first.renewed()); waited < hasty.lease {
			t.Errorf("taken over %v after a renewal", waited)
		}
	}
}

func TestElectorLeadsAReleasedElectionWithoutWaitingForTheLease(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	first := begin(t, db, "ns/released", "a", patient, releasing)
	eventually(t, electorPatience, "the first leads", first.leads)
	first.stop()
	released := readRow(t, db, "ns/released")
	if released.Holder != "" || released.UID != "" || released.Transitions != 0 {
		t.Errorf("the released row is %+v", released)
	}

	second := begin(t, db, "ns/released", "b", patient, releasing)
	eventually(t, electorPatience, "the second leads", second.leads)
	third := begin(t, db, "ns/released", "c", patient, releasing)
	eventually(t, electorPatience, "the third sees the second", func() bool { return slices.Contains(third.sawLeaders(), "b") })
	second.stop()
	eventually(t, electorPatience, "the waiting third leads", third.leads)
	if row := readRow(t, db, "ns/released"); row.Holder != "c" || row.Transitions != 2 {
		t.Errorf("the row of the third leader is %+v", row)
	}
}

func TestElectorsOfFollowersLearnWhoLeads(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	a := begin(t, db, "ns/learn", "ä/1", patient, releasing)
	eventually(t, electorPatience, "the first leads", a.leads)
	followers := map[string]*candidate{}
	for _, identity := range []string{"b", "c", "d"} {
		followers[identity] = begin(t, db, "ns/learn", identity, patient, releasing)
	}
	for identity, c := range followers {
		eventually(t, electorPatience, identity+" sees the first leader", func() bool { return len(c.sawLeaders()) == 1 })
	}
	a.stop()
	var second string
	eventually(t, electorPatience, "one of the followers leads", func() bool {
		for identity, c := range followers {
			if c.leads() {
				second = identity
			}
		}
		return second != ""
	})
	for identity, c := range followers {
		eventually(t, electorPatience, identity+" sees the second leader", func() bool { return len(c.sawLeaders()) == 2 })
		if diff := cmp.Diff([]string{"ä/1", second}, c.sawLeaders()); diff != "" {
			t.Errorf("leaders seen by %s (-want +got):\n%s", identity, diff)
		}
	}
	if diff := cmp.Diff([]string{"ä/1"}, a.sawLeaders()); diff != "" {
		t.Errorf("leaders seen by the first (-want +got):\n%s", diff)
	}
}

// The record's JSON has whole seconds, and followers take its bytes for the only sign of life: a
// leader that renews twice within a second would look dead.
func TestElectorsOfFollowersWatchBytesThatEachRenewalChanges(t *testing.T) {
	db, _ := newTables(t)
	leader := newLock(t, db, "ns/bytes", "a")
	follower := newLock(t, db, "ns/bytes", "b")
	same := record("a")
	if err := leader.Create(t.Context(), same); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 5 {
		_, raw, err := follower.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if seen[string(raw)] {
			t.Errorf("a renewal left the bytes as they were: %s", raw)
		}
		seen[string(raw)] = true
		_, again, err := follower.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if string(again) != string(raw) {
			t.Errorf("without a renewal the bytes changed from %s to %s", raw, again)
		}
		// Not even its microseconds differ.
		if err := leader.Update(t.Context(), same); err != nil {
			t.Fatal(err)
		}
	}
}

// term is the time in which a candidate could believe in its lead.
type term struct {
	who      string
	from, to time.Time
	token    int64
	renewed  time.Time // for the last time
	vanished bool      // ended without a release
}

// A term is counted from the elector's "became leader", which comes before OnStartedLeading, to the
// first of: the cancellation, the release, OnStoppedLeading. client-go releases before it calls
// OnStoppedLeading, so that the callbacks alone can overlap even where the leases don't.
func TestElectorsOfFiveCandidatesThatComeAndGoNeverOverlap(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	// Leases are long for their renew deadline: five candidates in one slow process may be held up
	// for a second.
	timings := cadence{lease: 4 * time.Second, renewDeadline: time.Second, retry: 100 * time.Millisecond}
	var (
		mu                 sync.Mutex
		terms              []term
		released, vanished int
		wg                 sync.WaitGroup
	)
	end := time.Now().Add(2 * electorPatience)
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return released >= 8 && vanished >= 2 || time.Now().After(end)
	}
	for i := range 5 {
		identity := fmt.Sprintf("candidate-%d", i)
		random := rand.New(rand.NewPCG(1, uint64(i)))
		lock := newLock(t, db, "ns/churn", identity, mysqllock.WithOperationTimeout(timings.operationTimeout()))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !enough() {
				if random.IntN(2) == 0 { // the process was restarted
					var err error
					lock, err = mysqllock.New(db, "ns/churn", resourcelock.ResourceLockConfig{Identity: identity}, mysqllock.WithOperationTimeout(timings.operationTimeout()))
					if err != nil {
						t.Error(err)
						return
					}
				}
				vanish := random.IntN(4) == 0
				c, err := run(lock, timings, func(c *campaign) { c.ReleaseOnCancel = !vanish })
				if err != nil {
					t.Error(err)
					return
				}
				// A follower has to watch for a whole lease before it may take over, so that most
				// of them stay for longer.
				follow := time.NewTimer(time.Duration(2000+random.IntN(10000)) * time.Millisecond)
				select {
				case <-c.leading:
					<-time.After(time.Duration(random.IntN(800)) * time.Millisecond) // a term of any length
				case <-follow.C:
				}
				follow.Stop()
				c.stop()
				// Somebody else's turn: retries of the others are 100 ms apart.
				<-time.After(time.Duration(random.IntN(400)) * time.Millisecond)
				if c.from.IsZero() {
					continue
				}
				mu.Lock()
				terms = append(terms, term{who: identity, from: c.from, to: c.to, token: c.token, renewed: c.renewed(), vanished: vanish})
				if vanish {
					vanished++
				} else {
					released++
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	slices.SortFunc(terms, func(a, b term) int { return a.from.Compare(b.from) })
	who := map[string]int{}
	for i, next := range terms {
		who[next.who]++
		if i == 0 {
			continue
		}
		last := terms[i-1]
		if next.from.Before(last.to) {
			t.Errorf("the terms of %s and then %s overlap by %v", last.who, next.who, last.to.Sub(next.from))
		}
		if next.token <= last.token {
			t.Errorf("the fencing token of %s is %d, after %d of %s", next.who, next.token, last.token, last.who)
		}
		if waited := next.from.Sub(last.renewed); last.vanished && next.who != last.who && waited < timings.lease {
			t.Errorf("%s led %v after the last renewal of %s, which had vanished without a release", next.who, waited, last.who)
		}
	}
	t.Logf("%d terms, %d released, %d vanished; of each candidate: %v", len(terms), released, vanished, who)
	if released < 8 || vanished < 2 {
		t.Errorf("only %d terms ended by a release and %d without one", released, vanished)
	}
}

// One Lock serves one elector after the other. Whatever the last run ended by, the next one can
// lead again, with a larger token; between them there is none.
func TestElectorRunAfterRunMayHaveOneLock(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	newLedger(t, a.config)
	o := a.hold(t, true, hasty, runAfterRun, unbroken)
	t.Logf("HAZARD | j: one Lock for run after run | | %s", o.note)
}

func runAfterRun(c *contest) hazardResult {
	work := c.arena.db
	lock := c.lock(c.proxied(), "again")
	own := lock.Interface.(*mysqllock.Lock)
	other := newLock(c, c.db, c.election, "other")
	largest := int64(0)
	endings := []string{"release", "no release", "no release", "deposed", "cut off", "row deleted", "release"}
	for _, ending := range endings {
		if _, held := own.FencingToken(); held {
			c.Fatalf("before %q: a token is held, and nobody leads", ending)
		}
		if err := own.Transact(c.Context(), work, nil, inserting(ending)); !errors.Is(err, mysqllock.ErrNotLeader) {
			c.Errorf("before %q: error %v, want ErrNotLeader", ending, err)
		}
		how := func(config *campaign) { config.ReleaseOnCancel = ending == "release" }
		run := c.run(lock, how)
		run.mustLead(c, c.pace.takeoverWithin())
		token, held := own.FencingToken()
		if !held || token <= largest {
			c.Errorf("%q: token %d (held: %t) after %d", ending, token, held, largest)
		}
		largest = token
		run.mustRenew(c, 2)
		if again, held := own.FencingToken(); again != token || !held {
			c.Errorf("%q: the token of the term changed from %d to %d (held: %t)", ending, token, again, held)
		}
		switch ending {
		case "deposed":
			takeOver(c, other)
			token, _ := other.FencingToken()
			largest = max(largest, token)
			run.mustEnd(c) // as it can't renew
			if err := other.Update(c.Context(), record("")); err != nil {
				c.Fatal(err)
			}
		case "cut off":
			c.network.blackHole()
			run.mustEnd(c)
			c.network.forward()
		case "row deleted":
			run.pause(c)
			exec(c, c.db, `DELETE FROM election_records WHERE election_name = ?`, c.election)
			run.cancel()
			run.resume()
			run.mustEnd(c)
		default:
			run.stop()
		}
	}
	wantLedger(c, work)
	return hazardResult{note: fmt.Sprintf("%d terms, each with a larger token", len(endings))}
}

// WithTimings leaves an operation little time, but not so little that an outage of a third of the
// lease costs it.
func TestElectorKeepsItsLeaseThroughAnOutageOfAThirdOfIt(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	var tests []test
	for _, p := range []cadence{
		{6 * time.Second, 4 * time.Second, 800 * time.Millisecond},
		defaults,
	} {
		tests = append(tests, test{fmt.Sprintf("%v, %v, %v", p.lease, p.renewDeadline, p.retry), func(t *testing.T) {
			o := a.hold(t, true, p, outage, unbroken)
			t.Logf("HAZARD | k: an outage of %v, with a lease of %v | | %v", p.lease/3, p.lease, o)
		}})
	}
	together(t, tests...)
}

// electorMetrics is where client-go's electors of this process report to, as to Prometheus in a
// real one: by the elector's name, which is the lock's.
var electorMetrics = &metricsProvider{leads: map[string]bool{}, slow: map[string]int{}}

type metricsProvider struct {
	mu    sync.Mutex
	leads map[string]bool
	slow  map[string]int
}

func (m *metricsProvider) NewLeaderMetric() leaderelection.LeaderMetric { return m }

func (m *metricsProvider) On(name string) { m.set(name, true) }

func (m *metricsProvider) Off(name string) { m.set(name, false) }

func (m *metricsProvider) set(name string, leads bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leads[name] = leads
}

func (m *metricsProvider) SlowpathExercised(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow[name]++
}

// of are leader_election_master_status and leader_election_slowpath_total.
func (m *metricsProvider) of(name string) (known, leads bool, slow int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	leads, known = m.leads[name]
	return known, leads, m.slow[name]
}

func TestElectorsMetricsShowWhoLeadsAndWhichRenewalsNeededAnotherLook(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	const election = "metrics of the elector"
	name := newLock(t, db, election, "a").Describe()
	c := begin(t, db, election, "a", hasty, releasing)
	eventually(t, electorPatience, "the metric says that it leads", func() bool { _, leads, _ := electorMetrics.of(name); return leads })
	// As a renewal does that was given up and is applied all the same.
	exec(t, db, `UPDATE election_records SET version = version + 1 WHERE election_name = ?`, election)
	eventually(t, electorPatience, "the renewal that met this is counted", func() bool { _, _, slow := electorMetrics.of(name); return slow > 0 })
	usurp(t, db, election)
	<-c.ended // it can't renew
	if known, leads, _ := electorMetrics.of(name); !known || leads {
		t.Errorf("after the loss: known %t, leads %t", known, leads)
	}
}

// The first provider counts, and only for electors made afterwards.
func init() { leaderelection.SetProvider(electorMetrics) }
