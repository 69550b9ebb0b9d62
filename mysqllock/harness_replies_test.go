package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Clients whose replies come too late, and who wait for them all the same.

// stubborn is a client's network on which the reply to one packet takes its time and then arrives,
// whatever the client does: closing the connection does not end the wait. So it is for a process
// that is paused while the reply is on its way, and with a driver that heeds no deadline. After
// that it is cut off.
type stubborn struct {
	delay   time.Duration
	matches func(packet []byte) bool

	severed *severed
	mu      sync.Mutex
	armed   bool
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

func newStubborn(t testing.TB, delay time.Duration, matches func(packet []byte) bool) *stubborn {
	return &stubborn{delay: delay, matches: matches, severed: newSevered(t)}
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

// heedless is a connector whose connections ignore contexts, and whose replies to statements that
// begin with the word in late come after the deadline, with the result that they would have had in
// time.
type heedless struct {
	driver.Connector
	late atomic.Value
}

func (h *heedless) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := h.Connector.Connect(ctx)
	return &heedlessConn{conn, h}, err
}

func openHeedless(t testing.TB, config *mysql.Config) (*sql.DB, *heedless) {
	t.Helper()
	config = config.Clone()
	config.InterpolateParams = true
	mustSucceed(t, "Apply", func() error { return config.Apply(mysql.Charset("utf8mb4", "")) })
	inner, err := mysql.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	h := &heedless{Connector: inner}
	h.late.Store("nothing")
	db := sql.OpenDB(h)
	t.Cleanup(func() { _ = db.Close() })
	return db, h
}

type heedlessConn struct {
	driver.Conn
	connector *heedless
}

func (c *heedlessConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	defer c.delay(ctx, query)
	return c.Conn.(driver.ExecerContext).ExecContext(context.WithoutCancel(ctx), query, args)
}

func (c *heedlessConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	defer c.delay(ctx, query)
	return c.Conn.(driver.QueryerContext).QueryContext(context.WithoutCancel(ctx), query, args)
}

func (c *heedlessConn) delay(ctx context.Context, query string) {
	if strings.HasPrefix(query, c.connector.late.Load().(string)) {
		<-ctx.Done()
	}
}
