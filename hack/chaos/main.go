package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// errViolated says that the checker found something.
var errViolated = errors.New("what must not happen has happened")

func main() {
	if len(os.Args) == 2 && os.Args[1] == "candidate" {
		if err := runCandidate(); err != nil {
			fmt.Fprintln(os.Stderr, "chaos: candidate:", err)
			os.Exit(1)
		}
		return
	}
	var r run
	var profile string
	flag.Uint64Var(&r.seed, "seed", uint64(time.Now().UnixNano()), "of the schedule of faults")
	flag.DurationVar(&r.duration, "duration", time.Minute, "for how long faults are injected")
	flag.IntVar(&r.candidates, "candidates", 5, "how many compete")
	flag.StringVar(&profile, "timings", "tight", "of the electors: tight (3 s, 2 s, 300 ms), or default, which are client-go's")
	flag.StringVar(&r.lock, "lock", ours, "ours, or reference: LeaseLock's semantics on the same table")
	flag.StringVar(&r.broken, "break", "", "cas, guard or release: a rule of the lock that is broken")
	flag.BoolVar(&r.stop, "stop", false, "end at the first violation")
	flag.Parse()
	err := func() error {
		var ok bool
		if r.timings, ok = profiles[profile]; !ok || flag.NArg() > 0 {
			return errors.New("-timings is tight or default, and there are no arguments besides the flags; see -help")
		}
		if !slices.Contains([]string{ours, reference}, r.lock) || !slices.Contains([]string{"", breakCAS, breakGuard, breakRelease}, r.broken) {
			return errors.New("-lock is ours or reference, -break is cas, guard or release; see -help")
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return r.run(ctx)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// run is one run: what it is given, and what comes of it.
type run struct {
	seed       uint64
	duration   time.Duration
	candidates int
	timings    timings
	lock       string
	broken     string
	stop       bool

	history history
	world   world
}

func (r *run) run(ctx context.Context) (err error) {
	server, err := mysqltest.Start(ctx, mysqltest.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	name, err := server.CreateDatabase(ctx)
	if err != nil {
		return err
	}
	config := server.Config()
	config.DBName = name
	// A frozen server must not freeze the nemesis.
	config.Timeout, config.ReadTimeout, config.WriteTimeout = 5*time.Second, time.Minute, time.Minute
	admin, err := mysqllock.Open(config)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }() // nothing to lose
	if err := mysqllock.Migrate(ctx, admin); err != nil {
		return err
	}
	const password = "4Chaos-only" // on a throwaway server
	for _, statement := range append(slices.Clone(tables),
		"CREATE USER chaos@'%' IDENTIFIED BY '"+password+"'",
		"GRANT SELECT, INSERT, UPDATE ON "+name+".* TO chaos@'%'",
	) {
		if _, err := admin.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	r.world = world{server: server, admin: admin, timings: r.timings}
	for i := range r.candidates {
		p, err := newProxy(config.Addr)
		if err != nil {
			return err
		}
		defer p.close()
		theirs := config.Clone()
		theirs.User, theirs.Passwd, theirs.Addr = "chaos", password, p.address()
		theirs.Timeout, theirs.ReadTimeout, theirs.WriteTimeout = 2*time.Second, 0, 0
		r.world.slots = append(r.world.slots, &slot{
			name: string(rune('a' + i)), proxy: p, heard: &r.history,
			start: func(identity string) (*exec.Cmd, io.ReadCloser, error) {
				return command(orders{Identity: identity, DSN: theirs.FormatDSN(), Lock: r.lock, Break: r.broken, Timings: r.timings})
			},
		})
	}
	fmt.Printf("%s, %d candidates, leases of %v, lock %s%s, seed %d\n", server.Version(), r.candidates, r.timings.LeaseDuration,
		r.lock, strings.TrimSuffix(" without "+r.broken, " without "), r.seed)
	began := time.Now()
	rounds, err := r.torment(ctx)
	if err != nil {
		return err
	}
	verdict, err := r.check(ctx)
	if err != nil {
		return err
	}
	return r.report(verdict, rounds, time.Since(began))
}

// torment starts the candidates, injects faults round by round, and ends the candidates.
func (r *run) torment(ctx context.Context) (rounds int, err error) {
	for _, s := range r.world.slots {
		if err := s.launch(); err != nil {
			return 0, err
		}
	}
	defer func() {
		for _, s := range r.world.slots {
			s.signal(syscall.SIGKILL) // it has ended, but for an error
			<-s.ended
		}
	}()
	random := rand.New(rand.NewPCG(r.seed, r.seed)) //nolint:gosec // a schedule that replays
	candidateKinds, serverKinds := slices.Sorted(maps.Keys(candidateFaults)), slices.Sorted(maps.Keys(serverFaults))
	r.recover(ctx)
	for end := time.Now().Add(r.duration); time.Now().Before(end) && ctx.Err() == nil; rounds++ {
		r.world.inject(ctx, &r.history, round(random, r.candidates, r.timings, candidateKinds, serverKinds))
		if err := r.world.relaunch(); err != nil {
			return rounds, err
		}
		r.recover(ctx)
		if r.stop && rounds%4 == 3 {
			if v, err := r.check(ctx); err != nil || len(v.violations) > 0 {
				break
			}
		}
	}
	for _, s := range r.world.slots {
		s.signal(syscall.SIGTERM)
	}
	for _, s := range r.world.slots {
		select {
		case <-s.ended:
		case <-time.After(30 * time.Second):
			return rounds, fmt.Errorf("%s does not end", s.identity)
		}
	}
	return rounds, nil
}

// recover waits until a leader works again.
func (r *run) recover(ctx context.Context) {
	since := time.Now()
	r.history.add(event{Time: since, Kind: healed})
	for ctx.Err() == nil && time.Since(since) < 2*recoveryTime(r.timings) {
		if _, ok := r.history.since(since, posted); ok {
			break
		}
		sleep(ctx, 10*time.Millisecond)
	}
	r.history.add(event{Kind: recovery, Duration: time.Since(since)})
}

// check reads the ledgers and holds them against the history.
func (r *run) check(ctx context.Context) (*verdict, error) {
	ledger, err := readLedger(ctx, r.world.admin, `SELECT token, who, seq FROM ledger ORDER BY id`)
	if err != nil {
		return nil, err
	}
	unfenced, err := readLedger(ctx, r.world.admin, `SELECT token, who, 0 FROM unfenced ORDER BY id`)
	if err != nil {
		return nil, err
	}
	r.history.mu.Lock()
	events := slices.Clone(r.history.events)
	r.history.mu.Unlock()
	return check(events, ledger, unfenced, r.timings), nil
}

// sessionsLeft waits until the server has dropped the candidates' sessions.
func (r *run) sessionsLeft(ctx context.Context) (n int, err error) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); sleep(ctx, 100*time.Millisecond) {
		err = r.world.admin.QueryRowContext(ctx, `SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'chaos'`).Scan(&n)
		if err == nil && n == 0 {
			break
		}
	}
	return n, err
}

func (r *run) report(v *verdict, rounds int, took time.Duration) error {
	ctx := context.Background()
	left, err := r.sessionsLeft(ctx)
	if err != nil {
		return err
	}
	if left > 0 {
		v.add(time.Now(), "%d sessions are left at the server", left)
	}
	counts, slowest := map[string]int{}, time.Duration(0)
	var lastHealed time.Time
	for _, e := range r.history.events {
		if e.Kind == healed {
			lastHealed = e.Time
		}
	}
	for _, e := range r.history.events {
		switch e.Kind {
		case fault:
			counts[e.What]++
		case recovery:
			slowest = max(slowest, e.Duration)
		case bye:
			if e.Duration > r.timings.RetryPeriod*22/10+2*time.Second && e.Time.After(lastHealed) {
				v.add(e.Time, "%s had not heard of the server for %v when it was asked to end", e.Who, e.Duration)
			}
		}
	}
	fmt.Printf("%v, %d rounds of faults:\n", took.Truncate(time.Second), rounds)
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		fmt.Printf("  %4d  %s\n", counts[what], what)
	}
	fmt.Printf("%d terms; ledger: %d entries acknowledged, %d refused, %d failed, %d of unknown outcome\n", v.terms, v.posted, v.refused, v.failed, v.unknown)
	fmt.Printf("control without a fence: %d writes of a leader after those of its successor\n", v.stale)
	fmt.Printf("a leader worked at most %v after everything was healed; %d overlaps of leaders that had been paused or starved\n",
		slowest.Truncate(time.Millisecond), v.excused)
	if len(v.violations) == 0 {
		fmt.Println("0 violations")
		return nil
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("chaos-%s%s-%d.jsonl", r.lock, r.broken, r.seed))
	if err := r.history.save(path); err != nil {
		return err
	}
	fmt.Printf("%d VIOLATIONS; the history is in %s\n", len(v.violations), path)
	for i, violation := range v.violations {
		if i == 10 {
			fmt.Println("  ...")
			break
		}
		fmt.Println("  " + violation.text)
	}
	fmt.Println("around the first:")
	for _, e := range excerpt(r.history.events, v.violations[0].at, r.timings) {
		fmt.Printf("  %s %-4s %-9s %d/%d %v %s\n", e.Time.Format("15:04:05.000"), e.Who, e.Kind, e.Token, e.Seq, e.Duration, e.What)
	}
	return errViolated
}
