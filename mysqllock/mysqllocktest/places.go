package mysqllocktest

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Whether what a connection is told comes from one server. Something in between may send reads to a replica, or each
// statement to another server.

// connections are some that differ, as something in between may treat each in its own way.
func (s *suite) connections(t *testing.T) []*sql.Conn {
	t.Helper()
	var all []*sql.Conn
	for range 4 {
		conn, err := s.open(t).Conn(t.Context())
		must(t, "a connection", err)
		t.Cleanup(func() { _ = conn.Close() }) // nothing to lose
		all = append(all, conn)
	}
	return all
}

func (s *suite) places(t *testing.T) {
	db := s.open(t)
	must(t, "Create", s.lock(t, db, "places", "leader").Create(t.Context(), record("leader")))
	// As the lock writes and reads a server's name.
	const name = `LEFT(CONCAT(@@hostname, ':', @@port, '#', @@server_id), 255)`
	const write = `UPDATE election_records SET server = ` + name + ` WHERE election_name = ?`
	const read = `SELECT server, ` + name + ` FROM election_records WHERE election_name = ?`
	for _, conn := range s.connections(t) {
		for range 5 {
			_, err := conn.ExecContext(t.Context(), write, s.prefix+"places")
			must(t, "a write", err)
			var writes, reads string
			must(t, "a read", conn.QueryRowContext(t.Context(), read, s.prefix+"places").Scan(&writes, &reads))
			if writes != reads {
				t.Fatalf("a connection writes to %q and reads from %q; are reads sent to a replica?", writes, reads)
			}
		}
	}
}

// bootTime is when the server started, by its own clock, as far as whole seconds of uptime tell.
func bootTime(ctx context.Context, conn *sql.Conn) (time.Time, error) {
	var name string
	var uptime, now int64
	if err := conn.QueryRowContext(ctx, `SHOW GLOBAL STATUS LIKE 'Uptime'`).Scan(&name, &uptime); err != nil {
		return time.Time{}, err
	}
	err := conn.QueryRowContext(ctx, `SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))`).Scan(&now)
	return time.UnixMicro(now).Add(-time.Duration(uptime) * time.Second), err
}

// clocks matters for WithServerClock alone, which the lock does without where the engine is known to have no such clock.
func (s *suite) clocks(t *testing.T) {
	db := s.open(t)
	leader := s.lock(t, db, "clocks", "leader", mysqllock.WithOperationTimeout(timeout))
	must(t, "Create", leader.Create(t.Context(), record("leader")))
	const age = `SELECT TIMESTAMPDIFF(MICROSECOND, last_update, UTC_TIMESTAMP(6)) FROM election_records WHERE election_name = ?`
	for _, conn := range s.connections(t) {
		var first time.Time
		for i := range 10 {
			began := time.Now()
			must(t, "a renewal", leader.Update(t.Context(), record("leader")))
			var micros int64
			must(t, "a read", conn.QueryRowContext(t.Context(), age, s.prefix+"clocks").Scan(&micros))
			if age, most := time.Duration(micros)*time.Microsecond, time.Since(began)+time.Second; age < -time.Second || age > most {
				t.Fatalf("a row that was written at most %v ago is %v old by the clock of who reads it", most, age)
			}
			booted, err := bootTime(t.Context(), conn)
			if s.engine == "Vitess" || s.engine == "unknown" {
				t.Logf("the lock goes by no clock of the server's on %s (started %v, %v)", s.engine, booted, err)
				break
			}
			must(t, "the uptime", err)
			if i == 0 {
				first = booted
			}
			if difference := booted.Sub(first); difference.Abs() > 2500*time.Millisecond {
				t.Fatalf("a connection is told uptimes of two servers, which started %v apart; don't use WithServerClock there", difference)
			}
		}
	}
}
