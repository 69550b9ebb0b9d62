package main

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// pool opens a pool of the candidate's kind. A user's own is as the driver makes it.
func (c *candidate) pool(config *mysql.Config) (*sql.DB, error) {
	if !c.Own {
		return mysqllock.Open(config)
	}
	connector, err := newConnector(config)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// open opens a pool for locks, whose statements -break may change.
func (c *candidate) open(config *mysql.Config) (*sql.DB, error) {
	if c.Break != breakCAS {
		return c.pool(config)
	}
	config = config.Clone()
	config.InterpolateParams = !c.Own
	connector, err := newConnector(config)
	if err != nil {
		return nil, err
	}
	c.rewriting = newRewriting(connector, withoutVersion)
	return sql.OpenDB(c.rewriting), nil
}

// lockOf makes of a lock the one that this candidate uses.
func (c *candidate) lockOf(db *sql.DB) func(*mysqllock.Lock, string) resourcelock.Interface {
	return func(lock *mysqllock.Lock, election string) resourcelock.Interface {
		if c.Break == breakRelease {
			return careless{lock, db, election}
		}
		return lock
	}
}

// close closes a pool, of which nothing may be in use by now.
func (c *candidate) close(name string, db *sql.DB) {
	end := trueTime().Add(10 * time.Second) // what Transact gave up ends by itself
	for db.Stats().InUse > 0 && trueTime().Before(end) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := db.Stats().InUse; n > 0 {
		c.say(event{Kind: stuck, What: fmt.Sprintf("%d sessions for %s are in use when all is over", n, name)})
	}
	_ = db.Close() // nothing to lose
}

// lend lets leaveOpen use the lock's pool; nil ends that.
func (c *candidate) lend(db *sql.DB) {
	c.lending.Lock()
	defer c.lending.Unlock()
	c.lent = db
}

// leaveOpen sends statements to a session of the lock's pool, as an application that shares it might, and gives it back.
// There are some others, and which of them the lock gets next is left to chance.
func (c *candidate) leaveOpen(statements []string) {
	c.lending.Lock()
	defer c.lending.Unlock()
	if c.lent == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.Timings.Operation())
	defer cancel()
	var sessions []*sql.Conn
	for range 1 + rand.IntN(3) { //nolint:gosec // a choice, not a secret
		session, err := c.lent.Conn(ctx)
		if err != nil {
			return // the network is away, too
		}
		defer func() { _ = session.Close() }() // back to the pool
		sessions = append(sessions, session)
	}
	one := sessions[rand.IntN(len(sessions))] //nolint:gosec // a choice, not a secret
	for _, statement := range statements {
		if _, err := one.ExecContext(ctx, statement); err != nil {
			return // as above
		}
	}
	c.say(event{Kind: hit, What: transactionLeft})
}
