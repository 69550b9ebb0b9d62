package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// proxy is the network between one process and the server. While nothing is wrong it leaves the copying to the kernel.
type proxy struct {
	listener net.Listener
	target   string
	working  sync.WaitGroup

	mu          sync.Mutex
	changed     *sync.Cond
	connections map[net.Conn]bool
	held        bool // what is sent stays in the proxy
	refused     bool // there are no connections
	closed      bool
}

func newProxy(target string) (*proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: listener, target: target, connections: map[net.Conn]bool{}}
	p.changed = sync.NewCond(&p.mu)
	p.working.Go(p.accept)
	return p, nil
}

func (p *proxy) address() string { return p.listener.Addr().String() }

// hold keeps back what is sent, until it is called with false: then it is delivered, late.
func (p *proxy) hold(held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = held
	var deadline time.Time
	if held {
		deadline = time.Unix(1, 0) // long ago, which ends a copy under way
	}
	for c := range p.connections {
		_ = c.SetReadDeadline(deadline) // it may have ended
	}
	p.changed.Broadcast()
}

// refuse ends all connections, and new ones at once, until it is called with false.
func (p *proxy) refuse(refused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = refused
	if refused {
		p.drop()
	}
}

// drop ends all connections. The caller holds p.mu.
func (p *proxy) drop() {
	for c := range p.connections {
		_ = c.Close() // it may have ended
	}
	clear(p.connections)
	p.changed.Broadcast()
}

func (p *proxy) close() {
	_ = p.listener.Close() // ends accept
	p.mu.Lock()
	p.closed = true
	p.drop()
	p.mu.Unlock()
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
	to, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), "tcp", p.target)
	if err != nil {
		return
	}
	defer func() { _ = to.Close() }() // it may have ended
	if !p.admit(from, to) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.carry(to, from) })
	both.Go(func() { p.carry(from, to) })
	both.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.connections, from)
	delete(p.connections, to)
}

func (p *proxy) admit(ends ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused || p.closed {
		return false
	}
	for _, c := range ends {
		p.connections[c] = true
		if p.held {
			_ = c.SetReadDeadline(time.Unix(1, 0)) // it may have ended
		}
	}
	return true
}

// carry passes on what is sent, and ends both connections when one has ended.
func (p *proxy) carry(to, from net.Conn) {
	for {
		_, err := io.Copy(to, from)
		if !errors.Is(err, os.ErrDeadlineExceeded) || !p.waitWhileHeld(from) {
			_, _ = to.Close(), from.Close() // one may have ended
			return
		}
	}
}

// waitWhileHeld tells whether the connection is still there afterwards.
func (p *proxy) waitWhileHeld(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.held && p.connections[c] {
		p.changed.Wait()
	}
	return p.connections[c]
}
