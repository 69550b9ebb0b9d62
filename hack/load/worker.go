package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/machine"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// workerArgument makes this program a worker: one process that holds a share of all candidates. It reads its orders and
// then commands from stdin, one a line, and writes events to stdout. It ends when stdin does.
const workerArgument = "worker"

// orders are what a worker is told first.
type orders struct {
	DSN                         string
	Process, Processes          int
	Elections, Candidates, Pool int
	Timings                     elector.Timings
	Spread                      time.Duration
	Batch                       bool
	Profiles                    string
}

// The commands.
const (
	begin = "begin" // a window of measurement
	end   = "end"   // of that window; the answer is an event with figures
)

// event is what a worker says.
type event struct {
	Kind                string
	Election, Candidate int
	Time                time.Time
	Figures             *figures `json:",omitempty"`
}

// The kinds of events.
const (
	leads    = "leads"    // a candidate, since Time
	lost     = "lost"     // a candidate's lease, which nobody asked it to give up
	measured = "measured" // a window
)

// figures are what a worker measured in a window.
type figures struct {
	Duration        time.Duration
	Renewals, Polls histogram
	Timeouts        int64 // operations that had no answer in time
	Conflicts       int64 // compare-and-swaps that were lost
	Failures        int64 // other operations that failed
	CPU             time.Duration
	Starved         time.Duration // the longest time for which this process didn't run
	Heap, Stack     int64         // bytes, after a garbage collection, of all candidates together
	Goroutines      int           // of all candidates together
	Connections     int
	PoolWaits       int64
	PoolWait        time.Duration
}

type worker struct {
	orders

	db    *sql.DB
	batch mysqllock.Batch
	say   func(event)

	renewals, polls               counters
	timeouts, conflicts, failures atomic.Int64
	starved                       atomic.Int64 // ns

	idle                usage // before there was any candidate
	idleHeap, idleStack int64
	began               usage // of the window
	cpuProfile          *os.File
}

// usage is what this process has used by a moment.
type usage struct {
	at         time.Time
	cpu        time.Duration
	goroutines int
	pool       sql.DBStats
}

func usageNow(db *sql.DB) usage {
	return usage{at: time.Now(), cpu: machine.OwnCPU(), goroutines: runtime.NumGoroutine(), pool: db.Stats()}
}

// memory is what lives on the heap, and what stacks take, in bytes.
func memory() (heap, stack int64) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(m.StackInuse) //nolint:gosec // far from the limit
}

func runWorker(commands io.Reader, events io.Writer) error {
	klog.SetLogger(logr.Discard()) // electors say much while everything fails
	_ = mysql.SetLogger(&mysql.NopLogger{})
	var mu sync.Mutex
	encoder := json.NewEncoder(events)
	w := &worker{say: func(e event) {
		mu.Lock()
		defer mu.Unlock()
		_ = encoder.Encode(e) // the one who listens may be gone
	}}
	told := json.NewDecoder(commands)
	if err := told.Decode(&w.orders); err != nil {
		return fmt.Errorf("orders: %w", err)
	}
	config, err := mysql.ParseDSN(w.DSN)
	if err != nil {
		return err
	}
	if w.db, err = mysqllock.Open(config); err != nil {
		return err
	}
	defer func() { _ = w.db.Close() }() // after the electors
	w.db.SetMaxOpenConns(w.Pool)
	w.db.SetMaxIdleConns(w.Pool) // else it opens and closes connections all the time
	w.idle = usageNow(w.db)
	w.idleHeap, w.idleStack = memory()

	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { w.watchClock(ctx) })
	defer all.Wait()
	defer stop()
	for election := range w.Elections {
		for candidate := range w.Candidates {
			if (election+candidate)%w.Processes == w.Process {
				all.Go(func() { w.compete(ctx, election, candidate) })
			}
		}
	}
	for {
		var command string
		if err := told.Decode(&command); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		switch command {
		case begin:
			err = w.begin()
		case end:
			err = w.end()
		}
		if err != nil {
			return err
		}
	}
}

// newLock is the lock of a candidate.
func (w *worker) newLock(election, candidate int) (*mysqllock.Lock, error) {
	options := []mysqllock.Option{w.Timings.Option()}
	if w.Batch {
		options = append(options, mysqllock.WithBatch(&w.batch))
	}
	return mysqllock.New(w.db, fmt.Sprintf("load/election-%05d", election),
		resourcelock.ResourceLockConfig{Identity: fmt.Sprintf("candidate-%d", candidate)}, options...)
}

// compete runs a candidate until ctx ends.
func (w *worker) compete(ctx context.Context, election, candidate int) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(rand.N(w.Spread)): //nolint:gosec // a pace, not a secret
	}
	lock, err := w.newLock(election, candidate)
	if err != nil {
		panic(err) // nothing of it comes from outside
	}
	watched := &watchedLock{Lock: lock, worker: w, campaign: ctx, election: election, candidate: candidate}
	callbacks := leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) {}, OnStoppedLeading: func() {}}
	for ctx.Err() == nil {
		e, err := w.Timings.New(watched, callbacks)
		if err != nil {
			panic(err) // nothing of it comes from outside
		}
		e.Run(ctx)
	}
}

// watchedLock counts for the worker what its elector does.
type watchedLock struct {
	*mysqllock.Lock

	worker              *worker
	campaign            context.Context //nolint:containedctx // that of compete, to know whether the elector was asked to end
	election, candidate int
}

func (l *watchedLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	began := time.Now()
	record, raw, err := l.Lock.Get(ctx)
	l.watch(began, &l.worker.polls, err)
	return record, raw, err
}

func (l *watchedLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	began := time.Now()
	err := l.Lock.Create(ctx, record)
	l.watch(began, nil, err)
	return err
}

func (l *watchedLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	began := time.Now()
	err := l.Lock.Update(ctx, record)
	if record.HolderIdentity == "" || record.AcquireTime.Equal(&record.RenewTime) {
		l.watch(began, nil, err) // a release, or a takeover
	} else {
		l.watch(began, &l.worker.renewals, err)
	}
	return err
}

// RecordEvent is called by the elector itself, before it does anything else.
func (l *watchedLock) RecordEvent(what string) {
	e := event{Kind: leads, Election: l.election, Candidate: l.candidate, Time: time.Now()}
	if what != "became leader" {
		e.Kind = lost
	}
	if e.Kind == leads || l.campaign.Err() == nil {
		l.worker.say(e)
	}
	l.Lock.RecordEvent(what)
}

func (l *watchedLock) watch(began time.Time, times *counters, err error) {
	took := time.Since(began)
	switch w := l.worker; {
	case err == nil:
		if times != nil {
			times.observe(took)
		}
	case l.campaign.Err() != nil, apierrors.IsNotFound(err), apierrors.IsAlreadyExists(err): // expected
	case apierrors.IsConflict(err):
		w.conflicts.Add(1)
	case errors.Is(err, context.DeadlineExceeded):
		w.timeouts.Add(1)
	default:
		w.failures.Add(1)
	}
}

// watchClock finds out for how long this process did not run.
func (w *worker) watchClock(ctx context.Context) {
	const pace = 20 * time.Millisecond
	machine.WatchStalls(ctx, pace, func(passed time.Duration) {
		w.starved.Store(max(w.starved.Load(), int64(passed-pace)))
	})
}

func (w *worker) begin() error {
	if w.Profiles != "" {
		runtime.SetMutexProfileFraction(100)
		file, err := w.profile("cpu")
		if err != nil {
			return err
		}
		w.cpuProfile = file // until end
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
	}
	w.began = usageNow(w.db)
	w.renewals.take()
	w.polls.take()
	for _, n := range []*atomic.Int64{&w.timeouts, &w.conflicts, &w.failures, &w.starved} {
		n.Store(0)
	}
	return nil
}

func (w *worker) end() error {
	now := usageNow(w.db)
	f := &figures{
		Duration: now.at.Sub(w.began.at),
		Renewals: w.renewals.take(), Polls: w.polls.take(),
		Timeouts: w.timeouts.Load(), Conflicts: w.conflicts.Load(), Failures: w.failures.Load(),
		CPU: now.cpu - w.began.cpu, Starved: time.Duration(w.starved.Load()),
		Connections: now.pool.OpenConnections,
		PoolWaits:   now.pool.WaitCount - w.began.pool.WaitCount, PoolWait: now.pool.WaitDuration - w.began.pool.WaitDuration,
		Goroutines: now.goroutines - w.idle.goroutines,
	}
	if w.Profiles != "" {
		pprof.StopCPUProfile()
		files := []*os.File{w.cpuProfile}
		for _, name := range []string{"mutex", "heap"} {
			file, err := w.profile(name)
			if err != nil {
				return err
			}
			if err := pprof.Lookup(name).WriteTo(file, 0); err != nil {
				return err
			}
			files = append(files, file)
		}
		for _, file := range files {
			if err := file.Close(); err != nil {
				return err
			}
		}
	}
	// After the window, as it collects the garbage.
	heap, stack := memory()
	f.Heap, f.Stack = heap-w.idleHeap, stack-w.idleStack
	w.say(event{Kind: measured, Figures: f})
	return nil
}

func (w *worker) profile(name string) (*os.File, error) {
	return os.Create(filepath.Join(w.Profiles, fmt.Sprintf("%s-%d-%d.pprof", name, w.Elections, w.Process)))
}
