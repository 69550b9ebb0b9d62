package mysqllock_test

import (
	"bytes"
	"context"
	"net"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// severed is a client's network that fails at a chosen packet, with neither FIN nor RST: the server
// believes in the client until a timeout of its own. It counts at the client, where each packet of
// the protocol is one Write.
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

// proxy is a mysqltest.Proxy by the faults that the tests need.
type proxy struct {
	*mysqltest.Proxy

	// onRequest sees what clients send before it is held back or forwarded. Set it before the first
	// connection.
	onRequest func(request []byte)
}

// newProxy starts a proxy before the server at that address, for the duration of the test. It
// forwards everything.
func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	started, err := mysqltest.NewProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(started.Close)
	p := &proxy{Proxy: started}
	p.Watch(func() mysqltest.Hooks {
		return mysqltest.Hooks{Request: func(request []byte) {
			if p.onRequest != nil {
				p.onRequest(request)
			}
		}}
	})
	return p
}

// config is a configuration for connections through the proxy.
func (p *proxy) config(c *mysql.Config) *mysql.Config {
	c = c.Clone()
	c.Addr = p.Addr()
	return c
}

// forward ends every other condition, and delivers what was held back.
func (p *proxy) forward() { p.Set(mysqltest.Network{}) }

// blackHole holds back everything, in both directions.
func (p *proxy) blackHole() { p.Set(mysqltest.Network{HoldRequests: true, HoldReplies: true}) }

// swallowReplies lets statements reach the server, but no reply the client.
func (p *proxy) swallowReplies() { p.Set(mysqltest.Network{HoldReplies: true}) }

// delayReplies delivers each reply later by d.
func (p *proxy) delayReplies(d time.Duration) { p.Set(mysqltest.Network{DelayReplies: d}) }

// cut ends the connections that there are, and loses what was held back.
func (p *proxy) cut() { p.Cut() }

// newBlackHole is the address of a server that accepts connections and never answers.
func newBlackHole(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return listener.Addr().String()
}

// Commands of the protocol.
const (
	comStmtPrepare = 0x16
	comStmtExecute = 0x17
)

// command is what a packet of the protocol asks for.
func command(packet []byte) byte {
	if len(packet) < 5 {
		return 0
	}
	return packet[4]
}

// hasTime: of what is sent prepared, a renewal has times, and a poll has none.
var hasTime = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`)

// isRenewal reports whether a packet has a statement that writes the lease alone: a renewal or a
// release. In a Batch it has a row, with two names, of another Lock than those that keep it
// company.
func isRenewal(packet []byte) bool {
	switch command(packet) {
	case comStmtPrepare:
		return false
	case comStmtExecute:
		return hasTime.Match(packet)
	}
	if bytes.Contains(packet, []byte("UPDATE (SELECT")) {
		return bytes.Count(packet, []byte("CONVERT('")) > 2*bytes.Count(packet, []byte("CONVERT('company"))
	}
	return bytes.Contains(packet, []byte("election_records AS r SET")) || bytes.Contains(packet, []byte("UPDATE election_records SET leader_name"))
}

// isPoll reports whether a packet has a statement that reads the row.
func isPoll(packet []byte) bool {
	switch command(packet) {
	case comStmtPrepare:
		return false
	case comStmtExecute:
		return !hasTime.Match(packet)
	}
	return bytes.Contains(packet, []byte("SELECT")) && bytes.Contains(packet, []byte("leader_transitions"))
}

// failAtNextRenewal returns a function after which the next renewal that passes the network is met
// by fail. What is sent after that is met by then, if there is one.
func failAtNextRenewal(network *proxy, fail, then func()) (arm func()) {
	var stage atomic.Int32
	network.onRequest = func(packet []byte) {
		switch {
		case stage.Load() == 1 && isRenewal(packet):
			stage.Store(2)
			fail()
		case stage.Load() == 2 && then != nil:
			stage.Store(3)
			then()
		}
	}
	return func() { stage.Store(1) }
}
