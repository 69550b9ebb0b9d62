package mysqllock_test

import (
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// proxy is a mysqltest.Proxy by the faults that the tests need.
type proxy struct {
	*mysqltest.Proxy

	// onRequest sees what clients send before it is held back or forwarded. Set
	// it before the first connection.
	onRequest func(request []byte)
}

// newProxy starts a proxy before the server at that address, for the duration
// of the test. It forwards everything.
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
