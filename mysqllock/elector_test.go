package mysqllock_test

import (
	"context"
	"database/sql"
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

// electorTimings are those of one elector and, as d, of its lock's operations.
type electorTimings struct {
	lease, renewDeadline, retry time.Duration
}

// d is what WithOperationTimeout's documentation asks for.
func (e electorTimings) d() time.Duration { return (e.lease - e.renewDeadline - e.retry) / 2 }

var (
	// patient candidates act often, but a slow machine can't make them lose a
	// lease, and nobody waits long enough here for one to expire.
	patient = electorTimings{lease: time.Minute, renewDeadline: 40 * time.Second, retry: 100 * time.Millisecond}
	// hasty ones are for tests in which a lease has to expire.
	hasty = electorTimings{lease: 2 * time.Second, renewDeadline: 1200 * time.Millisecond, retry: 200 * time.Millisecond}
)

// electorPatience bounds what happens within milliseconds on an idle machine, and is
// less than half of a patient lease: what happened by then had no need of an
// expiry.
const electorPatience = 25 * time.Second

// call is one operation that an elector asked of its lock.
type call struct {
	name           string // get, create, update or release
	record         resourcelock.LeaderElectionRecord
	started, ended time.Time
	err            error
}

// spyLock notes the calls of its elector, and what the elector says of terms.
type spyLock struct {
	*mysqllock.Lock

	mu           sync.Mutex
	calls        []call
	becameLeader func()
	releasing    func()
}

func (s *spyLock) note(name string, record resourcelock.LeaderElectionRecord, started time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call{name: name, record: record, started: started, ended: time.Now(), err: err})
}

func (s *spyLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	started := time.Now()
	record, raw, err := s.Lock.Get(ctx)
	s.note("get", resourcelock.LeaderElectionRecord{}, started, err)
	return record, raw, err
}

func (s *spyLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	started := time.Now()
	err := s.Lock.Create(ctx, record)
	s.note("create", record, started, err)
	return err
}

func (s *spyLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	name := "update"
	if record.HolderIdentity == "" {
		name = "release"
		s.releasing()
	}
	started := time.Now()
	err := s.Lock.Update(ctx, record)
	s.note(name, record, started, err)
	return err
}

func (s *spyLock) RecordEvent(event string) {
	if event == "became leader" {
		s.becameLeader()
	}
	s.Lock.RecordEvent(event)
}

func (s *spyLock) history() []call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// names are the operations asked for so far.
func (s *spyLock) names() []string {
	var names []string
	for _, c := range s.history() {
		names = append(names, c.name)
	}
	return names
}

// renewed is when the last successful write of a lease was sent: the row can't
// have been written earlier.
func (s *spyLock) renewed() time.Time {
	var last time.Time
	for _, c := range s.history() {
		if c.err == nil && (c.name == "create" || c.name == "update") {
			last = c.started
		}
	}
	return last
}

// candidate is one run of the stock elector.
type candidate struct {
	*spyLock
	cancel   context.CancelFunc
	leading  chan struct{} // closed when it leads
	returned chan struct{} // closed when Run has returned

	mu sync.Mutex
	// story is what the callbacks told, in order: "started", "ended" (the
	// context of OnStartedLeading), "stopped".
	story []string
	// leaders are the identities of OnNewLeader.
	leaders []string
	// from and to are the term: from the moment that the elector knows that it
	// leads, until it stops, is told to stop or gives the lease up.
	from, to time.Time
	token    int64     // at the start of the term
	stopped  time.Time // of OnStoppedLeading
}

// begin starts an elector, which ends with the test if not before.
func begin(t testing.TB, db *sql.DB, election, identity string, timings electorTimings, releaseOnCancel bool) *candidate {
	t.Helper()
	lock := newLock(t, db, election, identity, mysqllock.WithOperationTimeout(timings.d()))
	c, err := run(lock, timings, releaseOnCancel)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	return c
}

func run(lock *mysqllock.Lock, timings electorTimings, releaseOnCancel bool) (*candidate, error) {
	c := &candidate{leading: make(chan struct{}), returned: make(chan struct{})}
	endTerm := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.to.IsZero() {
			c.to = time.Now()
		}
	}
	c.spyLock = &spyLock{Lock: lock, releasing: endTerm, becameLeader: func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.from = time.Now()
		c.token, _ = lock.FencingToken()
		close(c.leading)
	}}
	tell := func(what string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.story = append(c.story, what)
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            c.spyLock,
		Name:            lock.Describe(),
		LeaseDuration:   timings.lease,
		RenewDeadline:   timings.renewDeadline,
		RetryPeriod:     timings.retry,
		ReleaseOnCancel: releaseOnCancel,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				tell("started")
				<-ctx.Done()
				tell("ended")
			},
			OnStoppedLeading: func() {
				endTerm()
				c.mu.Lock()
				defer c.mu.Unlock()
				c.story = append(c.story, "stopped")
				c.stopped = time.Now()
			},
			OnNewLeader: func(identity string) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.leaders = append(c.leaders, identity)
			},
		},
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = func() {
		endTerm()
		cancel()
	}
	go func() {
		defer close(c.returned)
		elector.Run(ctx)
	}()
	return c, nil
}

// stop cancels the elector and waits until it has returned.
func (c *candidate) stop() {
	c.cancel()
	<-c.returned
}

func (c *candidate) told(what string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.story, what)
}

func (c *candidate) leads() bool { return c.told("started") && !c.told("stopped") }

// sawLeaders are the leaders that OnNewLeader named, but for the "" of an
// election that was seen between a release and the next term.
func (c *candidate) sawLeaders() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.leaders), func(s string) bool { return s == "" })
}

// tableRow is what the table says of an election.
type tableRow struct {
	Holder, UID string
	Version     int64
	LastUpdate  string
	Transitions int
}

func readRow(t testing.TB, db *sql.DB, election string) (r tableRow) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT leader_name, leader_uid, version, CAST(last_update AS CHAR), leader_transitions`+
		` FROM election_records WHERE election_name = ?`, election).Scan(&r.Holder, &r.UID, &r.Version, &r.LastUpdate, &r.Transitions)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// usurp makes somebody else the holder, as a candidate would do that the
// elector can't see.
func usurp(t testing.TB, db *sql.DB, election string) {
	t.Helper()
	exec(t, db, `UPDATE election_records SET leader_name = 'usurper', leader_uid = 'other', version = version + 1 WHERE election_name = ?`, election)
}

func TestALeaderAsksForOneUpdatePerRenewalAndNothingElse(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	c := begin(t, db, "ns/sequence", "a", patient, true)
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

func TestACandidateLeadsRenewsAndStopsInOrder(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	c := begin(t, db, "ns/order", "a", patient, false)
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

// The bounds below are the elector's: one RetryPeriod until it tries, then
// RenewDeadline. A lock that makes up a success, or that hangs, breaks them.
const stepDownSlack = 5 * time.Second

func expectStepDown(t *testing.T, c *candidate, since time.Time, timings electorTimings) {
	t.Helper()
	limit := timings.retry + timings.renewDeadline + stepDownSlack
	eventually(t, limit, "OnStoppedLeading", func() bool { return c.told("stopped") })
	eventually(t, electorPatience, "the end of the work's context", func() bool { return c.told("ended") })
	c.mu.Lock()
	defer c.mu.Unlock()
	t.Logf("stepped down after %v; retry period and renew deadline are %v", c.stopped.Sub(since), timings.retry+timings.renewDeadline)
}

func TestALeaderWhoseRowWasTakenStepsDownAndLeavesTheRow(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	timings := electorTimings{lease: 4 * time.Second, renewDeadline: 1500 * time.Millisecond, retry: 200 * time.Millisecond}
	c := begin(t, db, "ns/taken", "a", timings, true)
	eventually(t, electorPatience, "leading", c.leads)
	usurp(t, db, "ns/taken")
	taken := readRow(t, db, "ns/taken")
	expectStepDown(t, c, time.Now(), timings)
	<-c.returned
	if diff := cmp.Diff(taken, readRow(t, db, "ns/taken")); diff != "" {
		t.Errorf("the deposed leader changed its successor's row (-want +got):\n%s", diff)
	}
}

func TestALeaderThatTheServerRefusesStepsDown(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	user := "u" + config.DBName[max(0, len(config.DBName)-20):]
	exec(t, db, fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY 'Secret-1'", user))
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), fmt.Sprintf("DROP USER '%s'@'%%'", user)); err != nil {
			t.Error(err)
		}
	})
	for _, table := range []string{"election_records", "election_fences"} {
		exec(t, db, fmt.Sprintf("GRANT SELECT, INSERT, UPDATE ON `%s`.%s TO '%s'@'%%'", config.DBName, table, user))
	}
	restricted := config.Clone()
	restricted.User, restricted.Passwd = user, "Secret-1"
	timings := electorTimings{lease: 4 * time.Second, renewDeadline: 1500 * time.Millisecond, retry: 200 * time.Millisecond}
	c := begin(t, open(t, restricted), "ns/refused", "a", timings, true)
	eventually(t, electorPatience, "leading", c.leads)
	exec(t, db, fmt.Sprintf("REVOKE SELECT, INSERT, UPDATE ON `%s`.election_records FROM '%s'@'%%'", config.DBName, user))
	since := time.Now()
	before := readRow(t, db, "ns/refused")
	expectStepDown(t, c, since, timings)
	<-c.returned
	// Not compared by version: a renewal may have been under way.
	if after := readRow(t, db, "ns/refused"); after.Holder != "a" || after.UID != before.UID {
		t.Errorf("a leader that the server refuses changed the row from %+v to %+v", before, after)
	}
}

func TestAFollowerTakesOverFromAVanishedLeaderOnlyWhenTheLeaseHasPassed(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	first := begin(t, db, "ns/vanished", "a", hasty, false)
	eventually(t, electorPatience, "the first leads", first.leads)
	second := begin(t, db, "ns/vanished", "b", hasty, false)
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

func TestARenewedLeaseIsNotTakenOver(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	// Twice the lease is watched. A leader that is too slow to renew may lose
	// it honestly: then its own last renewal is a lease old.
	first := begin(t, db, "ns/renewed", "a", hasty, false)
	eventually(t, electorPatience, "the first leads", first.leads)
	second := begin(t, db, "ns/renewed", "b", hasty, false)
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

func TestAReleasedElectionIsLedByAFollowerWithoutWaitingForTheLease(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	first := begin(t, db, "ns/released", "a", patient, true)
	eventually(t, electorPatience, "the first leads", first.leads)
	first.stop()
	released := readRow(t, db, "ns/released")
	if released.Holder != "" || released.UID != "" || released.Transitions != 0 {
		t.Errorf("the released row is %+v", released)
	}

	second := begin(t, db, "ns/released", "b", patient, true)
	eventually(t, electorPatience, "the second leads", second.leads)
	third := begin(t, db, "ns/released", "c", patient, true)
	eventually(t, electorPatience, "the third sees the second", func() bool { return slices.Contains(third.sawLeaders(), "b") })
	second.stop()
	eventually(t, electorPatience, "the waiting third leads", third.leads)
	if row := readRow(t, db, "ns/released"); row.Holder != "c" || row.Transitions != 2 {
		t.Errorf("the row of the third leader is %+v", row)
	}
}

func TestFollowersLearnWhoLeads(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	a := begin(t, db, "ns/learn", "ä/1", patient, true)
	eventually(t, electorPatience, "the first leads", a.leads)
	followers := map[string]*candidate{}
	for _, identity := range []string{"b", "c", "d"} {
		followers[identity] = begin(t, db, "ns/learn", identity, patient, true)
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

// The record's JSON has whole seconds, and followers take its bytes for the
// only sign of life: a leader that renews twice within a second would look dead.
func TestEachRenewalChangesTheBytesThatFollowersWatch(t *testing.T) {
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

// A term is counted from the elector's "became leader", which comes before
// OnStartedLeading, to the first of: the cancellation, the release,
// OnStoppedLeading. client-go releases before it calls OnStoppedLeading, so that
// the callbacks alone can overlap even where the leases don't.
func TestTermsDoNotOverlapWhenFiveCandidatesComeAndGo(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	// Leases are long for their renew deadline: five candidates in one slow
	// process may be held up for a second.
	timings := electorTimings{lease: 4 * time.Second, renewDeadline: time.Second, retry: 100 * time.Millisecond}
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
		lock := newLock(t, db, "ns/churn", identity, mysqllock.WithOperationTimeout(timings.d()))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !enough() {
				if random.IntN(2) == 0 { // the process was restarted
					var err error
					lock, err = mysqllock.New(db, "ns/churn", resourcelock.ResourceLockConfig{Identity: identity}, mysqllock.WithOperationTimeout(timings.d()))
					if err != nil {
						t.Error(err)
						return
					}
				}
				vanish := random.IntN(4) == 0
				c, err := run(lock, timings, !vanish)
				if err != nil {
					t.Error(err)
					return
				}
				// A follower has to watch for a whole lease before it may take
				// over, so that most of them stay for longer.
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
