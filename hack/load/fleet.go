package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/child"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

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
	*child.Process

	proxy   *mysqltest.Proxy // nil without faults
	figures chan figures
}

// account is the workers' own at the server.
const account = "worker"

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
	password := rand.Text()
	for _, statement := range []string{
		"CREATE USER " + account + "@'%' IDENTIFIED BY '" + password + "'",
		"GRANT SELECT, INSERT, UPDATE ON " + name + ".* TO " + account + "@'%'",
	} {
		if _, err := f.admin.ExecContext(ctx, statement); err != nil {
			return "", err
		}
	}
	config.User, config.Passwd = account, password
	return config.FormatDSN(), nil
}

// launch starts a worker.
func (f *fleet) launch(ctx context.Context, process int, dsn string) (err error) {
	w := &workerProcess{figures: make(chan figures, 1)}
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
	w.Process, err = child.Start(ctx, workerArgument, orders{
		DSN: dsn, Process: process, Processes: f.processes, Elections: f.elections, Candidates: f.candidates, Pool: f.pool,
		Timings: f.timings, Spread: f.spread, Batch: f.batch, Profiles: f.profiles,
	}, func(line []byte) error { return f.heard(w, line) }, "GOTRACEBACK=all")
	if err != nil {
		return err
	}
	f.workers = append(f.workers, w)
	return nil
}

// heard takes down an event.
func (f *fleet) heard(w *workerProcess, line []byte) error {
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	if e.Kind == measured {
		w.figures <- *e.Figures
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
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
	return nil
}

// leaderLimit is how long a run waits for leaders before it measures without some of them: too many elections for the
// machine are what some runs are about.
const leaderLimit = 3 * time.Minute

// waitForLeaders waits until every election has a leader, and returns how many have.
func (f *fleet) waitForLeaders(ctx context.Context) (led int, err error) {
	for began, told := time.Now(), time.Now(); ; wait.For(ctx, 20*time.Millisecond) {
		f.mu.Lock()
		led = f.led
		f.mu.Unlock()
		for i, w := range f.workers {
			select {
			case <-w.Ended():
				return led, fmt.Errorf("process %d ended: %w", i, w.Wait())
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

func (f *fleet) tell(command string) error {
	for _, w := range f.workers {
		if err := w.Tell(command); err != nil {
			return err
		}
	}
	return nil
}
