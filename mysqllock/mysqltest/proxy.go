package mysqltest

import (
	"context"
	"net"
	"sync"
	"time"
)

// Proxy is a TCP proxy before a server, for what networks do to connections. Every connection through it, old or new,
// meets the same [Network].
//
// What it holds back it doesn't lose: like TCP after a partition, it delivers that later, a connection's end included. So
// a peer doesn't notice that the other one has given up, and a statement that was given up long ago is still applied.
type Proxy struct {
	listener net.Listener
	stop     context.CancelFunc // ends dials under way
	working  sync.WaitGroup

	mu          sync.Mutex
	target      string
	watch       func() Hooks
	network     Network
	changed     chan struct{} // closed when network changes
	connections map[*proxied]struct{}
	closed      bool
}

// Network is what a [Proxy] does to what passes. The zero value passes everything on at once.
type Network struct {
	Refuse                      bool // connections end, and new ones at once
	HoldRequests, HoldReplies   bool
	DelayRequests, DelayReplies time.Duration // of each packet
}

// Hooks see what passes on one connection of a [Proxy], before it is delayed, held back or passed on. They may change the
// proxy's Network. A nil hook sees nothing.
type Hooks struct {
	// Request sees what the client sends: one packet of the protocol, or several if the client awaits no answer between.
	Request func(data []byte)
	// Reply sees what the server sends. If it returns true, that is lost, and the connection cut.
	Reply func(data []byte) (lose bool)
}

// NewProxy starts a proxy before the server at that address. It passes everything on. Close it after use.
func NewProxy(target string) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &Proxy{listener: listener, stop: stop, target: target, changed: make(chan struct{}), connections: map[*proxied]struct{}{}}
	p.working.Add(1)
	go p.accept(ctx)
	return p, nil
}

// Addr is where it listens, for the Addr of a mysql.Config.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Connections is how many connections there are.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.connections)
}

// Watch has each later connection watched by hooks of its own, which f returns.
func (p *Proxy) Watch(f func() Hooks) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watch = f
}

// Set changes the network, for all connections. What was held back and isn't any more is delivered now.
func (p *Proxy) Set(n Network) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.network = n
	if n.Refuse {
		p.cut()
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Cut ends the connections that there are, for both peers at once, and loses what was held back.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

// Redirect makes the proxy lead to another server, and cuts what led to the one before.
func (p *Proxy) Redirect(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
	p.cut()
}

// Close cuts all connections, and ends the proxy.
func (p *Proxy) Close() {
	_ = p.listener.Close() // ends accept
	p.stop()
	p.mu.Lock()
	p.closed = true
	p.cut()
	p.mu.Unlock()
	p.working.Wait()
}

// cut is Cut for those who hold p.mu.
func (p *Proxy) cut() {
	for c := range p.connections {
		c.end()
	}
}

func (p *Proxy) accept(ctx context.Context) {
	defer p.working.Done()
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.working.Add(1)
		go p.connect(ctx, client)
	}
}

// connect leads a client to the server until either end has ended.
func (p *Proxy) connect(ctx context.Context, client net.Conn) {
	defer p.working.Done()
	p.mu.Lock()
	target, watch := p.target, p.watch
	p.mu.Unlock()
	server, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", target)
	if err != nil {
		_ = client.Close() // as the server is gone
		return
	}
	var hooks Hooks
	if watch != nil {
		hooks = watch()
	}
	c := &proxied{client: client, server: server, ended: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.network.Refuse || p.target != target {
		c.end()
		return
	}
	p.connections[c] = struct{}{}
	p.working.Add(2)
	go p.pump(c, client, server, hooks)
	go p.pump(c, server, client, hooks)
}

// pump carries one direction of a connection.
func (p *Proxy) pump(c *proxied, from, to net.Conn, hooks Hooks) {
	defer p.working.Done()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.connections, c)
		c.end()
	}()
	replies := from == c.server
	buffer := make([]byte, 64<<10)
	for {
		n, end := from.Read(buffer)
		switch {
		case n == 0:
		case !replies && hooks.Request != nil:
			hooks.Request(buffer[:n])
		case replies && hooks.Reply != nil:
			if hooks.Reply(buffer[:n]) {
				return
			}
		}
		if !p.mayPass(c, replies) {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil || end != nil {
			return
		}
	}
}

// mayPass waits until the network lets data through. It returns false if the connection has ended meanwhile.
func (p *Proxy) mayPass(c *proxied, replies bool) bool {
	_, delay, _ := p.condition(replies)
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.ended:
			return false
		}
	}
	for {
		held, _, changed := p.condition(replies)
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

// condition is what one direction meets until changed is closed.
func (p *Proxy) condition(replies bool) (held bool, delay time.Duration, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if replies {
		return p.network.HoldReplies, p.network.DelayReplies, p.changed
	}
	return p.network.HoldRequests, p.network.DelayRequests, p.changed
}

// proxied is one connection through a Proxy.
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
