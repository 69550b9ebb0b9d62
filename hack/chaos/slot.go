package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/child"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
)

// slot is where candidates run, one after the other, each with an identity of its own.
type slot struct {
	name   string
	proxy  *proxy
	orders orders        // for each of its candidates, but for identity and number
	count  *atomic.Int64 // of all candidates of the run
	heard  *history
	busy   sync.Mutex // one fault at a time

	mu        sync.Mutex
	process   *child.Process
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
	o := s.orders
	o.Identity, o.Number, o.Epoch = s.identity, int(s.count.Add(1)), epoch
	identity, ended := s.identity, make(chan struct{})
	s.heard.add(event{Who: identity, Kind: started})
	process, err := child.Start(context.Background(), candidateArgument, o, func(line []byte) error {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			e = event{Who: identity, Kind: babbled, What: string(line)}
		}
		s.heard.add(e)
		return nil
	})
	if err != nil {
		return err
	}
	s.process, s.ended, s.stoppedAt = process, ended, time.Time{}
	go func() {
		defer close(ended)
		s.heard.add(event{Who: identity, Kind: exited, What: fmt.Sprint(process.Wait())})
	}()
	return nil
}

func (s *slot) signal(signals ...syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, signal := range signals {
		switch signal {
		case syscall.SIGSTOP:
			s.stoppedAt = trueTime()
		case syscall.SIGCONT:
			s.stoppedAt = time.Time{}
		case syscall.SIGKILL:
			if !s.stoppedAt.IsZero() { // it won't say so itself
				s.heard.add(event{Who: s.identity, Kind: stalled, Duration: trueTime().Sub(s.stoppedAt)})
			}
		}
		_ = s.process.Signal(signal) // it may have ended
	}
}

// tell gives the candidate an order.
func (s *slot) tell(o order) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.Tell(o)
}

// setClock bends the clocks of the candidate for a time.
func (s *slot) setClock(ctx context.Context, o clockOrder, d time.Duration) error {
	began := trueTime()
	if err := s.tell(order{Clock: &o}); err != nil {
		return err
	}
	wait.For(ctx, d)
	err := s.tell(order{Clock: &clockOrder{Rate: 1}})
	if o.Rate != 1 {
		// Until it has obeyed, that is.
		s.heard.add(event{Who: s.who(), Kind: skewed, Time: trueTime().Add(stall), Duration: trueTime().Add(stall).Sub(began), Rate: o.Rate})
	}
	return err
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

func (s *slot) who() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity
}
