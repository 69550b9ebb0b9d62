package mysqllock_test

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// proxy is a TCP proxy before a server, for what networks do to connections.
// Every connection through it, old or new, meets the same condition.
//
// What it holds back it doesn't lose: like TCP after a partition, it delivers
// that later, a connection's end included. So a peer doesn't notice that the
// other one has given up, and a statement that was given up long ago is still
// applied.
type proxy struct {
	target   string
	listener net.Listener
	working  sync.WaitGroup

	// onRequest sees what clients send before it is held back or forwarded. Set
	// it before the first connection.
	onRequest func(request []byte)

	mu          sync.Mutex
	closed      bool
	connections map[*proxied]struct{}
	// What follows is the condition; changed is closed when it changes.
	changed                   chan struct{}
	holdRequests, holdReplies bool
	delay                     time.Duration
}

// newProxy starts a proxy before the server at that address, for the duration
// of the test. It forwards everything.
func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: target, listener: listener, connections: map[*proxied]struct{}{}, changed: make(chan struct{})}
	p.working.Add(1)
	go p.accept()
	t.Cleanup(p.close)
	return p
}

// config is a configuration for connections through the proxy.
func (p *proxy) config(c *mysql.Config) *mysql.Config {
	c = c.Clone()
	c.Addr = p.listener.Addr().String()
	return c
}

// forward ends every other condition, and delivers what was held back.
func (p *proxy) forward() { p.set(false, false, 0) }

// blackHole holds back everything, in both directions.
func (p *proxy) blackHole() { p.set(true, true, 0) }

// swallowReplies lets statements reach the server, but no reply the client.
func (p *proxy) swallowReplies() { p.set(false, true, 0) }

// delayReplies delivers each reply later by d.
func (p *proxy) delayReplies(d time.Duration) { p.set(false, false, d) }

func (p *proxy) set(holdRequests, holdReplies bool, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holdRequests, p.holdReplies, p.delay = holdRequests, holdReplies, delay
	close(p.changed)
	p.changed = make(chan struct{})
}

// cut ends the connections that there are, for both peers at once, and loses
// what was held back.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.connections {
		c.end()
	}
}

func (p *proxy) close() {
	_ = p.listener.Close() // ends accept
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cut()
	p.working.Wait()
}

func (p *proxy) accept() {
	defer p.working.Done()
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.DialTimeout("tcp", p.target, 5*time.Second)
		if err != nil {
			_ = client.Close() // as the server is gone
			continue
		}
		c := &proxied{client: client, server: server, ended: make(chan struct{})}
		p.mu.Lock()
		if p.closed {
			c.end()
		} else {
			p.connections[c] = struct{}{}
			p.working.Add(2)
			go p.pump(c, client, server, false)
			go p.pump(c, server, client, true)
		}
		p.mu.Unlock()
	}
}

// pump carries one direction of a connection.
func (p *proxy) pump(c *proxied, from, to net.Conn, replies bool) {
	defer p.working.Done()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.connections, c)
		c.end()
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, end := from.Read(buffer)
		if !replies && n > 0 && p.onRequest != nil {
			p.onRequest(buffer[:n])
		}
		if !p.mayPass(c, replies) {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil || end != nil {
			return
		}
	}
}

// mayPass waits until the condition lets data through; false if the connection
// has ended meanwhile.
func (p *proxy) mayPass(c *proxied, replies bool) bool {
	p.mu.Lock()
	delay := p.delay
	p.mu.Unlock()
	if replies && delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.ended:
			return false
		}
	}
	for {
		p.mu.Lock()
		held, changed := p.holdRequests, p.changed
		if replies {
			held = p.holdReplies
		}
		p.mu.Unlock()
		if !held {
			return true
		}
		select {
		case <-changed:
		case <-c.ended:
			return false
		}
	}
}

// proxied is one connection through a proxy.
type proxied struct {
	client, server net.Conn
	once           sync.Once
	ended          chan struct{}
}

func (c *proxied) end() {
	c.once.Do(func() {
		close(c.ended)
		_, _ = c.client.Close(), c.server.Close() // whatever they say, they are closed
	})
}
