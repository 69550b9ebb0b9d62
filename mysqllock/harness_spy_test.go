package mysqllock_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// spy notes the calls of an elector on their way to its lock, and can stand for a process that is
// paused.
type spy struct {
	resourcelock.Interface
	becameLeader, releasing func() // called before the lock is; nil: nothing

	mu      sync.Mutex
	calls   []call
	paused  chan struct{} // calls wait while it is there
	waiting int
	// pausesAfterUpdate pauses the process right after an Update succeeded.
	pausesAfterUpdate bool
}

// call is a call of an elector that has returned.
type call struct {
	name              string // get, create, update or release
	record            resourcelock.LeaderElectionRecord
	started, returned time.Time
	err               error
}

func (s *spy) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	s.wait()
	c := call{name: "get", started: time.Now()}
	var (
		record *resourcelock.LeaderElectionRecord
		raw    []byte
	)
	record, raw, c.err = s.Interface.Get(ctx)
	s.note(c)
	return record, raw, c.err
}

func (s *spy) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	s.wait()
	c := call{name: "create", record: record, started: time.Now()}
	c.err = s.Interface.Create(ctx, record)
	s.note(c)
	return c.err
}

func (s *spy) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	s.wait()
	c := call{name: "update", record: record}
	if record.HolderIdentity == "" {
		c.name = "release"
		if s.releasing != nil {
			s.releasing()
		}
	}
	c.started = time.Now()
	c.err = s.Interface.Update(ctx, record)
	s.note(c)
	return c.err
}

func (s *spy) RecordEvent(event string) {
	if event == "became leader" && s.becameLeader != nil {
		s.becameLeader()
	}
	s.Interface.RecordEvent(event)
}

func (s *spy) note(c call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.returned = time.Now()
	s.calls = append(s.calls, c)
	if c.err == nil && s.pausesAfterUpdate && (c.name == "update" || c.name == "release") {
		s.pausesAfterUpdate = false
		s.paused = make(chan struct{})
	}
}

func (s *spy) wait() {
	s.mu.Lock()
	paused := s.paused
	if paused == nil {
		s.mu.Unlock()
		return
	}
	s.waiting++
	s.mu.Unlock()
	<-paused
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting--
}

// pause stops the process, as SIGSTOP or a long garbage collection does, before its next call, and
// returns when it has stopped.
func (s *spy) pause(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	s.paused = make(chan struct{})
	s.mu.Unlock()
	eventually(t, 20*time.Second, "the process is paused", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.waiting > 0
	})
}

func (s *spy) pauseAfterUpdate(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pausesAfterUpdate = on
}

func (s *spy) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pausesAfterUpdate = false
	if s.paused != nil {
		close(s.paused)
		s.paused = nil
	}
}

func (s *spy) history() []call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// names are the calls so far.
func (s *spy) names() (names []string) {
	for _, c := range s.history() {
		names = append(names, c.name)
	}
	return names
}

// only are the calls that are wanted.
func (s *spy) only(isWanted func(call) bool) []call {
	return slices.DeleteFunc(s.history(), func(c call) bool { return !isWanted(c) })
}

// polls are how many Gets there were.
func (s *spy) polls() int { return len(s.only(func(c call) bool { return c.name == "get" })) }

// renewals are the Updates that succeeded, but for releases.
func (s *spy) renewals() []call {
	return s.only(func(c call) bool { return c.err == nil && c.name == "update" })
}

// refusals are the errors of Updates that would have held the lease.
func (s *spy) refusals() (errs []error) {
	for _, c := range s.only(func(c call) bool { return c.err != nil && c.name == "update" }) {
		errs = append(errs, c.err)
	}
	return errs
}

// renewed is when the last successful write of a lease was sent: the row can't have been written
// earlier.
func (s *spy) renewed() (last time.Time) {
	for _, c := range s.only(func(c call) bool { return c.err == nil && (c.name == "create" || c.name == "update") }) {
		last = c.started
	}
	return last
}
