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

	lease leaseOptions
	api   *apiServer // of the part lease
}

type part struct {
	name, title string
	run         func(context.Context, *bench, *section) error

	apart bool                                // "all" leaves it out: it needs more than a server
	start func(context.Context, *bench) error // what it needs; nil: a server of its own
}

// parts in the order of RESULTS.md.
var parts = []part{
	{name: "parts", title: "Operations against the floor", run: runParts},
	{name: "rivals", title: "Against what one would otherwise use", run: runRivals},
	{name: "lease", title: "Beside a Lease", run: runLease, apart: true, start: startLease},
	{name: "transact", title: "Guarded transactions", run: runTransact},
	{name: "failover", title: "Failover and handover", run: runFailover},
	{name: "cluster", title: "In a cluster", run: runCluster, apart: true},
}

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
	flag.StringVar(&b.lease.kubeconfig, "kubeconfig", "", "lease: `file` that names the API server")
	flag.StringVar(&b.lease.namespace, "namespace", "default", "lease: where its Leases are made, which it deletes again")
	flag.Var(&b.lease.apiServer, "apiserver-pids", "lease: `ids` of the API server's and its etcd's processes, if they run here, for their CPU")
	flag.Var(&b.lease.database, "database-pids", "lease: `ids` of the processes of the environment's database, if they run here, for their CPU")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: bench [flags] parts|rivals|lease|transact|failover|cluster|all [flags]")
		flag.PrintDefaults()
	}
	chosen := parse(os.Args[1:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, chosen); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parse returns the parts, with flags before, between and after them.
func parse(arguments []string) (chosen []string) {
	for {
		_ = flag.CommandLine.Parse(arguments) // it exits
		if flag.NArg() == 0 {
			return chosen
		}
		chosen, arguments = append(chosen, flag.Arg(0)), flag.Args()[1:]
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
		if !slices.Contains(chosen, p.name) && (!all || p.apart) {
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
	start := p.start
	if start == nil {
		start = startOwn
	}
	if err := start(ctx, b); err != nil {
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

func startOwn(ctx context.Context, b *bench) (err error) {
	b.server, err = startServer(ctx)
	return err
}
