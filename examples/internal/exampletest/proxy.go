package exampletest

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
)

// Proxy is the network between a process and a server.
type Proxy struct {
	listener net.Listener
	working  sync.WaitGroup

	mu          sync.Mutex
	isDown      bool
	connections []net.Conn
}

// NewProxy forwards to the target's address until it is cut.
func NewProxy(t *testing.T, target string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: listener}
	p.working.Add(1)
	go p.accept(target)
	t.Cleanup(func() {
		_ = listener.Close() // ends accept
		p.Cut()
		p.working.Wait()
	})
	return p
}

// HostPort is where it listens.
func (p *Proxy) HostPort(t *testing.T) (host, port string) {
	t.Helper()
	host, port, err := net.SplitHostPort(p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

// Cut ends all connections, and every later one at once.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isDown = true
	for _, c := range p.connections {
		_ = c.Close() // it may have ended
	}
}

func (p *Proxy) accept(target string) {
	defer p.working.Done()
	for {
		from, err := p.listener.Accept()
		if err != nil {
			return
		}
		to, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", target)
		if err != nil {
			_ = from.Close() // as the target is gone
			continue
		}
		p.mu.Lock()
		if p.isDown {
			_, _ = from.Close(), to.Close() // as if nobody were there
		} else {
			p.connections = append(p.connections, from, to)
			p.working.Add(2)
			go p.carry(from, to)
			go p.carry(to, from)
		}
		p.mu.Unlock()
	}
}

func (p *Proxy) carry(from, to net.Conn) {
	defer p.working.Done()
	_, _ = io.Copy(to, from)        // until either ends
	_, _ = from.Close(), to.Close() // so does the other direction
}
