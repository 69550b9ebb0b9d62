package mysqllock_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// This file is about writes of which nobody can say whether the server has done them.

// A person who reads that an outcome is unknown goes and looks. It is said of no read, and of no
// write that had no connection.
func TestErrorSaysThatTheOutcomeIsUnknownOnlyOfAWriteThatWasSent(t *testing.T) {
	t.Parallel()
	const unknown = "the outcome is unknown"
	_, config := newTables(t)
	network := newProxy(t, config.Addr)
	nowhere := mysql.NewConfig()
	nowhere.Net, nowhere.Addr, nowhere.Logger = "tcp", newBlackHole(t), &mysql.NopLogger{}
	short := mysqllock.WithOperationTimeout(300 * time.Millisecond)
	for name, pool := range pools {
		t.Run(name, func(t *testing.T) {
			db := pool(t, network.config(config))
			db.SetMaxOpenConns(1)
			lock, another := newLock(t, db, name, "a", short), newLock(t, db, name+" new", "a", short)
			takeOver(t, lock)
			hung := pool(t, nowhere)
			standby := newLock(t, db, name, "b", short)
			mustSucceed(t, "Get", get(t.Context(), standby))
			if err := get(t.Context(), another)(); !apierrors.IsNotFound(err) {
				t.Fatal(err)
			}
			// A pool of one's own on MySQL: the statement that ends what others may have left open
			// comes first, and so the write is not sent.
			endsTransactions := name != "Open" && !server.MariaDB()
			calls := []struct {
				name   string
				call   func() error
				writes bool
			}{
				{"a poll", get(t.Context(), lock), false},
				{"GetElection", func() error { _, err := mysqllock.GetElection(t.Context(), db, name, short); return err }, false},
				{"ListElections", func() error { _, err := mysqllock.ListElections(t.Context(), db, short); return err }, false},
				{"Preflight", func() error {
					ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
					defer cancel()
					_, err := mysqllock.Preflight(ctx, db)
					return err
				}, false},
				{"a takeover, which begins with the probe", update(t.Context(), standby, record("b")), false},
				{"Create", create(t.Context(), another, record("a")), true},
				{"a renewal", update(t.Context(), lock, record("a")), true},
				{"a release", update(t.Context(), lock, recordFor("", 1)), true},
			}
			conn, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range calls[:len(calls)-1] { // a release ends the term, also one that is not sent
				if err := c.call(); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), unknown) {
					t.Errorf("%s without a connection: %v", c.name, err)
				}
			}
			mustSucceed(t, "giving the connection back", conn.Close)
			for _, c := range calls {
				mustSucceed(t, "connecting anew", func() error { return db.PingContext(t.Context()) })
				network.swallowReplies()
				if err := c.call(); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), unknown) != (c.writes && !endsTransactions) {
					t.Errorf("%s without an answer: %v", c.name, err)
				}
				network.cut()
				network.forward()
			}
			if err := create(t.Context(), newLock(t, hung, "e", "a", short), record("a"))(); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), unknown) {
				t.Errorf("Create without a server: %v", err)
			}
		})
	}
}

// Not only a deadline leaves a write open.
func TestErrorOfAWriteWhoseConnectionBreaksSaysThatTheOutcomeIsUnknown(t *testing.T) {
	_, config := newTables(t)
	network := newProxy(t, config.Addr)
	lock := newLock(t, open(t, network.config(config)), "e", "a", unhurried)
	takeOver(t, lock)
	mustSucceed(t, "a renewal, which is prepared", update(t.Context(), lock, record("a")))
	admin := open(t, config)
	before := versionOf(t, admin, "e")
	network.swallowReplies()
	var all calls
	all.start(func() {
		err := lock.Update(t.Context(), record("a"))
		if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.HasSuffix(err.Error(), "; the outcome is unknown") {
			t.Errorf("error %v", err)
		}
	})
	eventually(t, 10*time.Second, "the renewal is done", func() bool { return versionOf(t, admin, "e") > before })
	network.cut()
	all.Wait()
}
