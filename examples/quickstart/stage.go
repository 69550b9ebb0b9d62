package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// errInterrupted is the end by Ctrl-C.
var errInterrupted = errors.New("interrupted")

// Each wait has a limit, far longer than what is expected on a slow machine.
const (
	serverLimit   = 90 * time.Second // making and starting a server
	electionLimit = 20 * time.Second // anything that takes the candidates a lease at most
	endLimit      = 10 * time.Second // the orderly end of a process
)

// replacementDelay keeps candidates that end at once, as while the server is
// down, from being started over and over.
const replacementDelay = 500 * time.Millisecond

// stage is the stage manager: it starts, stops, kills and watches the
// candidates. One goroutine does all of that; others only send events.
type stage struct {
	*timeline
	verbose    bool
	server     *mysqltest.Server // nil: the database is the user's own
	db         *sql.DB
	election   string
	env        []string // of the candidates
	candidates []*candidate
	happened   chan event
	closed     chan struct{}
	closing    bool
	abandoned  int      // how many candidates ended unasked
	problems   []error  // that the acts don't wait for
	results    []string // for the summary
	aside      string   // what the summary's last sentence leaves out
}

// runStage performs all acts and checks at the end that no two candidates led
// at one moment.
func runStage(args []string) error {
	flags := flag.NewFlagSet("quickstart", flag.ExitOnError)
	verbose := flags.Bool("v", false, "write the candidates' logs to stderr")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: quickstart [-v]                  the demonstration\n"+
			"       quickstart candidate [-id NAME] [-election NAME] [-v]")
		flags.PrintDefaults()
	}
	_ = flags.Parse(args) // ExitOnError
	if flags.NArg() > 0 {
		flags.Usage()
		return fmt.Errorf("%q is neither a flag nor \"candidate\"", flags.Arg(0))
	}
	if !*verbose {
		klog.SetLogger(klog.Logger{})
	}
	ctx, ignore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer ignore()

	s := &stage{timeline: newTimeline(os.Stdout), verbose: *verbose, happened: make(chan event, 100), closed: make(chan struct{})}
	err := s.openDatabase(ctx)
	if err == nil {
		err = s.perform(ctx)
	}
	if ctx.Err() != nil {
		err = errInterrupted
		s.note("interrupted: everything ends now")
	}
	err = errors.Join(err, s.close(ctx), errors.Join(s.problems...))
	if len(terms(s.events)) > 0 || err == nil {
		err = errors.Join(err, s.check())
	}
	if err != nil {
		return err
	}
	s.heading("Result")
	for _, result := range append(s.results, fmt.Sprintf("%d terms in %.0f s; at no moment did two candidates lead%s", len(terms(s.events)), seconds(time.Now().UnixNano()-s.began), s.aside)) {
		fmt.Fprintln(s.out, "  "+result)
	}
	return nil
}

// leader is the candidate that leads now, nil if there is none.
func (s *stage) leader() *candidate {
	for _, c := range s.candidates {
		if c.leads {
			return c
		}
	}
	return nil
}

// settled waits until three candidates run, one leads, and the others know.
func (s *stage) settled(ctx context.Context) (leader *candidate, err error) {
	err = s.await(ctx, electionLimit, "three candidates agree on one leader", func() bool {
		leader = s.leader()
		running := 0
		for _, c := range s.candidates {
			if c.ended {
				continue
			}
			running++
			if leader == nil || c != leader && c.sees != leader.name {
				return false
			}
		}
		return running == 3
	})
	return leader, err
}

// await handles events until condition holds, and looks at it now and then also
// without an event.
func (s *stage) await(ctx context.Context, limit time.Duration, what string, condition func() bool) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if s.abandoned > 10 {
			return fmt.Errorf("candidates end unasked, again and again (the timeline says why), so that this did not happen: %s", what)
		}
		select {
		case e := <-s.happened:
			s.handle(ctx, e)
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return fmt.Errorf("this did not happen within %v: %s", limit, what)
		}
	}
	return nil
}

// during handles events while f runs.
func (s *stage) during(ctx context.Context, what string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case e := <-s.happened:
			s.handle(ctx, e)
		case <-tick.C:
			s.note("... %s goes on", what)
		case err := <-done:
			return err
		}
	}
}

// handle puts what happened on the timeline, and replaces a candidate that
// ended unasked, as Kubernetes or systemd would.
func (s *stage) handle(ctx context.Context, e event) {
	if e.What == replacementDue {
		if s.closing || ctx.Err() != nil {
			return
		}
		if err := s.start(ctx); err != nil {
			s.problems = append(s.problems, err)
		}
		return
	}
	s.add(e)
	c := s.candidate(e.Candidate)
	switch e.What {
	case startedLeading:
		c.leads, c.sees = true, c.name
	case stoppedLeading, paused:
		c.leads = false
	case seesLeader:
		c.sees = e.Detail
	case notUnderstood:
		// It may have been a report of leadership.
		s.problems = append(s.problems, fmt.Errorf("%s wrote to its stdout what is no report: %s", e.Candidate, e.text))
	case processEnded:
		c.leads, c.ended = false, true
		if c.told && !c.killed && c.sees != "" && e.failure != nil {
			s.problems = append(s.problems, fmt.Errorf("%s was asked to stop and did not end in an orderly way: %s", c.name, e.text))
		}
		if !c.told && !s.closing && ctx.Err() == nil {
			s.abandoned++
			s.note("a new process will replace %s, which ended unasked", c.name)
			time.AfterFunc(replacementDelay, func() { s.send(event{What: replacementDue}) })
		}
	}
}

// send hands an event to handle; after close nobody listens.
func (s *stage) send(e event) {
	select {
	case s.happened <- e:
	case <-s.closed:
	}
}

func (s *stage) tell(name, words string) {
	s.add(event{Time: time.Now().UnixNano(), Candidate: name, What: words})
}

func (s *stage) note(format string, args ...any) {
	s.add(event{Time: time.Now().UnixNano(), What: note, text: fmt.Sprintf(format, args...)})
}

func (s *stage) result(format string, args ...any) {
	s.results = append(s.results, fmt.Sprintf(format, args...))
}

// close ends the candidates and the server, and leaves nothing behind.
func (s *stage) close(ctx context.Context) error {
	s.closing = true
	defer close(s.closed)
	ctx = context.WithoutCancel(ctx)
	if s.candidates != nil {
		s.heading("The end")
	}
	for _, c := range s.candidates {
		if !c.ended {
			c.told = true
			_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may just have ended
		}
	}
	ended := func() bool {
		for _, c := range s.candidates {
			if !c.ended {
				return false
			}
		}
		return true
	}
	s.abandoned = 0
	err := s.await(ctx, endLimit, "all candidates end after a SIGTERM", ended)
	if err != nil {
		for _, c := range s.candidates {
			c.killed = true
			_ = c.cmd.Process.Kill() // it may just have ended
		}
		err = errors.Join(err, s.await(ctx, endLimit, "all candidates end after a SIGKILL", ended))
	}
	if s.candidates != nil && s.server == nil {
		s.deleteRows(ctx)
	}
	if s.db != nil {
		err = errors.Join(err, s.db.Close())
	}
	if s.server != nil {
		err = errors.Join(err, s.server.Close())
		s.note("the throwaway server and its data are gone")
	}
	return err
}
