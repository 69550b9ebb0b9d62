package mysqllock

import (
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// successors replaces old connections of a pool, each only once another one is open: make before
// break. sql.DB's SetConnMaxLifetime closes the old one first; where max_connections is used up by
// then (1040), the lease is lost, although the server went on answering.
//
// An old connection that is taken from the pool asks for a successor, and goes on being used. One
// goroutine opens the successor and offers it; whichever old connection is taken next becomes it.
// So there is at most one connection beyond the pool's limit, and one attempt at a time.
type successors struct {
	lifetime time.Duration // of a connection, and of an offer that nobody takes up
	pause    time.Duration // after an attempt that failed
	open     func(context.Context) (*preparedConn, error)
	offer    chan *preparedConn // unbuffered: what nobody takes stays with the goroutine, which closes it

	done    context.Context // of all attempts
	end     context.CancelFunc
	working sync.WaitGroup

	mu      sync.Mutex
	running bool // the goroutine
	failed  bool // its last attempt
}

func newSuccessors(lifetime, pause time.Duration, open func(context.Context) (*preparedConn, error)) *successors {
	s := &successors{lifetime: lifetime, pause: pause, open: open, offer: make(chan *preparedConn)}
	s.done, s.end = context.WithCancel(context.Background())
	return s
}

// of returns the successor of a connection opened at that time. It returns nil if that connection
// isn't old, or if no successor is open yet.
func (s *successors) of(opened time.Time) *preparedConn {
	if time.Since(opened) < s.lifetime {
		return nil
	}
	next := s.take()
	if next == nil {
		s.prepare()
	}
	return next
}

// take returns the connection on offer, or nil if there is none, or if it has died since.
func (s *successors) take() *preparedConn {
	select {
	case next := <-s.offer:
		if next.driverConn.ResetSession(s.done) == nil {
			return next
		}
		_ = next.Close()
	default:
	}
	return nil
}

// prepare makes the goroutine open a successor, unless it is busy with one.
func (s *successors) prepare() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running || s.done.Err() != nil {
		return
	}
	s.running = true
	s.working.Add(1)
	go s.run()
}

func (s *successors) run() {
	defer s.working.Done()
	next, err := s.open(s.done)
	if err != nil {
		s.report(err)
		select {
		case <-time.After(s.pause):
		case <-s.done.Done():
		}
	} else {
		select {
		case s.offer <- next:
		case <-time.After(s.lifetime):
			_ = next.Close()
		case <-s.done.Done():
			_ = next.Close()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.failed = false, err != nil
}

// report logs the first of several failures for everybody to see: once the server has ended this
// process's connections, there may be no other.
func (s *successors) report(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	logger := klog.Background()
	if s.failed {
		logger = logger.V(2)
	}
	if s.done.Err() == nil {
		logger.Info("No new connection to the server can be opened; an old one goes on being used", "err", publicText(err))
	}
}

// close ends the goroutine, and the connection on offer.
func (s *successors) close() {
	s.mu.Lock()
	s.end()
	s.mu.Unlock()
	s.working.Wait()
}
