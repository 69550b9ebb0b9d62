// Package wire counts what a MySQL client and its server say to each other: what an operation of a Lock costs, without a
// clock.
package wire

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Cost is what was said.
type Cost struct {
	Statements int // executed: COM_QUERY and COM_STMT_EXECUTE
	RoundTrips int // waits for the server's answer
	Sent       int // bytes that the client sent, headers of the protocol's packets included
	Received   int // bytes that it read
}

func (c Cost) String() string {
	return fmt.Sprintf("%d statements, %d round trips, %d bytes sent, %d received", c.Statements, c.RoundTrips, c.Sent, c.Received)
}

// Meter counts all connections that its Dial made. The zero value is ready. It can't look into TLS or compression:
// there, Statements has no meaning.
type Meter struct {
	mu   sync.Mutex
	cost Cost
}

// Dial is for the DialFunc of a mysql.Config.
func (m *Meter) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("wire: a connection by %s can't be counted; use tcp", network)
	}
	return &conn{TCPConn: tcp, meter: m}, nil
}

// Take returns what was said since the last Take.
func (m *Meter) Take() Cost {
	m.mu.Lock()
	defer m.mu.Unlock()
	cost := m.cost
	m.cost = Cost{}
	return cost
}

// conn is a *net.TCPConn in all else: the driver looks for dead connections through its file descriptor.
type conn struct {
	*net.TCPConn

	meter   *Meter
	waiting bool // something was sent since the last answer
	// What of the packet under way is still to come: of its header, and of the whole.
	header  []byte
	payload int
}

const (
	comQuery       = 0x03
	comStmtExecute = 0x17
)

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.meter.mu.Lock()
	defer c.meter.mu.Unlock()
	c.meter.cost.Sent += n
	c.waiting = c.waiting || n > 0
	c.parse(b[:n])
	return n, err
}

// parse counts commands: packets with the sequence number 0.
func (c *conn) parse(b []byte) {
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

func (c *conn) Read(b []byte) (int, error) {
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
