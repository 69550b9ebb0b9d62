package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// profiles are client-go's defaults and two tighter ones.
var profiles = []elector.Timings{
	elector.Default,
	{LeaseDuration: 6 * time.Second, RenewDeadline: 4 * time.Second, RetryPeriod: time.Second},
	elector.Tight,
}

func newElector(db *sql.DB, election, identity string, t elector.Timings, leading func(bool), opts ...mysqllock.Option) (*leaderelection.LeaderElector, error) {
	lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: identity}, append(opts, t.Option())...)
	if err != nil {
		return nil, err
	}
	return t.New(lock, leaderelection.LeaderCallbacks{
		OnStartedLeading: func(context.Context) { leading(true) },
		OnStoppedLeading: func() { leading(false) },
	})
}

// standbys are candidates of this process, one for each election.
type standbys struct {
	db       *sql.DB
	cancel   context.CancelFunc
	electors []*leaderelection.LeaderElector
	running  sync.WaitGroup
	began    time.Time
	times    chan time.Time // at which one began to lead
}

func (b *bench) startStandbys(ctx context.Context, elections []string, t elector.Timings, opts ...mysqllock.Option) (*standbys, error) {
	db, err := mysqllock.Open(b.config)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &standbys{db: db, cancel: cancel, began: time.Now(), times: make(chan time.Time, len(elections))}
	for _, election := range elections {
		var once sync.Once
		e, err := newElector(db, election, mysqllock.NewIdentity(), t, func(leading bool) {
			if leading {
				once.Do(func() { s.times <- time.Now() })
			}
		}, opts...)
		if err != nil {
			s.end()
			return nil, err
		}
		s.electors = append(s.electors, e)
		s.running.Go(func() { e.Run(ctx) })
	}
	return s, nil
}

func (s *standbys) end() {
	s.cancel()
	s.running.Wait()
	_ = s.db.Close() // all is released, or never will be
}

// follow waits until each has seen a leader.
func (s *standbys) follow(ctx context.Context) error {
	for _, e := range s.electors {
		for e.GetLeader() == "" {
			if wait.For(ctx, 10*time.Millisecond); ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

// lead waits until each leads, and returns how long after the given time that was.
func (s *standbys) lead(ctx context.Context, name string, since time.Time) (distribution, error) {
	d := distribution{name: name}
	for range s.electors {
		select {
		case at := <-s.times:
			d.seconds = append(d.seconds, at.Sub(since).Seconds())
		case <-ctx.Done():
			return d, ctx.Err()
		}
	}
	slices.Sort(d.seconds)
	return d, nil
}

// load is what the elections of a profile cost the server.
type load struct {
	writes, reads float64       // of an election's leader and one standby, in a second
	cpu           time.Duration // of the server for an election, in a second
	lost          int           // leases
}

func runFailover(ctx context.Context, b *bench, s *section) error {
	s.printf(`%d elections at once for each line, each with a leader in a process that is killed (crash) or told to end (SIGTERM, with
ReleaseOnCancel), and a standby in another. Seconds from the signal until the standby leads; for a cold start from the
start of the only candidate, when nobody is left and the last lease has passed. Load: of one election with one standby;
each further standby adds as many polls.

`, b.trials)
	var rows [][]string
	for _, t := range profiles {
		distributions, l, err := b.failover(ctx, t)
		if err != nil {
			return fmt.Errorf("%v: %w", t, err)
		}
		row := []string{t.String(), t.Operation().String()}
		for _, d := range distributions {
			row = append(row, fmt.Sprintf("%.1f / %.1f / %.1f", d.quantile(0.5), d.quantile(0.9), d.quantile(1)))
		}
		rows = append(rows, append(row, fmt.Sprintf("%.2f + %.2f", l.writes, l.reads),
			fmt.Sprintf("%.2f ms", float64(l.cpu.Microseconds())/1000), fmt.Sprint(l.lost)))
		name := "failover-" + strings.ReplaceAll(strings.ReplaceAll(t.String(), " / ", "-"), ".", "_")
		if err := s.plotDistributions(name, "Until the next leader, "+t.String(), distributions); err != nil {
			return err
		}
	}
	s.printf("\n")
	s.table([]string{
		"LeaseDuration / RenewDeadline / RetryPeriod", "an operation may take", "crash: p50 / p90 / most, s", "SIGTERM", "cold start",
		"cold start, WithServerClock", "renewals + polls a second", "server CPU a second", "leases lost",
	}, rows)
	return nil
}

// failover runs all scenarios of one profile.
func (b *bench) failover(ctx context.Context, t elector.Timings) (_ []distribution, l load, err error) {
	// What hangs is an error, with time to spare for a busy machine.
	ctx, cancel := context.WithTimeoutCause(ctx, 20*t.LeaseDuration+2*time.Minute, errors.New("some election has no leader for far too long"))
	defer cancel()
	defer func() {
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause
		}
	}()
	names := func(kind string) (names []string) {
		for i := range b.trials {
			names = append(names, electionOf(fmt.Sprintf("%s-%v", kind, t.LeaseDuration), i))
		}
		return names
	}
	crash, terminated, cold, clock := names("crash"), names("term"), names("cold"), names("clock")

	begin := func(elections []string, followed []string) (*benchChild, *standbys, error) {
		leader, err := startChild(ctx, childConfig{DSN: b.config.FormatDSN(), Elections: elections, Timings: t})
		if err != nil {
			return nil, nil, err
		}
		if err := leader.leads(ctx, len(elections)); err != nil {
			leader.kill()
			return nil, nil, err
		}
		standby, err := b.startStandbys(ctx, followed, t)
		if err == nil {
			if err = standby.follow(ctx); err != nil {
				standby.end()
			}
		}
		if err != nil {
			leader.kill()
			return nil, nil, err
		}
		return leader, standby, nil
	}

	// SIGTERM, and the load before.
	leader, standby, err := begin(terminated, terminated)
	if err != nil {
		return nil, l, err
	}
	if l, err = b.load(ctx, max(5*t.RetryPeriod, 5*time.Second)); err != nil {
		end(leader, standby)
		return nil, l, err
	}
	l.lost = leader.lost()
	signalled := time.Now()
	if err := leader.Signal(syscall.SIGTERM); err != nil {
		end(leader, standby)
		return nil, l, err
	}
	handover, err := standby.lead(ctx, "SIGTERM", signalled)
	if err != nil {
		end(leader, standby)
		return nil, l, err
	}
	leader.wait()
	standby.end()

	// A crash, also of leaders that have no standby.
	leader, standby, err = begin(slices.Concat(crash, cold, clock), crash)
	if err != nil {
		return nil, l, err
	}
	if wait.For(ctx, 2*t.RetryPeriod); ctx.Err() != nil {
		end(leader, standby)
		return nil, l, ctx.Err()
	}
	l.lost += leader.lost()
	killed := time.Now()
	leader.kill()
	failover, err := standby.lead(ctx, "crash", killed)
	standby.end()
	if err != nil {
		return nil, l, err
	}

	// Those start when the leases have been over for a while by the server's clock.
	if wait.For(ctx, time.Until(killed.Add(t.LeaseDuration+max(t.LeaseDuration/10, 500*time.Millisecond)+time.Second))); ctx.Err() != nil {
		return nil, l, ctx.Err()
	}
	without, err := b.startStandbys(ctx, cold, t)
	if err != nil {
		return nil, l, err
	}
	defer without.end()
	with, err := b.startStandbys(ctx, clock, t, mysqllock.WithServerClock())
	if err != nil {
		return nil, l, err
	}
	defer with.end()
	coldStart, err := without.lead(ctx, "cold start", without.began)
	if err != nil {
		return nil, l, err
	}
	clockStart, err := with.lead(ctx, "cold start, WithServerClock", with.began)
	return []distribution{failover, handover, coldStart, clockStart}, l, err
}

// end gives both up.
func end(leader *benchChild, standby *standbys) {
	leader.kill()
	standby.end()
}

// load measures what the server does for the elections that are under way.
func (b *bench) load(ctx context.Context, during time.Duration) (load, error) {
	count := func() (writes, reads float64, cpu time.Duration, err error) {
		for name, to := range map[string]*float64{"Com_update": &writes, "Com_select": &reads} {
			var ignored string
			if err := b.admin.QueryRowContext(ctx, `SHOW GLOBAL STATUS LIKE '`+name+`'`).Scan(&ignored, to); err != nil {
				return 0, 0, 0, err
			}
		}
		cpu, err = b.processes.cpu()
		return writes, reads, cpu, err
	}
	began := time.Now()
	writes, reads, cpu, err := count()
	if err != nil {
		return load{}, err
	}
	if wait.For(ctx, during); ctx.Err() != nil {
		return load{}, ctx.Err()
	}
	writesAfter, readsAfter, cpuAfter, err := count()
	n := time.Since(began).Seconds() * float64(b.trials)
	return load{
		writes: (writesAfter - writes) / n,
		reads:  (readsAfter - reads) / n,
		cpu:    time.Duration(float64(cpuAfter-cpu) / n),
	}, err
}
