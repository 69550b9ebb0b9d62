package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/machine"
)

// window is what was measured between two moments, of all processes and the server.
type window struct {
	figures // summed up; of Starved the longest

	began, ended time.Time
	perProcess   []figures
	restarted    bool // the server, whose figures began anew with that
	serverCPU    time.Duration
	serverMemory int64
	busy         float64          // share of the machine's processors, whoever used them
	status       map[string]int64 // by how much the server's counters grew
	connections  int64            // at the server, at the end
	lost         []event
	uncaused     []event  // of them
	overlaps     []string // two leaders at once
}

// measure takes down what the processes and the server use while f runs.
func (f *fleet) measure(ctx context.Context, during func() error) (*window, error) {
	pid, err := machine.ServerPID(ctx, f.admin)
	if err != nil {
		return nil, err
	}
	w := &window{began: time.Now()}
	before, err := f.status(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.tell(begin); err != nil {
		return nil, err
	}
	cpu, _ := machine.CPUOf(pid) // 0 where that is not known
	busy, all := machine.CPU()
	if err := during(); err != nil {
		return nil, err
	}
	busyNow, allNow := machine.CPU()
	if err := f.tell(end); err != nil {
		return nil, err
	}
	pidNow, err := machine.ServerPID(ctx, f.admin)
	if err != nil {
		return nil, err
	}
	w.restarted = pidNow != pid
	cpuNow, _ := machine.CPUOf(pidNow)
	w.serverCPU, w.serverMemory = cpuNow-cpu, machine.MemoryOf(pidNow)
	after, err := f.status(ctx)
	if err != nil {
		return nil, err
	}
	w.ended = time.Now()
	if allNow > all {
		w.busy = float64(busyNow-busy) / float64(allNow-all)
	}
	w.connections = after["Threads_connected"] - 1 // without the one that asks
	w.status = map[string]int64{}
	for name, value := range after {
		w.status[name] = value - before[name]
	}
	for i, process := range f.workers {
		select {
		case p := <-process.figures:
			w.perProcess = append(w.perProcess, p)
			w.add(p)
		case <-process.Ended():
			return nil, fmt.Errorf("process %d ended: %w", i, process.Wait())
		case <-time.After(2 * time.Minute):
			return nil, fmt.Errorf("process %d does not answer", i)
		}
	}
	return w, ctx.Err()
}

// add sums up.
func (f *figures) add(g figures) {
	f.Duration = max(f.Duration, g.Duration)
	f.Renewals.add(&g.Renewals)
	f.Polls.add(&g.Polls)
	f.Timeouts += g.Timeouts
	f.Conflicts += g.Conflicts
	f.Failures += g.Failures
	f.CPU += g.CPU
	f.Starved = max(f.Starved, g.Starved)
	f.Heap += g.Heap
	f.Stack += g.Stack
	f.Goroutines += g.Goroutines
	f.Connections += g.Connections
	f.PoolWaits += g.PoolWaits
	f.PoolWait += g.PoolWait
}

// status is the server's counters.
func (f *fleet) status(ctx context.Context) (map[string]int64, error) {
	rows, err := f.admin.QueryContext(ctx, "SHOW GLOBAL STATUS")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what matters
	counters := map[string]int64{}
	for rows.Next() {
		var name, value string
		if err := rows.Scan(&name, &value); err != nil {
			return nil, err
		}
		if n, err := strconv.ParseInt(value, 10, 64); err == nil { // others are texts
			counters[name] = n
		}
	}
	return counters, rows.Err()
}
