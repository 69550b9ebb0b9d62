//go:build clusters

package servers

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"net"
	"slices"
	"testing"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// A promotion that loses writes is survived as follows: who held the lease in what is left holds it again, what a
// deposed leader does is refused, and further terms have larger tokens than those that were lost.
func TestAPromotionThatLosesWritesLetsNoStaleLeaderCommit(t *testing.T) {
	p := newPair(t)
	earlier, deposed := p.candidate(t, "earlier"), p.candidate(t, "deposed")
	var lost int64 // the token of a term that a promotion lost

	t.Run("Preflight tells a replica that takes writes", p.testPreflight)
	t.Run("a lost takeover gives the lease back to the earlier holder", func(t *testing.T) {
		if err := earlier.Create(t.Context(), record("earlier")); err != nil {
			t.Fatal(err)
		}
		p.commits(t, earlier)
		p.lose(t, func() {
			get(t, deposed, "earlier")
			if err := deposed.Update(t.Context(), record("deposed")); err != nil {
				t.Fatal(err)
			}
			p.commits(t, deposed)
		})
		lost = token(t, deposed)
		if token(t, earlier) >= lost {
			t.Fatal("the later term has no larger token")
		}
		// Here both believe that they lead, for RenewDeadline at most.
		if err := p.transact(t, deposed); !errors.Is(err, mysqllock.ErrNotLeader) {
			t.Errorf("the deposed leader's commit: error %v, want ErrNotLeader", err)
		}
		p.commits(t, earlier)
		before := token(t, earlier)
		if err := earlier.Update(t.Context(), record("earlier")); err != nil {
			t.Errorf("the earlier holder, which did not notice anything, can't renew: %v", err)
		}
		if token(t, earlier) != before {
			t.Error("it began another term")
		}
		if err := deposed.Update(t.Context(), record("deposed")); !apierrors.IsConflict(err) {
			t.Errorf("the deposed leader's renewal: error %v, want a conflict", err)
		}
		if _, held := deposed.FencingToken(); held {
			t.Error("the deposed leader still holds a token")
		}
		// What the deposed one committed is lost, as it was on the lost server only.
		if got := p.ledger(t); !slices.Equal(got, []string{"earlier", "earlier"}) {
			t.Errorf("the ledger has %q", got)
		}
	})

	t.Run("the next term has a larger token than the lost one", func(t *testing.T) {
		get(t, deposed, "earlier")
		if err := deposed.Update(t.Context(), record("deposed")); err != nil {
			t.Fatal(err)
		}
		if now := token(t, deposed); now <= lost {
			t.Errorf("token %d after %d", now, lost)
		}
		if err := p.transact(t, earlier); !errors.Is(err, mysqllock.ErrNotLeader) {
			t.Errorf("the stale leader's commit: error %v, want ErrNotLeader", err)
		}
	})

	t.Run("an earlier holder that had noticed the takeover begins a new term", func(t *testing.T) {
		p.replace(t)
		holder, successor := deposed, earlier
		before := token(t, holder)
		p.lose(t, func() {
			get(t, successor, "deposed")
			if err := successor.Update(t.Context(), record("earlier")); err != nil {
				t.Fatal(err)
			}
			lost = token(t, successor)
			if err := holder.Update(t.Context(), record("deposed")); !apierrors.IsConflict(err) {
				t.Fatalf("its renewal: error %v, want a conflict", err)
			}
		})
		if err := p.transact(t, holder); !errors.Is(err, mysqllock.ErrNotLeader) {
			t.Errorf("its commit without a term: error %v, want ErrNotLeader", err)
		}
		get(t, holder, "deposed")
		if err := holder.Update(t.Context(), record("deposed")); err != nil {
			t.Fatal(err)
		}
		if now := token(t, holder); now <= before || now <= lost {
			t.Errorf("token %d after %d and the lost %d", now, before, lost)
		}
		p.commits(t, holder)
	})

	t.Run("a leader goes on after lost renewals", func(t *testing.T) {
		p.replace(t)
		leader := deposed
		before := token(t, leader)
		p.lose(t, func() {
			for range 3 {
				if err := leader.Update(t.Context(), record("deposed")); err != nil {
					t.Fatal(err)
				}
			}
		})
		// As the elector does: it believes in what it wrote last, and looks when that was wrong.
		if err := leader.Update(t.Context(), record("deposed")); !apierrors.IsConflict(err) {
			t.Errorf("the first renewal: error %v, want a conflict", err)
		}
		get(t, leader, "deposed")
		if err := leader.Update(t.Context(), record("deposed")); err != nil {
			t.Errorf("the second renewal: %v", err)
		}
		if token(t, leader) != before {
			t.Error("it began another term")
		}
		p.commits(t, leader)
	})

	t.Run("of candidates that race on the new primary one wins", func(t *testing.T) {
		db := openConfig(t, p.config)
		exec(t, db, `DELETE FROM election_records`)
		testRaces(t, []*sql.DB{db, openConfig(t, p.config)}, false)
	})
}

// pair is a primary with a replica, and how an application reaches whichever is the primary.
type pair struct {
	*ReplicaPair
	config *mysql.Config
}

func newPair(t *testing.T) pair {
	t.Helper()
	servers, err := StartReplicaPair(t.Context())
	closeAfter(t, servers, err)
	config := servers.Primary.Config()
	config.User, config.Passwd, config.DBName = "app", rand.Text(), database
	config.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, servers.Primary.Config().Addr)
	}
	admin := openOn(t, servers.Primary, "")
	exec(t, admin, "CREATE DATABASE "+database)
	exec(t, admin, `CREATE USER app@'127.0.0.1' IDENTIFIED BY '`+config.Passwd+`'`)
	exec(t, admin, "GRANT ALL ON "+database+".* TO app@'127.0.0.1'")
	p := pair{servers, config}
	db := openConfig(t, config)
	exec(t, db, ledgerSQL)
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return p
}

// candidate is one with a pool of its own, which outlives the promotion.
func (p pair) candidate(t *testing.T, identity string) *mysqllock.Lock {
	t.Helper()
	return newLock(t, openConfig(t, p.config), identity)
}

// lose has a promotion lose what write does.
func (p pair) lose(t *testing.T, write func()) {
	t.Helper()
	if err := errors.Join(p.CatchUp(t.Context()), p.Hold(t.Context())); err != nil {
		t.Fatal(err)
	}
	write()
	if err := p.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// replace adds a replica for the next promotion.
func (p pair) replace(t *testing.T) {
	t.Helper()
	if err := p.AddReplica(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// transact is work in a leader's name: an entry with its identity.
func (p pair) transact(t *testing.T, leader *mysqllock.Lock) error {
	t.Helper()
	return leader.Transact(t.Context(), openConfig(t, p.config), nil, entry(leader.Identity()))
}

func (p pair) commits(t *testing.T, leader *mysqllock.Lock) {
	t.Helper()
	if err := p.transact(t, leader); err != nil {
		t.Errorf("the commit of %s, who leads: %v", leader.Identity(), err)
	}
}

func (p pair) ledger(t *testing.T) (entries []string) {
	t.Helper()
	rows, err := openConfig(t, p.config).QueryContext(t.Context(), `SELECT entry FROM ledger ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var entry string
		if err := rows.Scan(&entry); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return entries
}

func (p pair) testPreflight(t *testing.T) {
	config := p.config.Clone()
	config.User = "monitor"
	admin := openOn(t, p.Primary, "")
	exec(t, admin, `CREATE USER monitor@'127.0.0.1' IDENTIFIED BY '`+config.Passwd+`'`)
	exec(t, admin, "GRANT SELECT, INSERT, UPDATE ON "+database+".* TO monitor@'127.0.0.1'")
	if p.Primary.MariaDB() {
		exec(t, admin, "GRANT SLAVE MONITOR ON *.* TO monitor@'127.0.0.1'")
	} else {
		exec(t, admin, "GRANT REPLICATION CLIENT ON *.* TO monitor@'127.0.0.1'")
	}
	if err := p.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := func(server *mysqltest.Server, user string) *sql.DB {
		c := config.Clone()
		c.User, c.Addr, c.DialFunc = user, server.Config().Addr, nil
		return openConfig(t, c)
	}
	wantFinding(t, at(p.Primary, "monitor"), mysqllock.SeverityInfo, "log_bin") // and so no replica
	wantFinding(t, at(p.Primary, "app"), mysqllock.SeverityInfo, "log_bin")
	wantFinding(t, at(p.Replica, "monitor"), mysqllock.SeverityError, "read_only")

	replica := openOn(t, p.Replica, "")
	exec(t, replica, `SET GLOBAL read_only = 0`)
	wantFinding(t, at(p.Replica, "monitor"), mysqllock.SeverityWarning, "replication")
	if p.Replica.MariaDB() {
		wantFinding(t, at(p.Replica, "app"), mysqllock.SeverityWarning, "replication")
	}
	if err := p.Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, at(p.Replica, "monitor"), mysqllock.SeverityWarning, "replication")
	exec(t, replica, `SET GLOBAL read_only = 1`)
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
}
