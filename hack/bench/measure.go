package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/machine"
)

// arm is one of the things that a comparison compares. op does it once; callers run at the same time.
type arm struct {
	name string
	op   func(ctx context.Context, caller int) error
	// server is what does the work.
	server processes
}

// processes are by their ids; none of a server that is on another machine.
type processes []int

// cpu is how long they have used the processors.
func (p processes) cpu() (sum time.Duration, err error) {
	for _, pid := range p {
		cpu, err := machine.CPUOf(pid)
		if err != nil {
			return 0, err
		}
		sum += cpu
	}
	return sum, nil
}

// sample is what one arm did in one round.
type sample struct {
	latencies []time.Duration // sorted
	elapsed   time.Duration
	client    time.Duration // of processors
	server    time.Duration // of processors
	allocs    float64       // for each operation
	bytes     float64       // for each operation
}

func (s *sample) percentile(p float64) float64 {
	return float64(s.latencies[min(int(p*float64(len(s.latencies))), len(s.latencies)-1)])
}

// perTenThousand is d for 10,000 operations, in ms.
func (s *sample) perTenThousand(d time.Duration) float64 {
	return float64(d.Milliseconds()) * 10_000 / float64(len(s.latencies))
}

func (s *sample) throughput() float64 { return float64(len(s.latencies)) / s.elapsed.Seconds() }

// comparison has a sample for each arm and round.
type comparison struct {
	arms    []arm
	samples [][]*sample
}

// compare measures the arms in turns.
func (b *bench) compare(ctx context.Context, callers int, arms []arm) (*comparison, error) {
	c := &comparison{arms, make([][]*sample, len(arms))}
	for range b.rounds {
		for i, a := range arms {
			// The caches of a first turn, of this process and of the server, are not what is measured.
			if _, err := measure(ctx, a, callers, b.slice/10); err != nil {
				return nil, err
			}
			s, err := measure(ctx, a, callers, b.slice)
			if err != nil {
				return nil, err
			}
			c.samples[i] = append(c.samples[i], s)
		}
	}
	return c, nil
}

func measure(ctx context.Context, a arm, callers int, slice time.Duration) (*sample, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	each := make([][]time.Duration, callers)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	client := machine.OwnCPU()
	server, err := a.server.cpu()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	var group sync.WaitGroup
	for caller := range callers {
		group.Go(func() {
			latencies := make([]time.Duration, 0, 1024)
			for now := began; now.Sub(began) < slice || len(latencies) == 0; {
				err := a.op(ctx, caller)
				if err != nil {
					cancel(fmt.Errorf("%s: %w", a.name, err))
					return
				}
				next := time.Now()
				latencies = append(latencies, next.Sub(now))
				now = next
			}
			each[caller] = latencies
		})
	}
	group.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	s := &sample{elapsed: time.Since(began), latencies: slices.Concat(each...)}
	slices.Sort(s.latencies)
	clientAfter := machine.OwnCPU()
	serverAfter, err := a.server.cpu()
	if err != nil {
		return nil, err
	}
	s.client, s.server = clientAfter-client, serverAfter-server
	runtime.ReadMemStats(&after)
	n := float64(len(s.latencies))
	s.allocs, s.bytes = float64(after.Mallocs-before.Mallocs)/n, float64(after.TotalAlloc-before.TotalAlloc)/n
	return s, nil
}

// spread is the median of some numbers, and their limits.
type spread struct{ median, least, most float64 }

func spreadOf(numbers []float64) spread {
	slices.Sort(numbers)
	n := len(numbers)
	return spread{(numbers[(n-1)/2] + numbers[n/2]) / 2, numbers[0], numbers[n-1]}
}

func (s spread) String() string { return fmt.Sprintf("%.2f (%.2f–%.2f)", s.median, s.least, s.most) }

// ratio compares an arm with the first one, by the rounds' own ratios.
func (c *comparison) ratio(i int, value func(*sample) float64) spread {
	var ratios []float64
	for round, s := range c.samples[i] {
		if floor := value(c.samples[0][round]); floor > 0 {
			ratios = append(ratios, value(s)/floor)
		}
	}
	if len(ratios) == 0 {
		return spread{} // less than a tick of the processor's clock
	}
	return spreadOf(ratios)
}

// value is an arm's own number.
func (c *comparison) value(i int, value func(*sample) float64) spread {
	var values []float64
	for _, s := range c.samples[i] {
		values = append(values, value(s))
	}
	return spreadOf(values)
}

func p50(s *sample) float64       { return s.percentile(0.50) }
func p99(s *sample) float64       { return s.percentile(0.99) }
func clientCPU(s *sample) float64 { return s.perTenThousand(s.client) }
func serverCPU(s *sample) float64 { return s.perTenThousand(s.server) }
