package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// settings are those of one run.
type settings struct {
	elections, candidates, processes, pool int
	timings                                timings
	window, spread                         time.Duration
	durability                             string
	batch                                  bool
	faults                                 bool
	outage                                 time.Duration
	seed                                   uint64
	profiles                               string
}

// What a commit waits for.
const (
	relaxed = "relaxed"
	durable = "durable"
	binlog  = "binlog"
)

var durabilities = []string{relaxed, durable, binlog}

// serverArguments are the server's options. Its redo log is as large as those of servers in use are.
func (s settings) serverArguments() []string {
	args := []string{
		fmt.Sprintf("--max-connections=%d", 100+5*s.processes*s.pool), // with those that are dead and not yet noticed
		"--loose-innodb-log-file-size=256M", "--loose-innodb-redo-log-capacity=256M", "--innodb-buffer-pool-size=256M",
	}
	switch s.durability {
	case relaxed:
		return append(args, "--innodb-flush-log-at-trx-commit=2", "--sync-binlog=0", "--skip-log-bin")
	case durable:
		return append(args, "--innodb-flush-log-at-trx-commit=1", "--sync-binlog=0", "--skip-log-bin")
	default:
		return append(args, "--innodb-flush-log-at-trx-commit=1", "--sync-binlog=1", "--log-bin=binlog", "--server-id=1")
	}
}

// result is what comes of a run.
type result struct {
	settings

	version string
	started time.Duration // until every election had a leader, or until that was waited for in vain
	led     int           // elections with a leader by then
	quiet   *window
	faulty  *window // nil without faults
	outages []outage
	counts  map[string]int // faults by kind
	stopped time.Duration  // until all candidates had ended
}

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

// fleet is one server and all processes.
type fleet struct {
	settings

	server  *mysqltest.Server
	admin   *sql.DB
	workers []*workerProcess

	mu      sync.Mutex
	events  []event // without figures
	leading []int   // by election: how many candidates lead
	led     int     // elections with a leader
}

// workerProcess is a worker as its parent sees it.
type workerProcess struct {
	command *exec.Cmd
	stdin   io.WriteCloser
	proxy   *mysqltest.Proxy // nil without faults
	figures chan figures
	ended   chan struct{}
	err     error // once it has ended
}

func run(ctx context.Context, s settings) (r *result, err error) {
	progress("%d elections of %d candidates in %d processes, pools of %d", s.elections, s.candidates, s.processes, s.pool)
	f := &fleet{settings: s, leading: make([]int, s.elections)}
	f.server, err = mysqltest.Start(ctx, mysqltest.Options{Args: s.serverArguments()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.server.Close()) }()
	dsn, err := f.prepare(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.admin.Close() }() // nothing to lose
	ctx, kill := context.WithCancel(ctx)
	defer func() {
		kill()
		for _, w := range f.workers {
			<-w.ended
			if w.proxy != nil {
				w.proxy.Close()
			}
		}
	}()
	began := time.Now()
	for process := range s.processes {
		if err := f.launch(ctx, process, dsn); err != nil {
			return nil, err
		}
	}
	r = &result{settings: s, version: f.server.Version(), counts: map[string]int{}}
	if r.led, err = f.waitForLeaders(ctx); err != nil {
		return nil, err
	}
	r.started = time.Since(began)
	progress("%d of %d elections have a leader after %v", r.led, s.elections, r.started.Round(time.Millisecond))
	sleep(ctx, time.Until(began.Add(s.spread+2*s.timings.RetryPeriod))) // until all candidates have started, and a bit

	quiet := s.window
	if s.faults {
		quiet = min(quiet, time.Minute) // long enough to compare with
	}
	if r.quiet, err = f.measure(ctx, func() error { sleep(ctx, quiet); return nil }); err != nil {
		return nil, err
	}
	if s.faults {
		r.faulty, err = f.measure(ctx, func() (err error) {
			r.outages, err = f.torment(ctx, r.counts)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for _, w := range []*window{r.quiet, r.faulty} {
		f.judge(w, r.outages)
	}

	stopping := time.Now()
	for _, w := range f.workers {
		if err := w.stdin.Close(); err != nil {
			return nil, err
		}
	}
	for i, w := range f.workers {
		select {
		case <-w.ended:
			if w.err != nil {
				return nil, fmt.Errorf("process %d: %w", i, w.err)
			}
		case <-time.After(2 * time.Minute):
			return nil, fmt.Errorf("process %d does not end", i)
		}
	}
	r.stopped = time.Since(stopping)
	progress("all candidates ended after %v", r.stopped.Round(time.Millisecond))
	return r, nil
}

// prepare makes the tables and the workers' account, and returns its DSN.
func (f *fleet) prepare(ctx context.Context) (dsn string, err error) {
	name, err := f.server.CreateDatabase(ctx)
	if err != nil {
		return "", err
	}
	config := f.server.Config()
	config.DBName = name
	if f.admin, err = mysqllock.Open(config); err != nil {
		return "", err
	}
	if err := mysqllock.Migrate(ctx, f.admin); err != nil {
		return "", err
	}
	const password = "4Load-only" // on a throwaway server
	for _, statement := range []string{
		"CREATE USER 'load'@'%' IDENTIFIED BY '" + password + "'",
		"GRANT SELECT, INSERT, UPDATE ON " + name + ".* TO 'load'@'%'",
	} {
		if _, err := f.admin.ExecContext(ctx, statement); err != nil {
			return "", err
		}
	}
	config.User, config.Passwd = "load", password
	return config.FormatDSN(), nil
}

// launch starts a worker.
func (f *fleet) launch(ctx context.Context, process int, dsn string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	w := &workerProcess{command: exec.CommandContext(ctx, self, workerArgument), figures: make(chan figures, 1), ended: make(chan struct{})}
	if f.faults {
		address := f.server.Config().Addr
		if w.proxy, err = mysqltest.NewProxy(address); err != nil {
			return err
		}
		if !strings.Contains(dsn, address) {
			return fmt.Errorf("the DSN does not have the server's address, %s, so that the proxy would be passed by", address)
		}
		dsn = strings.Replace(dsn, address, w.proxy.Addr(), 1)
	}
	w.command.Stderr = os.Stderr
	w.command.Env = append(os.Environ(), "GOTRACEBACK=all")
	if w.stdin, err = w.command.StdinPipe(); err != nil {
		return err
	}
	stdout, err := w.command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := w.command.Start(); err != nil {
		return err
	}
	f.workers = append(f.workers, w)
	go func() {
		defer close(w.ended)
		w.err = errors.Join(f.listen(stdout, w), w.command.Wait())
	}()
	return json.NewEncoder(w.stdin).Encode(orders{
		DSN: dsn, Process: process, Processes: f.processes, Elections: f.elections, Candidates: f.candidates, Pool: f.pool,
		Timings: f.timings, Spread: f.spread, Batch: f.batch, Profiles: f.profiles,
	})
}

func (f *fleet) listen(stdout io.Reader, w *workerProcess) error {
	decoder := json.NewDecoder(bufio.NewReaderSize(stdout, 1<<16))
	for {
		var e event
		if err := decoder.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if e.Kind == measured {
			w.figures <- *e.Figures
			continue
		}
		f.mu.Lock()
		f.events = append(f.events, e)
		switch n := &f.leading[e.Election]; e.Kind {
		case leads:
			if *n++; *n == 1 {
				f.led++
			}
		case lost:
			if *n--; *n == 0 {
				f.led--
			}
		}
		f.mu.Unlock()
	}
}

// leaderLimit is how long a run waits for leaders before it measures without some of them: too many elections for the
// machine are what some runs are about.
const leaderLimit = 3 * time.Minute

// waitForLeaders waits until every election has a leader, and returns how many have.
func (f *fleet) waitForLeaders(ctx context.Context) (led int, err error) {
	for began, told := time.Now(), time.Now(); ; sleep(ctx, 20*time.Millisecond) {
		f.mu.Lock()
		led = f.led
		f.mu.Unlock()
		for i, w := range f.workers {
			select {
			case <-w.ended:
				return led, fmt.Errorf("process %d ended: %w", i, w.err)
			default:
			}
		}
		switch {
		case ctx.Err() != nil:
			return led, ctx.Err()
		case led == f.elections, time.Since(began) > leaderLimit:
			return led, nil
		case time.Since(told) > 10*time.Second:
			progress("%d of %d elections have a leader", led, f.elections)
			told = time.Now()
		}
	}
}

// measure takes down what the processes and the server use while f runs.
func (f *fleet) measure(ctx context.Context, during func() error) (*window, error) {
	pid, err := f.serverPID(ctx)
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
	cpu := cpuOf(pid)
	busy, all := machineCPU()
	if err := during(); err != nil {
		return nil, err
	}
	busyNow, allNow := machineCPU()
	if err := f.tell(end); err != nil {
		return nil, err
	}
	pidNow, err := f.serverPID(ctx)
	if err != nil {
		return nil, err
	}
	w.restarted = pidNow != pid
	w.serverCPU, w.serverMemory = cpuOf(pidNow)-cpu, residentMemory(pidNow)
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
		case <-process.ended:
			return nil, fmt.Errorf("process %d ended: %w", i, process.err)
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

func (f *fleet) tell(command string) error {
	for _, w := range f.workers {
		if _, err := fmt.Fprintln(w.stdin, command); err != nil {
			return err
		}
	}
	return nil
}

// serverPID is where the server says that it is.
func (f *fleet) serverPID(ctx context.Context) (int, error) {
	var file string
	if err := f.admin.QueryRowContext(ctx, "SELECT @@pid_file").Scan(&file); err != nil {
		return 0, err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(content)))
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

// signal sends a signal to a worker.
func (w *workerProcess) signal(s syscall.Signal) error { return w.command.Process.Signal(s) }

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
