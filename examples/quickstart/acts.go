package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/tools/leaderelection"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

func (s *stage) perform(ctx context.Context) error {
	acts := []struct {
		title   string
		perform func(context.Context) error
	}{
		{"An election: three candidates, one leader", s.elect},
		{"A handover: the leader is asked to stop (SIGTERM)", s.handOver},
		{"A crash: the leader is killed (kill -9)", s.crash},
		{"An outage: the database server is killed and restarted", s.outage},
		{"A pause: the leader is stopped in the middle of a transaction, past its lease", s.pause},
	}
	for i, act := range acts {
		s.heading(fmt.Sprintf("Act %d  %s", i+1, act.title))
		if err := act.perform(ctx); err != nil {
			return fmt.Errorf("act %d: %w", i+1, err)
		}
	}
	return nil
}

// elect has three candidates start at once.
func (s *stage) elect(ctx context.Context) error {
	for range 3 {
		if err := s.start(ctx); err != nil {
			return err
		}
	}
	_, err := s.settled(ctx)
	return err
}

// handOver measures the time from a SIGTERM to the next leader's start.
func (s *stage) handOver(ctx context.Context) error {
	took, err := s.lose(ctx, "asked to stop", func(leader *candidate) error {
		leader.told = true
		return leader.cmd.Process.Signal(syscall.SIGTERM)
	})
	longest := time.Duration(float64(retryPeriod) * (1 + leaderelection.JitterFactor))
	s.result("handover after SIGTERM: %.3f s (the leader gave its lease back; followers look every %v to %v)", took, retryPeriod, longest)
	return err
}

// crash measures the time from a SIGKILL to the next leader's start.
func (s *stage) crash(ctx context.Context) error {
	took, err := s.lose(ctx, "killed", func(leader *candidate) error {
		leader.told, leader.killed = true, true
		return leader.cmd.Process.Kill()
	})
	s.result("failover after kill -9: %.3f s (the lease of %v had to run out)", took, leaseDuration)
	return err
}

// lose ends the leader, waits for the next one, and replaces the old one.
func (s *stage) lose(ctx context.Context, what string, end func(*candidate) error) (took float64, err error) {
	leader, err := s.settled(ctx)
	if err != nil {
		return 0, err
	}
	s.tell(leader.name, "is "+what)
	began := time.Now().UnixNano()
	if err := end(leader); err != nil {
		return 0, fmt.Errorf("%s: %w", leader.name, err)
	}
	var next event
	err = s.await(ctx, electionLimit, "another candidate leads", func() bool {
		for _, e := range s.events {
			if e.What == startedLeading && e.Time > began && e.Candidate != leader.name {
				next = e
				return true
			}
		}
		return false
	})
	if err != nil {
		return 0, err
	}
	err = s.await(ctx, endLimit, leader.name+" has ended", func() bool { return leader.ended })
	if err != nil {
		return 0, err
	}
	took = seconds(next.Time - began)
	s.note("%s leads %.3f s after %s was %s; a new process replaces %s", next.Candidate, took, leader.name, what, leader.name)
	if err := s.start(ctx); err != nil {
		return 0, err
	}
	_, err = s.settled(ctx)
	return took, err
}

// outage kills the server and starts it again. Whether the leader gets its
// renewal through in time depends on how long that takes; both is fine.
func (s *stage) outage(ctx context.Context) error {
	if s.server == nil {
		s.note("left out: the database is not this program's own to kill")
		return nil
	}
	before, err := s.settled(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	s.note("the server is killed, and started again at once")
	err = s.during(ctx, "the server's restart", func() error {
		if err := s.server.Kill(); err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, serverLimit)
		defer cancel()
		return s.server.Restart(limited)
	})
	if err != nil {
		return err
	}
	back := time.Now()
	s.abandoned = 0 // without a server, a candidate that starts can only end
	down := back.Sub(began).Seconds()
	s.note("the server answers again, %.3f s later", down)
	var after string
	var last error
	err = s.await(ctx, electionLimit, "a leader has written to the database since", func() bool {
		e, err := mysqllock.GetElection(ctx, s.db, s.election, mysqllock.WithOperationTimeout(time.Second))
		if err != nil {
			last = err
			return false
		}
		// The server's clock is this machine's.
		if leader := s.leader(); leader != nil && leader.name == e.Holder && e.LastUpdate.After(back) {
			after = e.Holder
			return true
		}
		return false
	})
	if err != nil {
		return errors.Join(err, last)
	}
	verdict := "leadership survived: " + after + " renewed its lease in time"
	if after != before.name {
		verdict = fmt.Sprintf("leadership moved from %s, which could not renew its lease within %v, to %s", before.name, renewDeadline, after)
	}
	s.note("%s", verdict)
	s.result("server killed, back after %.3f s: %s", down, verdict)
	_, err = s.settled(ctx)
	return err
}

// pause stops the leader in the middle of a transaction until another one leads
// and has committed one. No lease can keep the first from going on when it wakes
// up; what keeps it from committing is the fence.
func (s *stage) pause(ctx context.Context) error {
	if s.server == nil {
		s.note("left out: it needs a table of its own in the database")
		return nil
	}
	if _, err := s.db.ExecContext(ctx, `CREATE TABLE quickstart_ledger (id INT AUTO_INCREMENT PRIMARY KEY, entry VARCHAR(255) NOT NULL) ENGINE=InnoDB`); err != nil {
		return err
	}
	stale, err := s.settled(ctx)
	if err != nil {
		return err
	}
	if err := s.post(ctx, stale, inTransaction); err != nil {
		return err
	}
	if err := stale.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("%s: %w", stale.name, err)
	}
	s.handle(ctx, event{Time: time.Now().UnixNano(), Candidate: stale.name, What: paused})
	var leader *candidate
	err = s.await(ctx, electionLimit, "another candidate leads", func() bool {
		leader = s.leader()
		return leader != nil
	})
	if err != nil {
		return err
	}
	if err := s.post(ctx, leader, committed); err != nil {
		return err
	}
	s.tell(stale.name, "goes on where it was (SIGCONT), and knows nothing of all that")
	seen := len(s.events)
	if err := stale.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("%s: %w", stale.name, err)
	}
	var outcome string
	err = s.await(ctx, electionLimit, stale.name+" has tried to commit, and has ended", func() bool {
		for _, e := range s.events[seen:] {
			if e.Candidate == stale.name && (e.What == committed || e.What == commitRefused) {
				outcome = e.What
			}
		}
		return outcome != "" && stale.ended
	})
	if err != nil {
		return err
	}
	var entries string
	if err := s.db.QueryRowContext(ctx, `SELECT GROUP_CONCAT(entry ORDER BY id SEPARATOR ', ') FROM quickstart_ledger`).Scan(&entries); err != nil {
		return err
	}
	s.note("committed are the entries: %s", entries)
	if outcome != commitRefused || strings.Contains(entries, stale.name) {
		return fmt.Errorf("the stale leader %s committed a transaction", stale.name)
	}
	s.result("stale leader's transaction: refused, although %s had begun it while it led", stale.name)
	s.aside = " (apart from the paused one, which could do nothing)"
	_, err = s.settled(ctx)
	return err
}

// post has the leader write to the ledger, and waits until it has come so far.
func (s *stage) post(ctx context.Context, leader *candidate, until string) error {
	seen := len(s.events)
	if err := leader.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		return fmt.Errorf("%s: %w", leader.name, err)
	}
	return s.await(ctx, electionLimit, leader.name+" "+until, func() bool {
		for _, e := range s.events[seen:] {
			if e.Candidate == leader.name && e.What == until {
				return true
			}
		}
		return false
	})
}
