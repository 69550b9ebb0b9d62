package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// The elector's timings, short for a demonstration; client-go's usual ones are
// 15 s, 10 s and 2 s. The lease must be whole seconds. Half of what is left,
// lease - renew deadline - retry period, is the time that the database has to
// answer: 0.35 s here.
const (
	leaseDuration = 3 * time.Second        // followers take over when they saw no renewal for so long
	renewDeadline = 2 * time.Second        // a leader that couldn't renew for so long stops leading
	retryPeriod   = 300 * time.Millisecond // how often the leader renews and followers look
)

// runCandidate is one replica of a program of which only one may work at a
// time: run as many as you like, one leads and the others stand by.
func runCandidate(args []string) error {
	flags := flag.NewFlagSet("quickstart candidate", flag.ExitOnError)
	id := flags.String("id", mysqllock.NewIdentity(), "this candidate's `name`, which no other candidate may have")
	election := flags.String("election", "demo/quickstart", "the `name` of what is elected: candidates with the same one compete")
	verbose := flags.Bool("v", false, "write client-go's log to stderr")
	_ = flags.Parse(args) // ExitOnError
	if !*verbose {
		klog.SetLogger(klog.Logger{}) // one that drops everything
	}

	// What Kubernetes, systemd and Ctrl-C send to stop a program.
	signalled, ignore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer ignore()

	// The connection of MYSQL_USER, MYSQL_PASSWORD, MYSQL_HOST, MYSQL_PORT and
	// MYSQL_DBNAME. Close the pool only when the elector has returned, or it
	// can't give its lease back. The program's own queries want a pool of their
	// own, so that they never keep a renewal waiting.
	config, err := mysqllock.ConfigFromEnv()
	if err != nil {
		return err
	}
	db, err := mysqllock.Open(config)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // the process ends anyway

	// Makes the two tables if they aren't there. Where the program's account may
	// not create tables, have somebody apply mysqllock.Schema once instead.
	if err := mysqllock.Migrate(signalled, db); err != nil {
		return err
	}

	// In a program that had its lock in Kubernetes until now, this expression
	// takes the place of the resourcelock.LeaseLock; the rest stays.
	workEnded := make(chan struct{})
	lock, err := mysqllock.New(db, *election, resourcelock.ResourceLockConfig{Identity: *id},
		mysqllock.WithTimings(leaseDuration, renewDeadline, retryPeriod),
		// The next candidate leads as soon as the lease is given back, so this one
		// must have ended its work by then. If it can't in time, the error keeps
		// the lock from giving the lease back, and it expires.
		mysqllock.WithBeforeRelease(func(ctx context.Context) error {
			select {
			case <-workEnded:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}))
	if err != nil {
		return err
	}

	tell := reporter(os.Stdout, *id)

	// A pool for the work, apart from the lock's.
	work, err := mysqllock.Open(config)
	if err != nil {
		return err
	}
	defer func() { _ = work.Close() }()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   leaseDuration,
		RenewDeadline:   renewDeadline,
		RetryPeriod:     retryPeriod,
		ReleaseOnCancel: true, // so that the next candidate need not wait for the lease to expire
		Callbacks: leaderelection.LeaderCallbacks{
			// Called in a goroutine of its own. ctx ends with the signal, or when
			// the lease is lost.
			OnStartedLeading: func(ctx context.Context) {
				defer close(workEnded)
				if ctx.Err() == nil {
					lead(ctx, lock, work, tell)
				}
			},
			// Called at the end of every candidate, also of one that never led.
			OnStoppedLeading: func() {},
			OnNewLeader: func(leader string) {
				if leader != *id && leader != "" { // "": the last one gave its lease back
					tell(seesLeader, leader)
				}
			},
		},
	})
	if err != nil {
		return err
	}
	elector.Run(signalled)
	if signalled.Err() == nil {
		// Whoever lost the lease starts afresh: exit, and let Kubernetes or
		// systemd start the next process.
		<-workEnded
		return errors.New("lost the leadership")
	}
	return nil
}

// lead is the work that one process at most may do at a time. It must return as
// soon as ctx ends: then the lease is lost, or about to be given back.
func lead(ctx context.Context, lock *mysqllock.Lock, work *sql.DB, tell func(what, detail string)) {
	post := make(chan os.Signal, 1)
	signal.Notify(post, syscall.SIGUSR1) // before anybody knows that this one leads, and sends it
	defer signal.Stop(post)
	tell(startedLeading, "")
	defer tell(stoppedLeading, "")
	for {
		select {
		case <-ctx.Done():
			return
		case <-post: // your program's work
			postEntry(ctx, lock, work, tell)
		}
	}
}

// postEntry writes to a table of the program's own. Transact commits only if
// this candidate still leads then: so it can't do harm even if it was paused in
// the middle for longer than its lease, and another one leads.
func postEntry(ctx context.Context, lock *mysqllock.Lock, work *sql.DB, tell func(what, detail string)) {
	// A careful program would pass ctx, which ends as soon as the elector notices
	// that it lost the lease. This one is late to notice, to show that it need not.
	ctx = context.WithoutCancel(ctx)
	err := lock.Transact(ctx, work, nil, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO quickstart_ledger (entry) VALUES (?)`, "by "+lock.Identity()); err != nil {
			return err
		}
		tell(inTransaction, "")
		time.Sleep(500 * time.Millisecond) // the rest of the transaction's work
		return nil
	})
	if err != nil {
		tell(commitRefused, err.Error())
		return
	}
	tell(committed, "")
}
