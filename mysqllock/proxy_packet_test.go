package mysqllock_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// severed is a client's network that fails at a chosen packet, with neither FIN
// nor RST: the server believes in the client until a timeout of its own. It
// counts at the client, where each packet of the protocol is one Write.
type severed struct {
	mu    sync.Mutex
	sent  int
	limit int // packets that get through; negative: all
	done  bool
	cut   chan struct{} // closed when nothing gets through any more
	over  chan struct{} // closed at the end of the test
	conns []net.Conn
}

func newSevered(t testing.TB) *severed {
	s := &severed{limit: -1, cut: make(chan struct{}), over: make(chan struct{})}
	t.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.over)
		for _, conn := range s.conns {
			_ = conn.Close() // whatever it says, it is closed
		}
	})
	return s
}

// config is a configuration for connections over that network.
func (s *severed) config(c *mysql.Config) *mysql.Config {
	c = c.Clone()
	c.DialFunc = s.dial
	return c
}

// after lets n more packets through. The reply to the last of them is lost.
func (s *severed) after(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent, s.limit = 0, n
	s.sever()
}

// count starts counting anew, and returns how many packets there were.
func (s *severed) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sent
	s.sent = 0
	return n
}

// sever cuts the network off if it is time to; the caller holds s.mu.
func (s *severed) sever() {
	if s.limit >= 0 && s.sent >= s.limit && !s.done {
		s.done = true
		close(s.cut)
	}
}

func (s *severed) dial(ctx context.Context, network, address string) (net.Conn, error) {
	select {
	case <-s.cut:
		<-ctx.Done()
		return nil, ctx.Err()
	default:
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, conn)
	return &severedConn{Conn: conn, network: s, closed: make(chan struct{})}, nil
}

type severedConn struct {
	net.Conn
	network *severed
	once    sync.Once
	closed  chan struct{}
}

func (c *severedConn) Write(b []byte) (int, error) {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	if c.network.done {
		return len(b), nil // into the void
	}
	n, err := c.Conn.Write(b)
	c.network.sent++
	c.network.sever()
	return n, err
}

func (c *severedConn) Read(b []byte) (int, error) {
	select {
	case <-c.network.cut:
		select {
		case <-c.closed:
		case <-c.network.over: // as when TCP gives up in the end
		}
		return 0, net.ErrClosed
	default:
		return c.Conn.Read(b)
	}
}

// Close tells the server nothing once the network is cut off.
func (c *severedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	select {
	case <-c.network.cut:
		return nil
	default:
		return c.Conn.Close()
	}
}

// stubborn is a client's network on which the reply to one packet takes its
// time and then arrives, whatever the client does: closing the connection does
// not end the wait. So it is for a process that is paused while the reply is on
// its way, and with a driver that heeds no deadline. After that it is cut off.
type stubborn struct {
	delay   time.Duration
	matches func(packet []byte) bool

	severed *severed
	mu      sync.Mutex
	armed   bool
}

func newStubborn(t testing.TB, delay time.Duration, matches func(packet []byte) bool) *stubborn {
	return &stubborn{delay: delay, matches: matches, severed: newSevered(t)}
}

func (s *stubborn) config(c *mysql.Config) *mysql.Config {
	c = c.Clone()
	c.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := s.severed.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &stubbornConn{Conn: conn, network: s}, nil
	}
	return c
}

// arm makes the next packet that matches the one.
func (s *stubborn) arm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = true
}

type stubbornConn struct {
	net.Conn
	network *stubborn

	mu      sync.Mutex
	waiting bool // for the reply that takes its time
	closed  bool // meanwhile
}

func (c *stubbornConn) Write(b []byte) (int, error) {
	c.network.mu.Lock()
	match := c.network.armed && c.network.matches(b)
	if match {
		c.network.armed = false
	}
	c.network.mu.Unlock()
	if match {
		c.mu.Lock()
		c.waiting = true
		c.mu.Unlock()
	}
	return c.Conn.Write(b)
}

func (c *stubbornConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	waiting := c.waiting
	c.mu.Unlock()
	if !waiting {
		return n, err
	}
	<-time.After(c.network.delay) // the delay is what this is for
	c.network.severed.after(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = false
	if c.closed {
		_ = c.Conn.Close() // whatever it says, it is closed
	}
	return n, err
}

func (c *stubbornConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting {
		c.closed = true
		return nil
	}
	return c.Conn.Close()
}
