package mysqltest

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Cost is what a client and its server said to each other: what an operation costs, without a clock.
type Cost struct {
	Statements int // executed: COM_QUERY and COM_STMT_EXECUTE
	RoundTrips int // waits for the server's answer
	Sent       int // bytes that the client sent, headers of the protocol's packets included
	Received   int // bytes that it read
}

func (c Cost) String() string {
	return fmt.Sprintf("%d statements, %d round trips, %d bytes sent, %d received", c.Statements, c.RoundTrips, c.Sent, c.Received)
}

// Meter counts what passes on all connections that its Dial made. The zero value is ready. It can't look into TLS or
// compression: there, Statements has no meaning.
type Meter struct {
	mu   sync.Mutex
	cost Cost
}

// Dial is a DialFunc for a mysql.Config whose Net is tcp.
func (m *Meter) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("mysqltest: a connection by %s can't be counted; use tcp", network)
	}
	return &meteredConn{TCPConn: tcp, meter: m}, nil
}

// Take returns what was said since the last Take.
func (m *Meter) Take() Cost {
	m.mu.Lock()
	defer m.mu.Unlock()
	cost := m.cost
	m.cost = Cost{}
	return cost
}

// meteredConn is a *net.TCPConn in all else: the driver looks for dead connections through its file descriptor.
type meteredConn struct {
	*net.TCPConn

	meter   *Meter
	waiting bool // something was sent since the last answer
	// What has come of the next packet's header, and what is still to come of the packet under way.
	header  []byte
	payload int
}

const (
	comQuery       = 0x03
	comStmtExecute = 0x17
)

func (c *meteredConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.meter.mu.Lock()
	defer c.meter.mu.Unlock()
	c.meter.cost.Sent += n
	c.waiting = c.waiting || n > 0
	c.parse(b[:n])
	return n, err
}

// parse counts commands: packets with the sequence number 0.
func (c *meteredConn) parse(b []byte) {
	for len(b) > 0 {
		if c.payload > 0 {
			n := min(c.payload, len(b))
			c.payload -= n
			b = b[n:]
			continue
		}
		// Three bytes of length, one of sequence, and the command.
		c.header = append(c.header, b[0])
		b = b[1:]
		if len(c.header) < 5 {
			continue
		}
		length := int(c.header[0]) | int(c.header[1])<<8 | int(c.header[2])<<16
		if command := c.header[4]; c.header[3] == 0 && (command == comQuery || command == comStmtExecute) {
			c.meter.cost.Statements++
		}
		c.header, c.payload = c.header[:0], length-1
	}
}

func (c *meteredConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.meter.mu.Lock()
	defer c.meter.mu.Unlock()
	c.meter.cost.Received += n
	if n > 0 && c.waiting {
		c.meter.cost.RoundTrips++
		c.waiting = false
	}
	return n, err
}
