package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/machine"
)

// report prints the results as Markdown.
func report(out io.Writer, arguments []string, results []*result) error {
	var b strings.Builder
	if len(results) == 0 {
		return nil
	}
	first := results[0]
	fmt.Fprintf(&b, "`hack/load.sh %s`, %s\n\n", strings.Join(arguments, " "), time.Now().UTC().Format(time.DateOnly))
	fmt.Fprintf(&b, "%s, `%s`; %s, shared by server and processes. %d candidates in each election; LeaseDuration %v, RenewDeadline %v, RetryPeriod %v; "+
		"measured for %v.\n\n", first.version, strings.Join(first.serverArguments(), " "), machine.Describe(), first.candidates,
		first.timings.LeaseDuration, first.timings.RenewDeadline, first.timings.RetryPeriod, first.window)

	type row struct {
		*result
		*window
		name string
	}
	var rows []row
	for _, r := range results {
		name := fmt.Sprintf("%d | %d | %d", r.elections, r.processes, r.pool)
		if r.faulty == nil {
			rows = append(rows, row{r, r.quiet, name})
			continue
		}
		rows = append(rows, row{r, r.quiet, name + " | quiet"}, row{r, r.faulty, name + " | faults"})
	}
	titles, lines := "elections | processes | pool", "---: | ---: | ---:"
	if first.faulty != nil {
		titles, lines = titles+" | window", lines+" | ---"
	}

	b.WriteString("| " + titles + " | leases lost | without cause | two leaders | no answer in time | lost CAS | other errors | renewals/s | p50 | p99 | polls/s | p50 | p99 | longest stall | machine busy |\n")
	b.WriteString("| " + lines + " | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, r := range rows {
		w, seconds := r.window, r.Duration.Seconds()
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d | %.0f | %v | %v | %.0f | %v | %v | %v | %.0f %% |\n", r.name,
			len(w.lost), len(w.uncaused), len(w.overlaps), w.Timeouts, w.Conflicts, w.Failures,
			float64(w.Renewals.count())/seconds, short(w.Renewals.quantile(0.5)), short(w.Renewals.quantile(0.99)),
			float64(w.Polls.count())/seconds, short(w.Polls.quantile(0.5)), short(w.Polls.quantile(0.99)), short(w.Starved), 100*w.busy)
	}

	b.WriteString("\nThe cost of one election with all its candidates, in CPU time per second of elections; \"of the first\" is the sum as a part of the first row's.\n\n")
	b.WriteString("| " + titles + " | client | server | of the first | heap of a candidate | stack | goroutines | connections | new ones/s | statements/s | fsyncs/s | pool waits/s | waited | all led after | all ended after | server's memory |\n")
	b.WriteString("| " + lines + " | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, r := range rows {
		w, seconds := r.window, r.Duration.Seconds()
		all := float64(r.elections * r.candidates)
		fmt.Fprintf(&b, "| %s | %v | %s | %s | %.1f kB | %.1f kB | %.2f | %d | %s | %s | %s | %.0f | %v | %v | %v | %.0f MB |\n", r.name,
			perElection(w.CPU, r.result, w),
			w.ofServer("%v", perElection(w.serverCPU, r.result, w)), w.ofServer("%.2f", cost(r.result, w)/cost(rows[0].result, rows[0].window)),
			float64(w.Heap)/all/1e3, float64(w.Stack)/all/1e3, float64(w.Goroutines)/all, w.connections,
			w.ofServer("%.1f", float64(w.status["Connections"])/seconds), w.ofServer("%.0f", float64(w.status["Questions"])/seconds),
			w.ofServer("%.0f", float64(w.status["Innodb_data_fsyncs"])/seconds),
			float64(w.PoolWaits)/seconds, short(time.Duration(float64(w.PoolWait)/max(float64(w.PoolWaits), 1))),
			ledAfter(r.result), short(r.stopped), float64(w.serverMemory)/1e6)
	}

	for _, r := range results {
		if r.faulty == nil {
			continue
		}
		longest := time.Duration(0)
		for _, o := range r.outages {
			longest = max(longest, o.ended.Sub(o.began))
		}
		fmt.Fprintf(&b, "\nFaults in the second window, seed %d, the longest %v (these timings survive %v):\n\n", r.seed, short(longest), r.survivable())
		for _, kind := range slices.Sorted(maps.Keys(r.counts)) {
			fmt.Fprintf(&b, "- %d x %s\n", r.counts[kind], kind)
		}
		for _, e := range r.faulty.uncaused[:min(len(r.faulty.uncaused), 5)] {
			fmt.Fprintf(&b, "- LOST WITHOUT CAUSE: election %d by candidate %d at %s\n", e.Election, e.Candidate, e.Time.Format("15:04:05.000"))
		}
	}
	for _, r := range rows {
		for _, text := range r.overlaps[:min(len(r.overlaps), 5)] {
			fmt.Fprintf(&b, "- TWO LEADERS: %s\n", text)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// cost is the CPU time that an election takes of all processes and the server, per second.
func cost(r *result, w *window) float64 {
	return float64(w.CPU+w.serverCPU) / w.Duration.Seconds() / float64(r.elections)
}

func perElection(cpu time.Duration, r *result, w *window) time.Duration {
	return time.Duration(float64(cpu) / w.Duration.Seconds() / float64(r.elections)).Round(time.Microsecond)
}

// ofServer is a figure of the server's, unless it was restarted in the window.
func (w *window) ofServer(format string, figure any) string {
	if w.restarted {
		return "-"
	}
	return fmt.Sprintf(format, figure)
}

func ledAfter(r *result) string {
	if r.led < r.elections {
		return fmt.Sprintf("%d of them after %v", r.led, short(r.started))
	}
	return short(r.started).String()
}

// short is d with three digits.
func short(d time.Duration) time.Duration {
	unit := time.Nanosecond
	for d >= 1000*unit {
		unit *= 10
	}
	return d.Round(unit)
}
