package mysqltest

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

const patience = 10 * time.Second

// echo is a server that answers each line with its own name and the line, and tells what it got.
type echo struct {
	name string
	net.Listener
	lines chan string // "" is the end of a connection
}

func newEcho(t *testing.T, name string) *echo {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{name, listener, make(chan string, 100)}
	var working sync.WaitGroup
	working.Add(1)
	go func() {
		defer working.Done()
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			working.Add(1)
			go func() {
				defer working.Done()
				defer conn.Close()
				lines := bufio.NewScanner(conn)
				for lines.Scan() {
					e.lines <- lines.Text()
					fmt.Fprintln(conn, e.name, lines.Text())
				}
				e.lines <- ""
			}()
		}
	}()
	t.Cleanup(func() { listener.Close(); working.Wait() })
	return e
}

// got wants the next line that the server got.
func (e *echo) got(t *testing.T, want string) {
	t.Helper()
	select {
	case line := <-e.lines:
		if line != want {
			t.Fatalf("the server got %q, want %q", line, want)
		}
	case <-time.After(patience):
		t.Fatalf("the server did not get %q", want)
	}
}

// quiet wants that the server has got nothing.
func (e *echo) quiet(t *testing.T) {
	t.Helper()
	select {
	case line := <-e.lines:
		t.Fatalf("the server got %q", line)
	default:
	}
}

type lineConn struct {
	net.Conn
	*bufio.Reader
}

func dial(t *testing.T, p *Proxy) *lineConn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &lineConn{conn, bufio.NewReader(conn)}
}

func (c *lineConn) send(t *testing.T, line string) {
	t.Helper()
	if _, err := fmt.Fprintln(c.Conn, line); err != nil {
		t.Fatal(err)
	}
}

// gets is the next line that arrives within that time.
func (c *lineConn) gets(within time.Duration) (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	return c.ReadString('\n')
}

func (c *lineConn) want(t *testing.T, want string) {
	t.Helper()
	if line, err := c.gets(patience); line != want+"\n" || err != nil {
		t.Fatalf("the client got %q (%v), want %q", line, err, want)
	}
}

// wantNothing is for what is held back: no wait is long enough to prove that, and a short one shows what passes.
func (c *lineConn) wantNothing(t *testing.T) {
	t.Helper()
	if line, err := c.gets(50 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the client got %q (%v), want nothing", line, err)
	}
}

func (c *lineConn) wantEnd(t *testing.T) {
	t.Helper()
	if line, err := c.gets(patience); line != "" || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the client got %q (%v), want the end of the connection", line, err)
	}
}

func newProxy(t *testing.T, target net.Listener) *Proxy {
	t.Helper()
	p, err := NewProxy(target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func TestProxyDeliversLateWhatItHeldBack(t *testing.T) {
	t.Parallel()
	server := newEcho(t, "a")
	p := newProxy(t, server)
	c := dial(t, p)
	c.send(t, "1")
	server.got(t, "1")
	c.want(t, "a 1")

	p.Set(Network{HoldReplies: true})
	c.send(t, "2")
	server.got(t, "2")
	c.wantNothing(t)
	p.Set(Network{})
	c.want(t, "a 2")

	p.Set(Network{HoldRequests: true})
	c.send(t, "3")
	c.wantNothing(t)
	server.quiet(t)
	// The server is not told that the client is gone, before it gets what the client sent.
	c.Conn.Close()
	server.quiet(t)
	p.Set(Network{})
	server.got(t, "3")
	server.got(t, "")
}

func TestProxyLosesWhatItHeldBackWhenItCuts(t *testing.T) {
	t.Parallel()
	server := newEcho(t, "a")
	p := newProxy(t, server)
	c := dial(t, p)
	c.send(t, "1")
	c.want(t, "a 1")
	p.Set(Network{HoldRequests: true})
	c.send(t, "2")
	c.wantNothing(t)
	p.Cut()
	c.wantEnd(t)
	server.got(t, "1")
	server.got(t, "")

	// New connections are held back as well, until they aren't.
	c = dial(t, p)
	c.send(t, "3")
	c.wantNothing(t)
	server.quiet(t)
	p.Set(Network{})
	c.want(t, "a 3")
}

func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	p := newProxy(t, newEcho(t, "a"))
	c := dial(t, p)
	c.send(t, "1")
	c.want(t, "a 1")
	p.Set(Network{Refuse: true})
	c.wantEnd(t)
	dial(t, p).wantEnd(t)
	p.Set(Network{})
	c = dial(t, p)
	c.send(t, "2")
	c.want(t, "a 2")
}

func TestProxyDelays(t *testing.T) {
	t.Parallel()
	const delay = 200 * time.Millisecond
	for name, c := range map[string]struct {
		network Network
		least   time.Duration
	}{
		"requests": {Network{DelayRequests: delay}, delay},
		"replies":  {Network{DelayReplies: delay}, delay},
		"both":     {Network{DelayRequests: delay, DelayReplies: delay}, 2 * delay},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProxy(t, newEcho(t, "a"))
			p.Set(c.network)
			conn := dial(t, p)
			began := time.Now()
			conn.send(t, "1")
			conn.want(t, "a 1")
			if d := time.Since(began); d < c.least {
				t.Errorf("the answer came after %v, want at least %v", d, c.least)
			}
		})
	}
}

func TestProxyLeadsToAnotherServer(t *testing.T) {
	t.Parallel()
	p := newProxy(t, newEcho(t, "a"))
	c := dial(t, p)
	c.send(t, "1")
	c.want(t, "a 1")
	p.Redirect(newEcho(t, "b").Addr().String())
	c.wantEnd(t)
	c = dial(t, p)
	c.send(t, "2")
	c.want(t, "b 2")
}

func TestProxyEndsAConnectionToAServerThatIsGone(t *testing.T) {
	t.Parallel()
	server := newEcho(t, "a")
	p := newProxy(t, server)
	server.Close()
	dial(t, p).wantEnd(t)
}

func TestProxyHasHooksForEachConnection(t *testing.T) {
	t.Parallel()
	server := newEcho(t, "a")
	p := newProxy(t, server)
	p.Watch(func() Hooks {
		last := ""
		return Hooks{
			Request: func(data []byte) {
				if last = string(data); last == "hold\n" {
					p.Set(Network{HoldReplies: true})
				}
			},
			Reply: func([]byte) bool { return last == "lose\n" },
		}
	})
	a, b := dial(t, p), dial(t, p)
	a.send(t, "keep")
	a.want(t, "a keep")
	b.send(t, "lose")
	b.wantEnd(t)
	a.send(t, "hold")
	a.wantNothing(t)
	p.Set(Network{})
	a.want(t, "a hold")
}

func TestProxyLeavesNoConnectionBehind(t *testing.T) {
	t.Parallel()
	server := newEcho(t, "a")
	p := newProxy(t, server)
	c := dial(t, p)
	c.send(t, "1")
	c.want(t, "a 1")
	p.Set(Network{HoldRequests: true, HoldReplies: true})
	c.send(t, "2")
	p.Close()
	c.wantEnd(t)
	server.got(t, "1")
	server.got(t, "")
}
