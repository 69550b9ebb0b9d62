package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// bench is one run of the program.
type bench struct {
	*server
	rounds int
	slice  time.Duration // of each arm in each round
	trials int           // elections of each scenario of a failover
	folder string        // of RESULTS.md and plots
}

type part struct {
	name, title string
	run         func(context.Context, *bench, *section) error
}

// parts in the order of RESULTS.md.
var parts = []part{
	{"parts", "Operations against the floor", runParts},
	{"rivals", "Against what one would otherwise use", runRivals},
	{"transact", "Guarded transactions", runTransact},
	{"failover", "Failover and handover", runFailover},
	{cluster, "In a cluster", runCluster},
}

// cluster is a part that "all" leaves out: it needs more than a server.
const cluster = "cluster"

func main() {
	// Of an elector's words none is wanted: what it loses is counted.
	klog.SetLogger(logr.Discard())
	if len(os.Args) == 2 && os.Args[1] == childArgument {
		if err := runChild(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: child:", err)
			os.Exit(1)
		}
		return
	}
	var b bench
	flag.IntVar(&b.rounds, "rounds", 5, "how often the arms of a comparison take turns")
	flag.DurationVar(&b.slice, "slice", time.Second, "for how long an arm is measured in a round")
	flag.IntVar(&b.trials, "trials", 30, "elections in each scenario of a failover")
	flag.StringVar(&b.folder, "folder", ".", "of RESULTS.md and the plots")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: bench [flags] parts|rivals|transact|failover|cluster|all")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, chosen []string) error {
	all := slices.Contains(chosen, "all")
	for _, name := range chosen {
		if name != "all" && !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("%q is no part; -help names them", name)
		}
	}
	if len(chosen) == 0 || b.rounds < 1 || b.slice <= 0 || b.trials < 1 {
		return errors.New("name the parts to run; rounds, slice and trials are positive; see -help")
	}
	for _, p := range parts {
		if !slices.Contains(chosen, p.name) && (!all || p.name == cluster) {
			continue
		}
		if err := b.runPart(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// runPart gives each part a server of its own, so that no part inherits the other's dirty pages.
func (b *bench) runPart(ctx context.Context, p part) (err error) {
	if b.server, err = startServer(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.close()) }()
	began := time.Now()
	fmt.Printf("==> %s on %s\n", p.name, b.product)
	s := newSection(b, p)
	if err := p.run(ctx, b, s); err != nil {
		return err
	}
	s.printf("\nMeasured in %v on %s, %s.\n", time.Since(began).Round(time.Second), measuredOn(), b.settings)
	return s.save()
}
