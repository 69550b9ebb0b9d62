//go:build unix

package mysqltest

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

func TestDataSurvivesAnOrderlyStopEvenOfAPausedServer(t *testing.T) {
	s := commonServer(t)
	db := testDatabase(t, s)
	addr := s.Config().Addr
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := db.PingContext(t.Context()); err == nil {
		t.Error("it answers although it is stopped")
	}
	if err := s.Stop(); err != nil {
		t.Errorf("Stop of a stopped server: %v", err)
	}
	if err := s.Pause(); err == nil {
		t.Error("paused a stopped server")
	}
	began := time.Now()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("restarted in %v", time.Since(began))
	if s.Config().Addr != addr {
		t.Errorf("moved from %s to %s", addr, s.Config().Addr)
	}
	if n := count(t, db); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestACommittedRowSurvivesACrashAndALostPort(t *testing.T) {
	s := commonServer(t)
	db := testDatabase(t, s)
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("INSERT INTO t VALUES (100)"); err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		if _, err := db.ExecContext(t.Context(), "INSERT INTO t VALUES (?)", n+1); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", s.Config().Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := s.Restart(t.Context()); !errors.Is(err, errPortTaken) {
		t.Errorf("error %v, want errPortTaken: Start tries another port by it", err)
	}
	l.Close()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db); n != 21 {
		t.Errorf("%d rows, want 21: every committed one, and no other", n)
	}
}

func TestAPausedServerHangsAndAResumedOneGoesOn(t *testing.T) {
	s := commonServer(t)
	db := testDatabase(t, s)
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Resume() })
	for _, pool := range []struct {
		name string
		ping func(context.Context) error
	}{
		{"an open connection", func(ctx context.Context) error { _, err := db.ExecContext(ctx, "DO 1"); return err }},
		{"a new connection", open(t, s.Config()).PingContext},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := pool.ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want a time-out", pool.name, err)
		}
		cancel()
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}
