//go:build clusters

package servers

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

const (
	election = "e"
	database = "elections"
)

// unhurried is for tests that are not about time: no operation ends by a deadline, however slow the machine is.
var unhurried = mysqllock.WithOperationTimeout(2 * time.Minute)

// closeAfter ends servers after a test, unless err says that they did not start.
func closeAfter(t *testing.T, servers io.Closer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := servers.Close(); err != nil {
			t.Error(err)
		}
	})
}

// openOn is a pool of the administrator of a server in a database of it, for the duration of a test.
func openOn(t *testing.T, server *mysqltest.Server, database string) *sql.DB {
	t.Helper()
	config := server.Config()
	config.DBName = database
	return openConfig(t, config)
}

func openConfig(t *testing.T, config *mysql.Config) *sql.DB {
	t.Helper()
	db, err := mysqllock.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func exec(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func number(t *testing.T, db *sql.DB, query string) (n int64) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

const (
	ledgerSQL = `CREATE TABLE ledger (id INT AUTO_INCREMENT PRIMARY KEY, entry VARCHAR(40) NOT NULL) ENGINE=InnoDB`
	countSQL  = `SELECT COUNT(*) FROM ledger`
	tokenSQL  = `SELECT fencing_token FROM election_fences`
)

// entry is work in a leader's name.
func entry(text string) func(context.Context, *sql.Tx) error {
	return func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO ledger (entry) VALUES (?)`, text)
		return err
	}
}

// eventually waits until condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	if err := wait.Until(t.Context(), what, func(context.Context) (bool, error) { return condition(), nil }); err != nil {
		t.Fatal(err)
	}
}

func newLock(t *testing.T, db *sql.DB, identity string) *mysqllock.Lock {
	t.Helper()
	lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: identity}, unhurried)
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

// record begins a term.
func record(identity string) resourcelock.LeaderElectionRecord {
	now := metav1.Now()
	return resourcelock.LeaderElectionRecord{HolderIdentity: identity, LeaseDurationSeconds: 15, AcquireTime: now, RenewTime: now}
}

// get is a poll that must succeed and find that holder.
func get(t *testing.T, lock *mysqllock.Lock, holder string) {
	t.Helper()
	found, _, err := lock.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if found.HolderIdentity != holder {
		t.Fatalf("%s sees the election held by %q, not by %q", lock.Identity(), found.HolderIdentity, holder)
	}
}

func token(t *testing.T, lock *mysqllock.Lock) int64 {
	t.Helper()
	token, held := lock.FencingToken()
	if !held {
		t.Fatalf("%s holds no fencing token", lock.Identity())
	}
	return token
}

// hasNumber reports whether a server answered with one of these errors.
func hasNumber(err error, numbers ...uint16) bool {
	var e *mysql.MySQLError
	if !errors.As(err, &e) {
		return false
	}
	return slices.Contains(numbers, e.Number)
}

// wantFinding has Preflight find something of that severity about a subject.
func wantFinding(t *testing.T, db *sql.DB, severity mysqllock.Severity, subject string) {
	t.Helper()
	found, err := mysqllock.Preflight(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(found, func(f mysqllock.Finding) bool { return f.Severity == severity && f.Subject == subject }) {
		t.Errorf("no %s about %s, but %v", severity, subject, found)
	}
}
