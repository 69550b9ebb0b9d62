package main

import (
	"encoding/json"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

func TestWatchWritesEachChangeToAPipe(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	lock := db.lead(t, "shop/mail", "worker-1", 3600)
	db.lead(t, "shop/orders", "worker-1", 3600)
	table := start(t, db.env, nil, "list", "-watch")
	lines := start(t, db.env, nil, "list", "-watch", "-o", "json")
	tables := func(n int) []string {
		t.Helper()
		eventually(t, "both have written that often", func() bool {
			return strings.Count(table.stdout.String(), "ELECTION") >= n && strings.Count(lines.stdout.String(), "\n") >= n
		})
		return strings.Split(strings.TrimSuffix(table.stdout.String(), "\n"), "\n\n")
	}
	if first := tables(1)[0]; strings.Contains(first, "*") {
		t.Errorf("marked before anything has changed:\n%s", first)
	}
	db.release(t, lock)
	if second := tables(2)[1]; !strings.Contains(second, "\n*  shop/mail    -         released") || !strings.Contains(second, "\n   shop/orders  worker-1  led") {
		t.Errorf("not marked:\n%s", second)
	}
	db.exec(t, "UPDATE election_records SET ready = 0 WHERE election_name = 'shop/orders'")
	if third := tables(3)[2]; !strings.Contains(third, "\n   shop/mail") || !strings.Contains(third, "\n*  shop/orders  worker-1  led       no") {
		t.Errorf("not marked:\n%s", third)
	}
	db.exec(t, "DELETE FROM election_records WHERE election_name = 'shop/mail'")
	if fourth := tables(4)[3]; strings.Contains(fourth, "shop/mail") || strings.Contains(fourth, "*") {
		t.Errorf("not gone:\n%s", fourth)
	}
	db.lead(t, "shop/new", "worker-1", 3600)
	if fifth := tables(5)[4]; !strings.Contains(fifth, "\n*  shop/new") {
		t.Errorf("not marked:\n%s", fifth)
	}

	for p, signal := range map[*process]syscall.Signal{table: syscall.SIGINT, lines: syscall.SIGTERM} {
		p.signal(t, signal)
		if code := p.ends(t); code != 0 || p.stderr.String() != "" {
			t.Errorf("exit code %d: %s", code, p.stderr.String())
		}
	}
	if strings.Contains(table.stdout.String(), "\x1b") {
		t.Errorf("escape sequences on a pipe: %q", table.stdout.String())
	}
	for line := range strings.Lines(lines.stdout.String()) {
		var all []entry
		if err := json.Unmarshal([]byte(line), &all); err != nil || len(all) == 0 {
			t.Errorf("%v: %s", err, line)
		}
	}
}

func TestWatchOutlivesAnOutage(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	db.lead(t, "e", "worker-1", 3600)
	proxy, err := mysqltest.NewProxy(db.config.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	config := db.config.Clone()
	config.Addr = proxy.Addr()
	p := start(t, connect(t, config).env, nil, "list", "-watch")
	tables := func(n int) {
		t.Helper()
		eventually(t, "it has written that often", func() bool { return strings.Count(p.stdout.String(), "ELECTION") >= n })
	}
	tables(1)
	var tries atomic.Int32
	broken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broken.Close() })
	go func() {
		for {
			conn, err := broken.Accept()
			if err != nil {
				return
			}
			tries.Add(1)
			_ = conn.Close()
		}
	}()
	proxy.Redirect(broken.Addr().String())
	eventually(t, "it tries again and again, and says so", func() bool { return tries.Load() >= 6 && p.stderr.String() != "" })
	proxy.Redirect(db.config.Addr)
	tables(2)
	p.signal(t, syscall.SIGINT)
	if code := p.ends(t); code != 0 || !strings.HasPrefix(p.stderr.String(), "mysqllock: list elections: ") || strings.Count(p.stderr.String(), "\n") != 1 {
		t.Errorf("exit code %d: %s", code, p.stderr.String())
	}
}
