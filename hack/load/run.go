package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// result is what comes of a run.
type result struct {
	settings

	version string
	started time.Duration // until every election had a leader, or until that was waited for in vain
	led     int           // elections with a leader by then
	quiet   *window
	faulty  *window // nil without faults
	outages []outage
	counts  map[string]int // faults by kind
	stopped time.Duration  // until all candidates had ended
}

func run(ctx context.Context, s settings) (r *result, err error) {
	progress("%d elections of %d candidates in %d processes, pools of %d", s.elections, s.candidates, s.processes, s.pool)
	f := &fleet{settings: s, leading: make([]int, s.elections)}
	f.server, err = mysqltest.Start(ctx, mysqltest.Options{Args: s.serverArguments()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.server.Close()) }()
	dsn, err := f.prepare(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.admin.Close() }() // nothing to lose
	ctx, kill := context.WithCancel(ctx)
	defer func() {
		kill()
		for _, w := range f.workers {
			_ = w.Wait() // what it ended by was seen, or is the caller's doing
			if w.proxy != nil {
				w.proxy.Close()
			}
		}
	}()
	began := time.Now()
	for process := range s.processes {
		if err := f.launch(ctx, process, dsn); err != nil {
			return nil, err
		}
	}
	r = &result{settings: s, version: f.server.Version(), counts: map[string]int{}}
	if r.led, err = f.waitForLeaders(ctx); err != nil {
		return nil, err
	}
	r.started = time.Since(began)
	progress("%d of %d elections have a leader after %v", r.led, s.elections, r.started.Round(time.Millisecond))
	wait.For(ctx, time.Until(began.Add(s.spread+2*s.timings.RetryPeriod))) // until all candidates have started, and a bit

	quiet := s.window
	if s.faults {
		quiet = min(quiet, time.Minute) // long enough to compare with
	}
	if r.quiet, err = f.measure(ctx, func() error { wait.For(ctx, quiet); return nil }); err != nil {
		return nil, err
	}
	if s.faults {
		r.faulty, err = f.measure(ctx, func() (err error) {
			r.outages, err = f.torment(ctx, r.counts)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for _, w := range []*window{r.quiet, r.faulty} {
		f.judge(w, r.outages)
	}

	stopping := time.Now()
	for _, w := range f.workers {
		if err := w.HangUp(); err != nil {
			return nil, err
		}
	}
	for i, w := range f.workers {
		select {
		case <-w.Ended():
			if err := w.Wait(); err != nil {
				return nil, fmt.Errorf("process %d: %w", i, err)
			}
		case <-time.After(2 * time.Minute):
			return nil, fmt.Errorf("process %d does not end", i)
		}
	}
	r.stopped = time.Since(stopping)
	progress("all candidates ended after %v", r.stopped.Round(time.Millisecond))
	return r, nil
}
