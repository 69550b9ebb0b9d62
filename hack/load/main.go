package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == workerArgument {
		if err := runWorker(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "load: worker:", err)
			os.Exit(1)
		}
		return
	}
	s := settings{timings: elector.Default}
	elections, processes, pools := numbers{100, 1000}, numbers{1}, numbers{10}
	flag.Var(&elections, "elections", "how many; several numbers, with commas, are several runs, as in the next two flags")
	flag.Var(&processes, "processes", "how many share the candidates")
	flag.Var(&pools, "pool", "connections of a process at most")
	flag.IntVar(&s.candidates, "candidates", 3, "of each election: one leads, the others poll")
	flag.DurationVar(&s.window, "window", time.Minute, "for how long is measured")
	flag.DurationVar(&s.spread, "spread", 10*time.Second, "in which the candidates start, so that they don't act in lockstep")
	flag.StringVar(&s.durability, "durability", durable, strings.Join(durabilities, ", ")+": what a commit waits for")
	flag.BoolVar(&s.batch, "batch", false, "the candidates of a process share a mysqllock.Batch")
	flag.BoolVar(&s.faults, "faults", false, "a second window, with faults; the first is then a minute at most")
	flag.DurationVar(&s.outage, "outage", 5*time.Second, "the longest fault")
	flag.Uint64Var(&s.seed, "seed", uint64(time.Now().UnixNano()), "of the schedule of faults")
	flag.StringVar(&s.profiles, "profiles", "", "folder for CPU, mutex and heap profiles of the processes")
	flag.Parse()
	err := func() error {
		if flag.NArg() > 0 || !slices.Contains(durabilities, s.durability) {
			return errors.New("-durability is " + strings.Join(durabilities, ", ") + ", and there are no arguments besides the flags; see -help")
		}
		if longest := s.survivable(); s.outage <= 0 || s.outage > longest {
			return fmt.Errorf("-outage is more than 0 and at most %v, which the timings survive", longest)
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		_ = mysql.SetLogger(&mysql.NopLogger{}) // never nil; connections that fail are what this is about
		var results []*result
		for _, s.pool = range pools {
			for _, s.processes = range processes {
				for _, s.elections = range elections {
					r, err := run(ctx, s)
					if err != nil { // what the others found is worth having
						return errors.Join(err, report(os.Stdout, os.Args[1:], results))
					}
					results = append(results, r)
				}
			}
		}
		return report(os.Stdout, os.Args[1:], results)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// numbers are a flag of several.
type numbers []int

func (n *numbers) String() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(*n), " ", ","), "[]")
}

func (n *numbers) Set(s string) error {
	*n = nil
	for field := range strings.SplitSeq(s, ",") {
		i, err := strconv.Atoi(field)
		if err != nil || i < 1 {
			return fmt.Errorf("%q is no positive number", field)
		}
		*n = append(*n, i)
	}
	return nil
}

// progress is for whoever waits; the results go to stdout.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
