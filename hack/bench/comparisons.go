package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// comparisons of the same arms, with one caller and with several: a table, and bars of the medians.
type comparisons struct {
	per  string // "caller", or whatever there are several of
	rows [][]string
	bars bars
}

// add adds the comparison with n callers.
func (r *comparisons) add(n int, arms []arm, c *comparison) {
	first := len(r.bars.labels) == 0
	for i, a := range arms {
		r.rows = append(r.rows, append([]string{strconv.Itoa(n), a.name}, c.columns(i)...))
		if first {
			r.bars.series = append(r.bars.series, series{name: a.name})
		}
		r.bars.series[i].spreads = append(r.bars.series[i].spreads, c.ratio(i, p50))
	}
	r.bars.labels = append(r.bars.labels, count(n, r.per))
}

// sweep compares the arms that armsOf makes for each number of callers; done gives up what they needed. It shows the
// results by that name.
func (b *bench) sweep(ctx context.Context, s *section, name string, r comparisons, callers []int, armsOf func(n int) (arms []arm, done func(), err error)) error {
	for _, n := range callers {
		arms, done, err := armsOf(n)
		if err != nil {
			return err
		}
		c, err := b.compare(ctx, n, arms)
		done()
		if err != nil {
			return err
		}
		r.add(n, arms, c)
	}
	return s.show(name, r)
}

// show writes the table, and the plot by that name.
func (s *section) show(name string, r comparisons) error {
	title := strings.ToUpper(r.per[:1]) + r.per[1:] + "s"
	s.table(append([]string{title, ""}, columnNames...), r.rows)
	return s.plotBars(name, r.bars)
}

var columnNames = []string{"p50", "p99", "throughput", "client CPU", "server CPU", "client CPU, ms / 10,000", "server CPU, ms / 10,000", "allocations", "bytes allocated"}

// unknown is in the place of a number that nobody knows.
const unknown = "–"

// columns are what every comparison shows of an arm.
func (c *comparison) columns(i int) []string {
	whole := func(value func(*sample) float64) string { return fmt.Sprintf("%.0f", c.value(i, value).median) }
	server, serverRatio := unknown, unknown
	if len(c.arms[i].server) > 0 {
		server = whole(serverCPU)
		if len(c.arms[0].server) > 0 {
			serverRatio = c.ratio(i, serverCPU).String()
		}
	}
	return []string{
		c.ratio(i, p50).String(), c.ratio(i, p99).String(), c.ratio(i, (*sample).throughput).String(),
		c.ratio(i, clientCPU).String(), serverRatio, whole(clientCPU), server,
		whole(func(s *sample) float64 { return s.allocs }), whole(func(s *sample) float64 { return s.bytes }),
	}
}
