package mysqllock

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// ElectLeader: the elector, the pool and the tables in one call, as v0 had it.

// electTimings are v0's: a lease of 60 s that is renewed every 15 s. The renew deadline leaves (60
// s - 40 s - 15 s) / 2 = 2.5 s for an operation.
var electTimings = timings{leaseDuration: 60 * time.Second, renewDeadline: 40 * time.Second, retryPeriod: 15 * time.Second}

// ElectLeader campaigns in the named election until ctx ends, with everything at its default: the
// database of the MYSQL_* environment variables (see [ConfigFromEnv]), tables made or upgraded by
// [Migrate], an identity made by [NewIdentity], a lease of 60 s renewed every 15 s, and
// [WithServerClock]. After a crash the next candidate leads within about 100 s: the lease, a tenth
// of it, and its next poll.
//
// becomeLeader is called when a term begins. Its context ends with the term or with ctx, whichever
// is first; work that it does must end then. It may also return at once and leave the work to
// goroutines of its own; the term goes on.
//
// loseLeadership is called once for each call of becomeLeader, as soon as that context has ended,
// without waiting for becomeLeader to return. It must not return before the work that it has to
// stop has stopped.
//
// When both have returned the candidate campaigns again, or, if ctx has ended, releases the lease,
// so that the next candidate takes over at its next poll, within 33 s (client-go's jitter makes 15
// s to 33 s of the 15 s), and ElectLeader returns nil. Until then the lease is renewed, also while
// the work takes its time to end.
//
// A leader that is asked to step down (see [RequestStepDown]) ends its work, releases the lease and
// campaigns again, once another candidate has led or a lease has passed.
//
// An error is returned only at the start: a configuration that can't be used, or a database that
// refuses the account or can't be migrated. One that can't be reached is waited for, with a line in
// the log; so are later outages.
func ElectLeader(ctx context.Context, election string, becomeLeader func(context.Context), loseLeadership func()) error {
	const op = "elect leader"
	if becomeLeader == nil || loseLeadership == nil {
		return wrap(op, election, errors.New("becomeLeader or loseLeadership is nil; give both, if need be empty functions"), nil)
	}
	config, err := ConfigFromEnv()
	if err != nil {
		return err
	}
	db, err := Open(config)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // all its users have returned
	return electLeader(ctx, db, election, electTimings, becomeLeader, loseLeadership)
}

func electLeader(ctx context.Context, db *sql.DB, election string, t timings, becomeLeader func(context.Context), loseLeadership func()) error {
	const op = "elect leader"
	asked := make(chan struct{}, 1) // to step down
	lock, err := New(db, election, resourcelock.ResourceLockConfig{Identity: NewIdentity()},
		WithTimings(t.leaseDuration, t.renewDeadline, t.retryPeriod), WithServerClock(),
		WithStepDown(func() {
			select {
			case asked <- struct{}{}:
			default:
			}
		}))
	if err != nil {
		return err
	}
	if err := await(ctx, func() error { return Migrate(ctx, db) }); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := campaign(ctx, lock, asked, t, becomeLeader, loseLeadership); err != nil {
			return wrap(op, election, err, db)
		}
	}
	return nil
}

// termLock is the lock of one campaign.
type termLock struct {
	*Lock
	// led is whether the elector became leader. The elector starts OnStartedLeading in a goroutine
	// of its own, so that only the event, which comes before, is sure to be seen in time.
	led atomic.Bool
	// stopped is closed when the elector is to stop: there is no work, or no more.
	stopped <-chan struct{}
}

func (l *termLock) RecordEvent(event string) {
	if event == "became leader" {
		l.led.Store(true)
	}
	l.Lock.RecordEvent(event)
}

func (l *termLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.Lock.Create(l.whole(ctx), record)
}

// Update refuses a release that is not for a stop: an elector that could not renew in time releases
// the lease first and ends the term's context afterwards, so that the next leader would begin
// beside this one's work. The next campaign takes up the lease again as soon as the work has ended;
// if the work hangs, the lease expires.
func (l *termLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if record.HolderIdentity == "" {
		select {
		case <-l.stopped:
		default:
			return wrap("update", l.election, errors.New("not released: the work of this term has not ended yet"), nil)
		}
	}
	return l.Lock.Update(l.whole(ctx), record)
}

// whole keeps ctx from cutting a takeover off: the server might still apply it, and nobody would
// release that lease. The lock's own deadline bounds it.
func (l *termLock) whole(ctx context.Context) context.Context {
	if l.led.Load() {
		return ctx
	}
	return context.WithoutCancel(ctx)
}

// campaign runs one elector, until its term is lost or ctx ends.
func campaign(ctx context.Context, lock *Lock, asked <-chan struct{}, t timings, becomeLeader func(context.Context), loseLeadership func()) error {
	select {
	case <-asked: // in a term that is over
	default:
	}
	// A leader's elector outlives ctx until the work has ended: it goes on renewing, and releases
	// the lease only then.
	electing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	term := &termLock{Lock: lock, stopped: electing.Done()}
	defer context.AfterFunc(ctx, func() {
		if !term.led.Load() {
			stop()
		}
	})()

	ended := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            term,
		Name:            lock.Describe(),
		LeaseDuration:   t.leaseDuration,
		RenewDeadline:   t.renewDeadline,
		RetryPeriod:     t.retryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(term context.Context) {
				defer close(ended)
				defer stop()
				serve(ctx, term, asked, becomeLeader, loseLeadership)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	elector.Run(electing)
	if term.led.Load() {
		<-ended
	}
	return nil
}

// serve runs the work of one term, until ctx or the term ends, or the leader is asked to step down.
func serve(ctx, term context.Context, asked <-chan struct{}, becomeLeader func(context.Context), loseLeadership func()) {
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(term, cancel)()
	if work.Err() != nil {
		return
	}
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		becomeLeader(work)
	}()
	select {
	case <-work.Done():
	case <-asked:
		cancel()
	}
	loseLeadership()
	<-returned
}
