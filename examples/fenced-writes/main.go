// Command fenced-writes is a leader that posts to a ledger in MySQL, and shows why it does so through Transact: with
// -pause it stops its own process in the middle of a transaction, for longer than its lease, as a suspended machine or a
// long garbage collection would. When it wakes up another one leads, and its commit is refused.
//
//	export MYSQL_USER=app MYSQL_PASSWORD=secret MYSQL_HOST=127.0.0.1 MYSQL_DBNAME=mydb
//	go run ./fenced-writes -id a -pause 8s
//	go run ./fenced-writes -id b
//
// The first one prints
//
//	a leads with fencing token 1795401605555795
//	a posted entry 1
//	a posted entry 2
//	a stands still for 8s, in the middle of a transaction
//	a was refused: mysqllock: transact "default/ledger": not the leader: the term ended meanwhile
//	a leads no more
//
// and the second one posts entry 3 meanwhile. With -statement each entry is a single statement with a FenceCondition in
// place of a transaction: what the first one sends after its pause changes nothing.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Short, so that nobody has to wait for long; client-go's own are 15 s, 10 s and 2 s.
const (
	leaseDuration = 3 * time.Second
	renewDeadline = 2 * time.Second
	retryPeriod   = 300 * time.Millisecond
)

// The ledger knows nothing of leaders: the fence is in the tables of the lock.
const ledger = `CREATE TABLE IF NOT EXISTS ledger (entry BIGINT PRIMARY KEY, author VARCHAR(255) NOT NULL) ENGINE=InnoDB`

func main() {
	id := flag.String("id", mysqllock.NewIdentity(), "the candidate's name, which no other candidate may have")
	pause := flag.Duration("pause", 0, "stand still for so long in the middle of the third transaction")
	statement := flag.Bool("statement", false, "post by a fenced statement, and not by a transaction")
	flag.Parse()
	if *statement {
		post = postByStatement
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *id, *pause); err != nil {
		fmt.Fprintln(os.Stderr, "fenced-writes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, id string, pause time.Duration) error {
	config, err := mysqllock.ConfigFromEnv()
	if err != nil {
		return err
	}
	db, err := mysqllock.Open(config)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // after the elector
	if err := mysqllock.Migrate(ctx, db); err != nil {
		return err
	}
	// A pool of their own for the transactions, so that no renewal ever waits for
	// a connection. Any pool of the same server will do, also one with parseTime
	// and other options of your own.
	work, err := mysqllock.Open(config)
	if err != nil {
		return err
	}
	defer func() { _ = work.Close() }() // after the work
	if _, err := work.ExecContext(ctx, ledger); err != nil {
		return err
	}
	lock, err := mysqllock.New(db, "default/ledger", resourcelock.ResourceLockConfig{Identity: id},
		mysqllock.WithTimings(leaseDuration, renewDeadline, retryPeriod))
	if err != nil {
		return err
	}

	ended := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				defer close(ended)
				token, _ := lock.FencingToken()
				fmt.Println(id, "leads with fencing token", token)
				lead(ctx, lock, work, id, pause)
				fmt.Println(id, "leads no more")
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	elector.Run(ctx)
	if ctx.Err() == nil {
		<-ended
		return errors.New("leadership was lost")
	}
	return nil
}

// lead posts an entry every half second.
func lead(ctx context.Context, lock *mysqllock.Lock, work *sql.DB, id string, pause time.Duration) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for n := 1; ; n++ {
		// A careful program would pass ctx, which ends as soon as the elector
		// notices that the lease is lost. A process that stood still has not
		// noticed yet, and it need not.
		entry, err := post(context.WithoutCancel(ctx), lock, work, id, pause > 0 && n == 3, pause)
		switch {
		case errors.Is(err, mysqllock.ErrNotLeader):
			fmt.Println(id, "was refused:", err)
			return
		case errors.Is(err, mysqllock.ErrOutcomeUnknown):
			// No answer came to the COMMIT. Only reading the ledger can tell.
			fmt.Println(id, "doesn't know whether it posted:", err)
		case err != nil:
			fmt.Println(id, "did not post:", err)
		default:
			fmt.Println(id, "posted entry", entry)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

var post = postByTransaction

// postByTransaction adds an entry. Whatever becomes of this process before the commit: if another candidate leads by then,
// nothing is committed.
func postByTransaction(ctx context.Context, lock *mysqllock.Lock, work *sql.DB, id string, stop bool, pause time.Duration) (entry int64, err error) {
	err = lock.Transact(ctx, work, nil, func(ctx context.Context, tx *sql.Tx) error {
		if stop {
			fmt.Println(id, "stands still for", pause.String()+", in the middle of a transaction")
			if err := standStill(ctx, pause); err != nil {
				return err
			}
		}
		if err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(entry), 0) + 1 FROM ledger`).Scan(&entry); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO ledger (entry, author) VALUES (?, ?)`, entry, id)
		return err
	})
	return entry, err
}

// insertNext: parameters (author, those of the condition).
const insertNext = `INSERT INTO ledger (entry, author) SELECT next, ? FROM (SELECT COALESCE(MAX(entry), 0) + 1 AS next FROM ledger) AS numbers WHERE %s`

// postByStatement does the same in one round trip, as an entry is one row. The number is computed in a derived table: an
// aggregate beside the condition would return a row whatever that says.
func postByStatement(ctx context.Context, lock *mysqllock.Lock, work *sql.DB, id string, stop bool, pause time.Duration) (entry int64, err error) {
	condition, args, err := lock.FenceCondition()
	if err != nil {
		return 0, err
	}
	if stop {
		fmt.Println(id, "stands still for", pause.String()+", before its statement")
		if err := standStill(ctx, pause); err != nil {
			return 0, err
		}
	}
	result, err := work.ExecContext(ctx, fmt.Sprintf(insertNext, condition), append([]any{id}, args...)...)
	if err != nil {
		return 0, err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return 0, errors.Join(err, fmt.Errorf("%w: the statement changed no row", mysqllock.ErrNotLeader))
	}
	err = work.QueryRowContext(ctx, `SELECT MAX(entry) FROM ledger WHERE author = ?`, id).Scan(&entry)
	return entry, err
}

// standStill stops this whole process; somebody else has to wake it up.
func standStill(ctx context.Context, d time.Duration) error {
	alarm := exec.CommandContext(context.WithoutCancel(ctx), "sh", "-c", fmt.Sprintf("sleep %g; kill -CONT %d", d.Seconds(), os.Getpid()))
	if err := alarm.Start(); err != nil {
		return err
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
		return err
	}
	return alarm.Wait()
}
