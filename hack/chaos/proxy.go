package main

import (
	"context"
	"net"
	"sync"
	"time"
)

// network is how a proxy treats what passes.
type network struct {
	refuse          bool          // no connections, and those that there are end
	holdTo, holdFro bool          // what goes to the server, or comes from there, stays in the proxy
	delay           time.Duration // of each packet, in each direction
	loseAnswerTo    string        // the connection is cut when the server has answered a statement that begins so
	why             string        // the fault that is told when that has happened
}

// proxy is the network between one candidate and the server.
type proxy struct {
	listener net.Listener
	working  sync.WaitGroup
	tell     func(fault string)

	mu          sync.Mutex
	target      string
	changed     *sync.Cond
	state       network
	connections map[net.Conn]bool
	closed      bool
}

func newProxy(target string, tell func(fault string)) (*proxy, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: listener, target: target, tell: tell, connections: map[net.Conn]bool{}}
	p.changed = sync.NewCond(&p.mu)
	p.working.Go(p.accept)
	return p, nil
}

func (p *proxy) address() string { return p.listener.Addr().String() }

// set changes the network. What was held is delivered, late, unless drop: then the connections end without it.
func (p *proxy) set(state network, drop bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = state
	if drop || state.refuse {
		for c := range p.connections {
			_ = c.Close() // it may have ended
		}
	}
	p.changed.Broadcast()
}

// lead makes the proxy lead to another server, and cuts what led to the one before.
func (p *proxy) lead(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
	for c := range p.connections {
		_ = c.Close() // it may have ended
	}
	p.changed.Broadcast()
}

func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	for c := range p.connections {
		_ = c.Close() // it may have ended
	}
	p.changed.Broadcast()
	p.mu.Unlock()
	_ = p.listener.Close() // nothing to lose
	p.working.Wait()
}

func (p *proxy) accept() {
	for {
		from, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.working.Go(func() { p.connect(from) })
	}
}

func (p *proxy) connect(from net.Conn) {
	defer func() { _ = from.Close() }() // it may have ended
	p.mu.Lock()
	refuse, target := p.state.refuse || p.closed, p.target
	p.mu.Unlock()
	if refuse {
		return
	}
	to, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "tcp", target)
	if err != nil {
		return
	}
	defer func() { _ = to.Close() }() // it may have ended
	p.mu.Lock()
	if p.closed || p.state.refuse || p.target != target {
		p.mu.Unlock()
		return
	}
	p.connections[from], p.connections[to] = true, true
	p.mu.Unlock()
	var both sync.WaitGroup
	var said conversation
	both.Go(func() {
		p.pump(to, from, func(n network, packet []byte) bool {
			said.request(n, packet)
			return n.holdTo
		})
	})
	both.Go(func() {
		p.pump(from, to, func(n network, packet []byte) bool {
			if why := said.answer(packet); why != "" {
				_ = from.Close() // before anything is written to it
				p.tell(why)
			}
			return n.holdFro
		})
	})
	both.Wait()
	p.mu.Lock()
	delete(p.connections, from)
	delete(p.connections, to)
	p.mu.Unlock()
}

// pump passes packets on. One that is held when its connection ends is lost, and so is the news of that end.
func (p *proxy) pump(to, from net.Conn, held func(network, []byte) bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		p.mu.Lock()
		for held(p.state, buffer[:n]) && !p.closed && p.connections[to] && p.connections[from] {
			p.changed.Wait()
		}
		delay := p.state.delay
		p.mu.Unlock()
		time.Sleep(delay)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				_ = from.Close() // neither can go on
				return
			}
		}
		if err != nil {
			_ = to.Close() // neither can go on
			return
		}
	}
}
