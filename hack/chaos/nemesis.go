package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// slot is where candidates run, one after the other, each with an identity of its own.
type slot struct {
	name  string
	proxy *proxy
	start func(identity string) (*exec.Cmd, io.ReadCloser, error)
	heard *history
	busy  sync.Mutex // one fault at a time

	mu        sync.Mutex
	command   *exec.Cmd
	identity  string
	number    int
	ended     chan struct{}
	stoppedAt time.Time // zero if it is not stopped
}

func (s *slot) launch() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	s.identity = fmt.Sprintf("%s%d", s.name, s.number)
	command, output, err := s.start(s.identity)
	if err != nil {
		return err
	}
	s.command, s.ended, s.stoppedAt = command, make(chan struct{}), time.Time{}
	s.heard.add(event{Who: s.identity, Kind: started})
	go func(identity string, ended chan struct{}) {
		defer close(ended)
		lines := bufio.NewScanner(output)
		for lines.Scan() {
			var e event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				s.heard.add(event{Who: identity, Kind: failed, What: lines.Text()}) // a panic, say
				continue
			}
			s.heard.add(e)
		}
		err := command.Wait()
		s.heard.add(event{Who: identity, Kind: exited, What: fmt.Sprint(err)})
	}(s.identity, s.ended)
	return nil
}

func (s *slot) signal(signals ...syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, signal := range signals {
		switch signal {
		case syscall.SIGSTOP:
			s.stoppedAt = time.Now()
		case syscall.SIGCONT:
			s.stoppedAt = time.Time{}
		case syscall.SIGKILL:
			if !s.stoppedAt.IsZero() { // it won't say so itself
				s.heard.add(event{Who: s.identity, Kind: stalled, Duration: time.Since(s.stoppedAt)})
			}
		}
		_ = s.command.Process.Signal(signal) // it may have ended
	}
}

// replace ends the candidate by a signal and starts the next.
func (s *slot) replace(signals ...syscall.Signal) error {
	s.signal(signals...)
	select {
	case <-s.ended:
	case <-time.After(time.Minute):
		s.signal(syscall.SIGKILL)
		return fmt.Errorf("%s did not end within a minute of %v", s.identity, signals)
	}
	return s.launch()
}

// Who a fault hits, besides a slot by its number.
const (
	theServer = -1
	theLeader = -2 // whoever led last
)

// injection is a fault to be: what it is, when in its round, for how long, and whom it hits.
type injection struct {
	kind     string
	after    time.Duration
	duration time.Duration
	slot     int
}

// world is what the nemesis can break.
type world struct {
	slots   []*slot
	server  *mysqltest.Server
	admin   *sql.DB
	timings timings
}

// faults by name: each injects one, waits for its duration, and heals it. Those of the server run one at a time.
var candidateFaults = map[string]func(context.Context, *world, *slot, time.Duration) error{
	"kill -9 of a candidate": func(_ context.Context, _ *world, s *slot, _ time.Duration) error { return s.replace(syscall.SIGKILL) },
	"SIGTERM to a candidate": func(_ context.Context, _ *world, s *slot, _ time.Duration) error { return s.replace(syscall.SIGTERM) },
	"candidate paused":       pause(syscall.SIGCONT),
	"candidate paused, then killed": func(ctx context.Context, w *world, s *slot, d time.Duration) error {
		s.signal(syscall.SIGSTOP)
		sleep(ctx, w.timings.LeaseDuration+d/2)
		return s.replace(syscall.SIGKILL)
	},
	"candidate paused, then SIGTERM": func(ctx context.Context, w *world, s *slot, d time.Duration) error {
		s.signal(syscall.SIGSTOP)
		sleep(ctx, w.timings.LeaseDuration+d/2)
		return s.replace(syscall.SIGTERM, syscall.SIGCONT)
	},
	"candidate cut off, then SIGTERM": func(ctx context.Context, _ *world, s *slot, d time.Duration) error {
		s.proxy.set(network{holdFro: true}, false)
		sleep(ctx, d/4)
		s.signal(syscall.SIGTERM)
		sleep(ctx, d)
		s.proxy.set(network{}, true)
		return s.replace()
	},
	"network refused":                       broken(network{refuse: true}, true),
	"network black-holed, delivered late":   broken(network{holdTo: true, holdFro: true}, false),
	"network black-holed, then cut":         broken(network{holdTo: true, holdFro: true}, true),
	"only requests black-holed, then late":  broken(network{holdTo: true}, false),
	"only replies black-holed, then late":   broken(network{holdFro: true}, false),
	"replies lost (applied, not answered)":  broken(network{holdFro: true}, true),
	"network slow (around the deadline)":    broken(network{delay: 100 * time.Millisecond}, false),
	"network very slow (past the deadline)": broken(network{delay: 600 * time.Millisecond}, false),
}

var serverFaults = map[string]func(context.Context, *world, time.Duration) error{
	"server kill -9 and restart": func(ctx context.Context, w *world, d time.Duration) error {
		if err := w.server.Kill(); err != nil {
			return err
		}
		sleep(ctx, d/4)
		return w.server.Restart(context.WithoutCancel(ctx))
	},
	"server restart in good order": func(ctx context.Context, w *world, d time.Duration) error {
		if err := w.server.Stop(); err != nil {
			return err
		}
		sleep(ctx, d/4)
		return w.server.Restart(context.WithoutCancel(ctx))
	},
	"server frozen": func(ctx context.Context, w *world, d time.Duration) error {
		if err := w.server.Pause(); err != nil {
			return err
		}
		sleep(ctx, d)
		return w.server.Resume()
	},
	"all sessions killed": func(ctx context.Context, w *world, _ time.Duration) error {
		rows, err := w.admin.QueryContext(ctx, `SELECT id FROM information_schema.processlist WHERE user = 'chaos'`)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }() // rows.Err says what matters
		var ids []int64
		for rows.Next() {
			var id int64
			if err := rows.Scan(&id); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		for _, id := range ids {
			_, _ = w.admin.ExecContext(ctx, fmt.Sprintf("KILL %d", id)) // it may have ended
		}
		return rows.Err()
	},
	// So that candidates race: each sees what was, and writes after others have written.
	"network slow for all": func(ctx context.Context, w *world, d time.Duration) error {
		for _, s := range w.slots {
			s.proxy.set(network{delay: 100 * time.Millisecond}, false)
		}
		sleep(ctx, w.timings.LeaseDuration+d)
		for _, s := range w.slots {
			s.proxy.set(network{}, false)
		}
		return nil
	},
	"lease row locked by a session": locked(`SELECT version FROM election_records WHERE election_name = ? FOR UPDATE`),
	"fence row locked by a session": locked(`SELECT fencing_token FROM election_fences WHERE election_name = ? FOR UPDATE`),
	"table missing": func(ctx context.Context, w *world, d time.Duration) error {
		return reversible(ctx, w, d, `RENAME TABLE election_records TO election_records_away`, `RENAME TABLE election_records_away TO election_records`)
	},
	"fence table missing": func(ctx context.Context, w *world, d time.Duration) error {
		return reversible(ctx, w, d, `RENAME TABLE election_fences TO election_fences_away`, `RENAME TABLE election_fences_away TO election_fences`)
	},
	"server read-only": func(ctx context.Context, w *world, d time.Duration) error {
		return reversible(ctx, w, d, `SET GLOBAL read_only = 1`, `SET GLOBAL read_only = 0`)
	},
}

func pause(then syscall.Signal) func(context.Context, *world, *slot, time.Duration) error {
	return func(ctx context.Context, w *world, s *slot, d time.Duration) error {
		s.signal(syscall.SIGSTOP)
		sleep(ctx, w.timings.LeaseDuration/2+d)
		s.signal(then)
		return nil
	}
}

func broken(state network, drop bool) func(context.Context, *world, *slot, time.Duration) error {
	return func(ctx context.Context, _ *world, s *slot, d time.Duration) error {
		s.proxy.set(state, false)
		sleep(ctx, d)
		s.proxy.set(network{}, drop)
		return nil
	}
}

func locked(query string) func(context.Context, *world, time.Duration) error {
	return func(ctx context.Context, w *world, d time.Duration) error {
		tx, err := w.admin.BeginTx(context.WithoutCancel(ctx), nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }() // nothing was written
		var n int64
		if err := tx.QueryRowContext(ctx, query, election).Scan(&n); err != nil {
			return err
		}
		sleep(ctx, d)
		return nil
	}
}

// reversible does one statement and, whatever happens, the other.
func reversible(ctx context.Context, w *world, d time.Duration, do, undo string) error {
	always := context.WithoutCancel(ctx)
	if _, err := w.admin.ExecContext(always, do); err != nil {
		return err
	}
	sleep(ctx, d)
	_, err := w.admin.ExecContext(always, undo)
	return err
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// round is one to four faults, at times that overlap, at most one of them the server's.
func round(random *rand.Rand, slots int, t timings, candidateKinds, serverKinds []string) []injection {
	var faults []injection
	lease := int64(t.LeaseDuration)
	for range 1 + random.IntN(3) {
		faults = append(faults, injection{
			kind:  candidateKinds[random.IntN(len(candidateKinds))],
			after: time.Duration(random.Int64N(lease)), duration: time.Duration(lease/8 + random.Int64N(lease*5/4)),
		})
	}
	for i, slot := range random.Perm(slots)[:len(faults)] {
		faults[i].slot = slot
	}
	if random.IntN(3) != 0 {
		faults[0].slot = theLeader
	}
	if random.IntN(2) == 0 {
		faults = append(faults, injection{
			kind:  serverKinds[random.IntN(len(serverKinds))],
			after: time.Duration(random.Int64N(lease)), duration: time.Duration(lease/8 + random.Int64N(lease*5/4)), slot: theServer,
		})
	}
	return faults
}

// inject does a round's faults, and returns when all of them are healed.
func (w *world) inject(ctx context.Context, h *history, faults []injection) {
	var all sync.WaitGroup
	for _, f := range faults {
		all.Go(func() {
			sleep(ctx, f.after)
			if ctx.Err() != nil {
				return
			}
			who, what := "the server", f.kind
			began := time.Now()
			var err error
			if f.slot == theServer {
				err = serverFaults[f.kind](ctx, w, f.duration)
			} else {
				s := w.slot(f.slot, h)
				if !s.busy.TryLock() {
					return
				}
				defer s.busy.Unlock()
				s.mu.Lock()
				who = s.identity
				s.mu.Unlock()
				err = candidateFaults[f.kind](ctx, w, s, f.duration)
			}
			if err != nil {
				what = "FAILED: " + f.kind + ": " + err.Error()
			}
			h.add(event{Time: began, Kind: fault, Who: who, What: what, Duration: time.Since(began)})
		})
	}
	all.Wait()
}

// slot is that of a number, or the leader's.
func (w *world) slot(number int, h *history) *slot {
	if number != theLeader {
		return w.slots[number]
	}
	leader, _ := h.since(time.Time{}, leads)
	for _, s := range w.slots {
		s.mu.Lock()
		identity := s.identity
		s.mu.Unlock()
		if identity == leader.Who {
			return s
		}
	}
	return w.slots[0] // the leader's process has been replaced
}

// relaunch starts a candidate wherever none is.
func (w *world) relaunch() error {
	for _, s := range w.slots {
		select {
		case <-s.ended:
			if err := s.launch(); err != nil {
				return err
			}
		default:
		}
	}
	return nil
}

// command starts a candidate in a process of its own.
func command(o orders) (*exec.Cmd, io.ReadCloser, error) {
	encoded, err := json.Marshal(o)
	if err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	c := exec.CommandContext(context.Background(), self, "candidate")
	c.Env = append(os.Environ(), ordersVariable+"="+string(encoded))
	c.Stderr = os.Stderr
	output, err := c.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	return c, output, c.Start()
}
