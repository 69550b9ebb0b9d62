package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/faults"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// outage is a time for which a process could not reach the server, or did not run.
type outage struct {
	process      int // everyProcess: all of them
	began, ended time.Time
}

const everyProcess = -1

// breakage is a way to break something for d and to heal it. Those of the server hit all processes, and have no w.
type breakage struct {
	kind   string
	inject func(ctx context.Context, f *fleet, w *workerProcess, d time.Duration) error
}

// fault is a breakage that is planned, and what it came to.
type fault struct {
	breakage
	outage

	planned time.Duration
}

func (f *fault) happen(ctx context.Context, all *fleet) error {
	var w *workerProcess
	if f.process != everyProcess {
		w = all.workers[f.process]
	}
	f.began = time.Now()
	err := f.inject(ctx, all, w, f.planned)
	f.ended = time.Now()
	if err != nil {
		return fmt.Errorf("%s: %w", f.kind, err)
	}
	return nil
}

const serverPaused = "server paused"

var serverFaults = []breakage{
	{serverPaused, func(ctx context.Context, f *fleet, _ *workerProcess, d time.Duration) error {
		return faults.Freeze(ctx, f.server, d)
	}},
	{"server killed (-9) and restarted", func(ctx context.Context, f *fleet, _ *workerProcess, _ time.Duration) error {
		return faults.Restart(ctx, f.server, (*mysqltest.Server).Kill, 0)
	}},
	{"table locked by another session", func(ctx context.Context, f *fleet, _ *workerProcess, d time.Duration) error {
		conn, err := f.admin.Conn(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }() // back to the pool
		if _, err := conn.ExecContext(ctx, "LOCK TABLES election_records WRITE"); err != nil {
			return err
		}
		wait.For(ctx, d)
		_, err = conn.ExecContext(context.WithoutCancel(ctx), "UNLOCK TABLES")
		return err
	}},
	{"all connections killed", func(ctx context.Context, f *fleet, _ *workerProcess, _ time.Duration) error {
		return f.killConnections(ctx, 1)
	}},
}

var processFaults = []breakage{
	{"network of a process black-holed, then delivered", func(ctx context.Context, _ *fleet, w *workerProcess, d time.Duration) error {
		faults.Break(ctx, w.proxy, mysqltest.Network{HoldRequests: true, HoldReplies: true}, d, false)
		return nil
	}},
	{"network of a process refused", func(ctx context.Context, _ *fleet, w *workerProcess, d time.Duration) error {
		faults.Break(ctx, w.proxy, mysqltest.Network{Refuse: true}, d, false)
		return nil
	}},
	{"process paused", func(ctx context.Context, _ *fleet, w *workerProcess, d time.Duration) error {
		if err := w.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		wait.For(ctx, d)
		return w.Signal(syscall.SIGCONT)
	}},
}

// round is one fault of the server, or one for each of up to half of the processes.
func (s settings) round(random *rand.Rand) []*fault {
	var all []*fault
	if random.IntN(2) == 0 {
		all = append(all, &fault{outage: outage{process: everyProcess}, breakage: serverFaults[random.IntN(len(serverFaults))]})
	} else {
		for _, process := range random.Perm(s.processes)[:1+random.IntN((s.processes+1)/2)] {
			all = append(all, &fault{outage: outage{process: process}, breakage: processFaults[random.IntN(len(processFaults))]})
		}
	}
	for _, f := range all {
		f.planned = s.outage/4 + time.Duration(random.Int64N(int64(s.outage*3/4)))
	}
	return all
}

// torment injects faults for the window, round by round. All the time, besides, somebody kills a few connections. Between
// two rounds is the time for one renewal.
func (f *fleet) torment(ctx context.Context, counts map[string]int) (outages []outage, err error) {
	random := rand.New(rand.NewPCG(f.seed, f.seed)) //nolint:gosec // a schedule that replays
	deadline := time.Now().Add(f.window)
	killing, stopKilling := context.WithCancel(ctx)
	killed := make(chan int)
	go func() {
		n := 0
		for ; killing.Err() == nil; wait.For(killing, time.Second) {
			if f.killConnections(killing, 0.05) == nil { // it fails while the server is away
				n++
			}
		}
		killed <- n
	}()
	defer func() {
		stopKilling()
		counts["a twentieth of all connections killed"] += <-killed
	}()
	lostBefore := f.countLost()
	for n := 1; (n == 1 || time.Now().Before(deadline)) && ctx.Err() == nil; n++ {
		round := f.round(random)
		failures := make(chan error, len(round))
		for _, fault := range round {
			counts[fault.kind]++
			go func() { failures <- fault.happen(ctx, f) }()
		}
		for range round {
			err = errors.Join(err, <-failures)
		}
		for _, fault := range round {
			outages = append(outages, fault.outage)
		}
		if err != nil {
			return outages, err
		}
		before := f.countLost()
		wait.For(ctx, f.timings.RetryPeriod+2*f.timings.Operation())
		for _, fault := range round {
			progress("process %2d, %5.2f s: %s", fault.process, fault.ended.Sub(fault.began).Seconds(), fault.kind)
		}
		if after := f.countLost(); after > lostBefore {
			progress("%d leases lost, %d of them since the faults ended", after-lostBefore, after-before)
			lostBefore = after
		}
	}
	return outages, ctx.Err()
}

func (f *fleet) countLost() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e.Kind == lost {
			n++
		}
	}
	return n
}

// killConnections ends a share of the workers' sessions.
func (f *fleet) killConnections(ctx context.Context, share float64) error {
	ctx, cancel := context.WithTimeout(ctx, f.timings.Operation())
	defer cancel()
	ids, err := faults.Sessions(ctx, f.admin, account)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return errors.New("no worker has a session that could be killed")
	}
	faults.Kill(ctx, f.admin, slices.DeleteFunc(ids, func(int64) bool { return rand.Float64() >= share })...) //nolint:gosec // no secret
	return nil
}

// judge finds the leases that were lost in a window without an outage that explains it, and where two candidates led.
func (f *fleet) judge(w *window, outages []outage) {
	if w == nil {
		return
	}
	f.mu.Lock()
	events := slices.Clone(f.events)
	f.mu.Unlock()
	slices.SortStableFunc(events, func(a, b event) int { return a.Time.Compare(b.Time) })
	leader := map[int]event{}
	for _, e := range events {
		inside := e.Time.After(w.began) && e.Time.Before(w.ended)
		before, isLed := leader[e.Election]
		switch e.Kind {
		case leads:
			if isLed && inside {
				w.overlaps = append(w.overlaps, fmt.Sprintf("election %d: candidate %d led when candidate %d began to", e.Election, before.Candidate, e.Candidate))
			}
			leader[e.Election] = e
		case lost:
			if isLed && before.Candidate == e.Candidate {
				delete(leader, e.Election)
			}
			if inside {
				w.lost = append(w.lost, e)
				if !f.isExplained(e, outages) {
					w.uncaused = append(w.uncaused, e)
				}
			}
		}
	}
}

// isExplained reports whether the candidate's process had an outage longer than its timings survive, within a lease.
func (f *fleet) isExplained(e event, outages []outage) bool {
	process := (e.Election + e.Candidate) % f.processes
	for _, o := range outages {
		hit := o.process == everyProcess || o.process == process
		if hit && o.ended.Sub(o.began) > f.survivable() && o.began.Before(e.Time) && e.Time.Before(o.ended.Add(f.timings.LeaseDuration)) {
			return true
		}
	}
	return false
}
