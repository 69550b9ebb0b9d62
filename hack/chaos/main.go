package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
)

// errViolated says that the checker found something.
var errViolated = errors.New("what must not happen has happened")

func main() {
	if len(os.Args) == 2 && os.Args[1] == candidateArgument {
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
	flag.StringVar(&r.servers, "servers", single, "single, pair (primary and replica), galera (three nodes), or given: what MYSQLLOCK_TEST_DSN names")
	flag.StringVar(&r.lock, "lock", ours, "ours, or reference: LeaseLock's semantics on the same table")
	flag.StringVar(&r.broken, "break", "", "cas, guard or release: a rule of the lock that is broken")
	flag.BoolVar(&r.triggers, "triggers", false, "audit triggers on the lock's tables, all the time")
	flag.BoolVar(&r.stop, "stop", false, "end at the first violation")
	flag.Func("only", "faults whose name matches this regular expression, as \"clock|read-only\"", func(value string) (err error) {
		r.only, err = regexp.Compile(value)
		return err
	})
	flag.StringVar(&r.fault, "fault", "", "a shell `command`, as a failover, that is one more fault of a given server")
	flag.StringVar(&r.disk, "disk", "", "a folder of a small file system for the server, which is filled up now and then")
	flag.Parse()
	err := func() error {
		var ok bool
		if r.timings, ok = profiles[profile]; !ok || flag.NArg() > 0 {
			return errors.New("-timings is tight or default, and there are no arguments besides the flags; see -help")
		}
		if !slices.Contains([]string{ours, reference}, r.lock) || !slices.Contains([]string{"", breakCAS, breakGuard, breakRelease}, r.broken) {
			return errors.New("-lock is ours or reference, -break is cas, guard or release; see -help")
		}
		if r.broken != "" && r.lock != ours {
			return errors.New("-break is for -lock ours: the reference has none of these rules")
		}
		if !slices.Contains([]string{single, pair, galera, given}, r.servers) || r.disk != "" && r.servers != single {
			return errors.New("-servers is single, pair, galera or given, and -disk is for a single one; see -help")
		}
		if r.fault != "" && r.servers != given {
			return errors.New("-fault is for -servers given: the others have faults of their own; see -help")
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
	timings    elector.Timings
	servers    string
	lock       string
	broken     string
	triggers   bool
	stop       bool
	disk       string
	fault      string // a command
	only       *regexp.Regexp

	results string // the folder for a history
	clocks  bool   // they can be bent
	history history
	world   world
	known   map[string]bool // elections whose raw operations were found linearizable
}

func (r *run) run(ctx context.Context) (err error) {
	r.results = os.TempDir()
	if r.disk != "" {
		if err := os.Setenv("TMPDIR", r.disk); err != nil { // where the server's folder is made
			return err
		}
	}
	r.known = map[string]bool{}
	r.world = world{timings: r.timings, disk: r.disk, heard: &r.history}
	site := &r.world.site
	defer func() { err = errors.Join(err, site.close()) }()
	if err := site.open(ctx, r.servers); err != nil {
		return err
	}
	if r.broken != "" {
		trying := &candidate{orders: orders{Identity: "trial", Break: r.broken, Timings: r.timings}}
		if err := trying.try(ctx, site.administrator()); err != nil {
			return err
		}
	}
	if r.triggers {
		if err := site.audit(ctx); err != nil {
			return err
		}
	}
	count := &atomic.Int64{}
	for i := range r.candidates {
		p, err := newProxy(site.nodes[i%len(site.nodes)].server.Config().Addr, func(fault string) { r.history.add(event{Kind: hit, What: fault}) })
		if err != nil {
			return err
		}
		defer p.Close()
		r.world.slots = append(r.world.slots, &slot{
			name: string(rune('a' + i)), proxy: p, heard: &r.history, count: count,
			// Of servers that lose commits, or answer differently, no order explains all answers.
			orders: orders{DSN: site.config(p.Addr()).FormatDSN(), Lock: r.lock, Break: r.broken, Timings: r.timings, Raw: r.lock == ours && r.servers == single, Own: i%2 == 1},
		})
	}
	fmt.Printf("%s, %d candidates, leases of %v, lock %s%s, seed %d\n", site, r.candidates, r.timings.LeaseDuration,
		r.lock, strings.TrimSuffix(" without "+r.broken, " without "), r.seed)
	if err := clocksBend(); err != nil {
		fmt.Println("no clock is bent, as that is not possible here:", err)
	} else {
		r.clocks = true
	}
	if r.triggers {
		fmt.Println("audit triggers run before and after each update of the lock's tables")
	}
	if r.disk == "" {
		fmt.Println("no disk is filled, as no small one was given by -disk")
	}
	began := trueTime()
	rounds, err := r.torment(ctx)
	if err != nil {
		return err
	}
	verdict, err := r.check(ctx)
	if err != nil {
		return err
	}
	return r.report(ctx, verdict, rounds, began)
}

// schedule is of all faults that are possible here.
func (r *run) schedule() *schedule {
	s := &schedule{
		random: mathrand.New(mathrand.NewPCG(r.seed, r.seed)), slots: r.candidates, timings: r.timings, //nolint:gosec // it replays
		candidateFaults: maps.Clone(candidateFaults), serverFaults: maps.Clone(serverFaults),
	}
	if r.clocks {
		maps.Copy(s.candidateFaults, clockFaults)
	}
	switch r.servers {
	case pair:
		s.siteFaults = maps.Clone(pairFaults)
	case galera:
		s.siteFaults = maps.Clone(galeraFaults)
	case given:
		maps.DeleteFunc(s.serverFaults, func(name string, _ serverFault) bool { return !slices.Contains(harmless, name) })
		if r.fault != "" {
			s.siteFaults = map[string]serverFault{"the given command": commanded(r.fault)}
		}
	}
	if r.disk != "" {
		s.serverFaults[diskFull] = fillDisk
	}
	if r.lock == reference {
		maps.DeleteFunc(s.serverFaults, func(name string, _ serverFault) bool { return strings.HasPrefix(name, "fence") })
	}
	if r.only != nil {
		maps.DeleteFunc(s.candidateFaults, func(name string, _ candidateFault) bool { return !r.only.MatchString(name) })
		maps.DeleteFunc(s.serverFaults, func(name string, _ serverFault) bool { return !r.only.MatchString(name) })
		maps.DeleteFunc(s.siteFaults, func(name string, _ serverFault) bool { return !r.only.MatchString(name) })
	}
	return s
}

// torment starts the candidates, injects faults round by round, and ends the candidates.
func (r *run) torment(ctx context.Context) (rounds int, err error) {
	s := r.schedule()
	if len(s.candidateFaults)+len(s.serverFaults)+len(s.siteFaults) == 0 {
		return 0, errors.New("no fault has a name that matches -only; a run without it lists some")
	}
	for _, slot := range r.world.slots {
		if err := slot.launch(); err != nil {
			return 0, err
		}
	}
	defer func() {
		for _, slot := range r.world.slots {
			slot.signal(syscall.SIGKILL) // it has ended, but for an error
			<-slot.ended
		}
	}()
	r.recover(ctx)
	checked := trueTime()
	for end := trueTime().Add(r.duration); trueTime().Before(end) && ctx.Err() == nil; rounds++ {
		r.world.inject(ctx, s)
		if err := r.world.relaunch(); err != nil {
			return rounds, err
		}
		r.recover(ctx)
		if r.stop && trueTime().Sub(checked) > 2*rawPeriod {
			if v, err := r.check(ctx); err != nil || r.mayStop(v) {
				break
			}
			checked = trueTime()
		}
	}
	if wait.For(ctx, recoveryTime(r.timings)); ctx.Err() == nil {
		r.history.add(event{Kind: quiet})
	}
	for _, slot := range r.world.slots {
		slot.signal(syscall.SIGTERM)
	}
	for _, slot := range r.world.slots {
		select {
		case <-slot.ended:
		case <-time.After(time.Minute):
			return rounds, fmt.Errorf("%s does not end", slot.who())
		}
	}
	return rounds, nil
}

// recover waits until a leader works again.
func (r *run) recover(ctx context.Context) {
	since := trueTime()
	r.history.add(event{Time: since, Kind: healed})
	for ctx.Err() == nil && trueTime().Sub(since) < 2*recoveryTime(r.timings) && !r.history.last(posted).Time.After(since) {
		wait.For(ctx, 10*time.Millisecond)
	}
	r.history.add(event{Kind: recovery, Duration: trueTime().Sub(since)})
}

// check reads the ledgers and holds them against the history.
func (r *run) check(ctx context.Context) (*verdict, error) {
	ctx = context.WithoutCancel(ctx)
	if err := r.world.site.whole(ctx); err != nil {
		return nil, err
	}
	admin := r.world.site.nodes[0].admin
	ledger, err := readLedger(ctx, admin, `SELECT token, who, seq FROM ledger ORDER BY id`)
	if err != nil {
		return nil, err
	}
	unfenced, err := readLedger(ctx, admin, `SELECT token, who, 0 FROM unfenced ORDER BY id`)
	if err != nil {
		return nil, err
	}
	r.history.mu.Lock()
	events := slices.Clone(r.history.events)
	r.history.mu.Unlock()
	v := check(events, ledger, unfenced, r.timings)
	v.raw(events, r.known)
	return v, nil
}

func (r *run) report(ctx context.Context, v *verdict, rounds int, began time.Time) error {
	took := trueTime().Sub(began)
	left, err := r.world.site.sessionsLeft(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	if left > 0 {
		v.add(trueTime(), nil, "%d sessions are left at the server", left)
	}
	counts, hits, slowest := map[string]int{}, map[string]int{}, time.Duration(0)
	for _, e := range r.history.events {
		switch e.Kind {
		case fault:
			counts[e.What]++
		case hit:
			hits[e.What]++
		case recovery:
			slowest = max(slowest, e.Duration)
		}
	}
	fmt.Printf("%v, %d rounds of faults:\n", took.Truncate(time.Second), rounds)
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		fmt.Printf("  %4d  %s", counts[what], what)
		if slices.Contains(telling, what) {
			fmt.Printf(": %d hits", hits[what])
		}
		fmt.Println()
	}
	if r.triggers {
		ran, err := r.world.site.auditedAll(context.WithoutCancel(ctx))
		if err != nil {
			v.add(trueTime(), nil, "%v", err)
		}
		fmt.Printf("%d lines were written by audit triggers\n", ran)
	}
	fmt.Printf("%d terms; ledger: %d entries acknowledged, %d refused, %d failed, %d of unknown outcome\n", v.terms, v.posted, v.refused, v.failed, v.unknown)
	fmt.Printf("control without a fence: %d writes of a leader after those of its successor\n", v.stale)
	fmt.Printf("%d raw operations, linearizable in %d elections\n", v.operations, len(r.known))
	fmt.Printf("a leader worked at most %v after everything was healed; %d overlaps of leaders that had been stopped, starved or slow, of %v at most\n",
		slowest.Truncate(time.Millisecond), v.excused, v.longest.Truncate(time.Millisecond))
	if v.late > 0 {
		fmt.Printf("%d times it worked later than it should, as the machine had starved the candidates\n", v.late)
	}
	if v.promoted > 0 {
		fmt.Printf("promotions lost %d takeovers and entries\n", v.promoted)
	}
	if len(v.violations) == 0 {
		fmt.Println("0 violations")
	} else if err := r.show(v); err != nil {
		return err
	}
	text, err := r.outcome(v, began)
	if text != "" {
		fmt.Println(text)
	}
	return err
}

// show prints the violations, and what happened around the first.
func (r *run) show(v *verdict) error {
	path := filepath.Join(r.results, fmt.Sprintf("chaos-%s%s-%d.jsonl", r.lock, r.broken, r.seed))
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
	first := v.violations[0]
	fmt.Println("around the first:")
	for _, line := range first.more {
		fmt.Println("  " + line)
	}
	if len(first.more) > 0 {
		return nil
	}
	for _, e := range excerpt(r.history.events, first, r.timings) {
		fmt.Printf("  %s %-10s %-9s", e.Time.Format("15:04:05.000"), e.Who, e.Kind)
		if e.Token != 0 {
			fmt.Printf(" term %d", e.Token)
		}
		if e.Seq != 0 {
			fmt.Printf(" entry %d", e.Seq)
		}
		if e.Duration != 0 {
			fmt.Printf(" %v", e.Duration.Truncate(time.Millisecond))
		}
		fmt.Println(" " + e.What)
	}
	return nil
}
