package mysqllock_test

import (
	"context"
	"database/sql"
	"slices"
	"sync"
	"testing"
	"time"

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
	// patient candidates act often, but a slow machine can't make them lose a lease, and nobody
	// waits long enough here for one to expire.
	patient = electorTimings{lease: time.Minute, renewDeadline: 40 * time.Second, retry: 100 * time.Millisecond}
	// hasty ones are for tests in which a lease has to expire.
	hasty = electorTimings{lease: 2 * time.Second, renewDeadline: 1200 * time.Millisecond, retry: 200 * time.Millisecond}
)

// electorPatience bounds what happens within milliseconds on an idle machine, and is less than half
// of a patient lease: what happened by then had no need of an expiry.
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

// renewed is when the last successful write of a lease was sent: the row can't have been written
// earlier.
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
	// story is what the callbacks told, in order: "started", "ended" (the context of
	// OnStartedLeading), "stopped".
	story []string
	// leaders are the identities of OnNewLeader.
	leaders []string
	// from and to are the term: from the moment that the elector knows that it leads, until it
	// stops, is told to stop or gives the lease up.
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

// sawLeaders are the leaders that OnNewLeader named, but for the "" of an election that was seen
// between a release and the next term.
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

// term is the time in which a candidate could believe in its lead.
type term struct {
	who      string
	from, to time.Time
	token    int64
	renewed  time.Time // for the last time
	vanished bool      // ended without a release
}
