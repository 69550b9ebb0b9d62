package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/faults"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// world is what the nemesis can break.
type world struct {
	slots   []*slot
	site    site
	timings elector.Timings
	disk    string // the folder of a small file system in which the server is; "" if it is in a large one
	heard   *history
}

// Faults by name: each injects one, waits for its duration, and heals it. Those of the server run one at a time.
type (
	candidateFault func(context.Context, *world, *slot, time.Duration) error
	serverFault    func(context.Context, *world, time.Duration) error
)

var candidateFaults = map[string]candidateFault{
	"kill -9 of a candidate": func(_ context.Context, _ *world, s *slot, _ time.Duration) error { return s.replace(syscall.SIGKILL) },
	"SIGTERM to a candidate": func(_ context.Context, _ *world, s *slot, _ time.Duration) error { return s.replace(syscall.SIGTERM) },
	"candidate paused":       pause(syscall.SIGCONT),
	"candidate paused, then killed": func(ctx context.Context, w *world, s *slot, d time.Duration) error {
		s.signal(syscall.SIGSTOP)
		wait.For(ctx, w.timings.LeaseDuration+d/2)
		return s.replace(syscall.SIGKILL)
	},
	"candidate paused, then SIGTERM": func(ctx context.Context, w *world, s *slot, d time.Duration) error {
		s.signal(syscall.SIGSTOP)
		wait.For(ctx, w.timings.LeaseDuration+d/2)
		return s.replace(syscall.SIGTERM, syscall.SIGCONT)
	},
	"candidate cut off, then SIGTERM": func(ctx context.Context, _ *world, s *slot, d time.Duration) error {
		s.proxy.Set(mysqltest.Network{HoldReplies: true})
		wait.For(ctx, d/4)
		s.signal(syscall.SIGTERM)
		wait.For(ctx, d)
		s.proxy.Cut() // what was held is lost
		s.proxy.Set(mysqltest.Network{})
		return s.replace()
	},
	commitLost:                              losing(loss{to: "COMMIT", why: commitLost}),
	writeLost:                               losing(loss{to: "UPDATE", why: writeLost}),
	transactionLeft:                         leaveTransaction,
	"network refused":                       broken(mysqltest.Network{Refuse: true}, true),
	"network black-holed, delivered late":   broken(mysqltest.Network{HoldRequests: true, HoldReplies: true}, false),
	"network black-holed, then cut":         broken(mysqltest.Network{HoldRequests: true, HoldReplies: true}, true),
	"only requests black-holed, then late":  broken(mysqltest.Network{HoldRequests: true}, false),
	"only replies black-holed, then late":   broken(mysqltest.Network{HoldReplies: true}, false),
	"replies lost (applied, not answered)":  broken(mysqltest.Network{HoldReplies: true}, true),
	"network slow (around the deadline)":    broken(slow(100*time.Millisecond), false),
	"network very slow (past the deadline)": broken(slow(600*time.Millisecond), false),
}

// clockFaults are those of clocks that can be bent.
var clockFaults = map[string]candidateFault{
	"wall clock a year ahead":    bent(clockOrder{Ahead: 365 * 24 * time.Hour, Rate: 1}),
	"wall clock an hour behind":  bent(clockOrder{Ahead: -time.Hour, Rate: 1}),
	"clocks at 1.5 times speed":  bent(clockOrder{Rate: 1.5}),
	"clocks at 1.05 times speed": bent(clockOrder{Rate: 1.05}),
	"clocks at 0.95 times speed": bent(clockOrder{Rate: 0.95}),
	"clocks at 0.5 times speed":  bent(clockOrder{Rate: 0.5}),
}

func bent(o clockOrder) candidateFault {
	return func(ctx context.Context, w *world, s *slot, d time.Duration) error {
		return s.setClock(ctx, o, w.timings.LeaseDuration+d)
	}
}

var serverFaults = map[string]serverFault{
	"server kill -9 and restart":   restarted((*mysqltest.Server).Kill),
	"server restart in good order": restarted((*mysqltest.Server).Stop),
	"server frozen": func(ctx context.Context, w *world, d time.Duration) error {
		return faults.Freeze(ctx, w.site.node(d).server, d)
	},
	"all sessions killed": func(ctx context.Context, w *world, _ time.Duration) error { return w.killSessions(ctx) },
	"sessions killed again and again": func(ctx context.Context, w *world, d time.Duration) error {
		for end := trueTime().Add(d); trueTime().Before(end) && ctx.Err() == nil; wait.For(ctx, w.timings.RetryPeriod/2) {
			if err := w.killSessions(ctx); err != nil {
				return err
			}
		}
		return nil
	},
	// So that candidates race: each sees what was, and writes after others have written.
	"network slow for all": func(ctx context.Context, w *world, d time.Duration) error {
		for _, s := range w.slots {
			s.proxy.Set(slow(100 * time.Millisecond))
		}
		wait.For(ctx, w.timings.LeaseDuration+d)
		for _, s := range w.slots {
			s.proxy.Set(mysqltest.Network{})
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
	"server refuses to serve": refuseToServe,
	"connections used up":     useUpConnections,
}

// harmless are the faults of a server that can be had of one that others use, too.
var harmless = []string{"network slow for all", "lease row locked by a session", "fence row locked by a session"}

// commanded is a fault that somebody else knows how to inject and to heal.
func commanded(command string) serverFault {
	return func(ctx context.Context, _ *world, _ time.Duration) error {
		output, err := exec.CommandContext(context.WithoutCancel(ctx), "sh", "-c", command).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
		return nil
	}
}

const diskFull = "disk full"

// fillDisk leaves no byte. It ends with a crash: no server is trusted to go on by itself afterwards.
func fillDisk(ctx context.Context, w *world, d time.Duration) error {
	path := filepath.Join(w.disk, "full")
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	for block := make([]byte, 1<<16); err == nil && ctx.Err() == nil; {
		_, err = file.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return errors.Join(err, ctx.Err(), file.Close(), os.Remove(path))
	}
	wait.For(ctx, d)
	if err := errors.Join(file.Close(), os.Remove(path)); err != nil {
		return err
	}
	return faults.Restart(ctx, w.site.node(d).server, (*mysqltest.Server).Kill, 0)
}

func restarted(end func(*mysqltest.Server) error) serverFault {
	return func(ctx context.Context, w *world, d time.Duration) error {
		return faults.Restart(ctx, w.site.node(d).server, end, d/4)
	}
}

// killSessions kills the candidates' sessions.
func (w *world) killSessions(ctx context.Context) error {
	for _, n := range w.site.nodes {
		ids, err := faults.Sessions(ctx, n.admin, account)
		if err != nil {
			return err
		}
		faults.Kill(ctx, n.admin, ids...)
	}
	return nil
}

func pause(then syscall.Signal) candidateFault {
	return func(ctx context.Context, w *world, s *slot, d time.Duration) error {
		s.signal(syscall.SIGSTOP)
		wait.For(ctx, w.timings.LeaseDuration/2+d)
		s.signal(then)
		return nil
	}
}

// broken delivers what it held back late, unless drop: then the connections end without it.
func broken(n mysqltest.Network, drop bool) candidateFault {
	return func(ctx context.Context, _ *world, s *slot, d time.Duration) error {
		faults.Break(ctx, s.proxy.Proxy, n, d, drop)
		return nil
	}
}

func slow(d time.Duration) mysqltest.Network {
	return mysqltest.Network{DelayRequests: d, DelayReplies: d}
}

func losing(l loss) candidateFault {
	return func(ctx context.Context, _ *world, s *slot, d time.Duration) error {
		s.proxy.lose(l)
		wait.For(ctx, d)
		s.proxy.lose(loss{})
		return nil
	}
}

func locked(query string) serverFault {
	return func(ctx context.Context, w *world, d time.Duration) error {
		return insist(ctx, func() error {
			tx, err := w.site.node(d).admin.BeginTx(context.WithoutCancel(ctx), nil)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }() // nothing was written
			var n int64
			if err := tx.QueryRowContext(ctx, query, election).Scan(&n); err != nil {
				return err
			}
			wait.For(ctx, d)
			return nil
		})
	}
}

// reversible does one statement and, whatever happens, the other.
func reversible(ctx context.Context, w *world, d time.Duration, do, undo string) error {
	always := context.WithoutCancel(ctx)
	admin := w.site.node(d).admin
	exec := func(statement string) error {
		return insist(always, func() error {
			_, err := admin.ExecContext(always, statement)
			return err
		})
	}
	err := exec(do)
	if err == nil {
		wait.For(ctx, d)
		return exec(undo)
	}
	_, _ = admin.ExecContext(always, undo) // it may have been done nevertheless
	return err
}

// insist repeats what the server does not get its locks for: a RENAME TABLE on MySQL 9.7, or a row that a transaction
// holds whose candidate was cut off.
func insist(ctx context.Context, try func() error) error {
	for end := trueTime().Add(time.Minute); ; wait.For(ctx, 100*time.Millisecond) {
		err := try()
		var server *mysql.MySQLError
		if !errors.As(err, &server) || server.Number != 1205 || trueTime().After(end) || ctx.Err() != nil {
			return err
		}
	}
}

// failure begins the name of a fault that could not be injected, or not be healed.
const failure = "FAILED: "

// inject does a round's faults, and returns when all of them are healed.
func (w *world) inject(ctx context.Context, s *schedule) {
	var all sync.WaitGroup
	for _, f := range s.round() {
		all.Go(func() {
			wait.For(ctx, f.after)
			if ctx.Err() != nil {
				return
			}
			who, what := "the server", f.kind
			began := trueTime()
			var err error
			if f.slot == theServer {
				err = errors.Join(s.server(f.kind)(ctx, w, f.duration), w.site.whole(context.WithoutCancel(ctx)))
			} else {
				slot := w.slot(f.slot)
				if !slot.busy.TryLock() {
					return
				}
				defer slot.busy.Unlock()
				who = slot.who()
				err = s.candidateFaults[f.kind](ctx, w, slot, f.duration)
			}
			if err != nil {
				what = failure + f.kind + ": " + err.Error()
			}
			w.heard.add(event{Time: began, Kind: fault, Who: who, What: what, Duration: trueTime().Sub(began)})
		})
	}
	all.Wait()
}

// slot is that of a number, or the leader's.
func (w *world) slot(number int) *slot {
	if number != theLeader {
		return w.slots[number]
	}
	leader := w.heard.last(leads).Who
	for _, s := range w.slots {
		if s.who() == leader {
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
