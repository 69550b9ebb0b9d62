package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

const election = "chaos"

// tables are for what leaders write; those of the lock are Migrate's.
var tables = []string{
	`CREATE TABLE ledger (id BIGINT AUTO_INCREMENT PRIMARY KEY, token BIGINT NOT NULL, who VARCHAR(60) NOT NULL, seq INT NOT NULL) ENGINE=InnoDB`,
	`CREATE TABLE unfenced (id BIGINT AUTO_INCREMENT PRIMARY KEY, token BIGINT NOT NULL, who VARCHAR(60) NOT NULL) ENGINE=InnoDB`,
}

// timings are an elector's.
type timings struct{ LeaseDuration, RenewDeadline, RetryPeriod time.Duration }

var profiles = map[string]timings{
	"tight":   {3 * time.Second, 2 * time.Second, 300 * time.Millisecond},
	"default": {15 * time.Second, 10 * time.Second, 2 * time.Second},
}

// orders are what a candidate is told, by the variable of that name.
type orders struct {
	Identity, DSN, Lock, Break string
	Timings                    timings
}

const ordersVariable = "CHAOS_ORDERS"

// candidate is one process that competes until SIGTERM. What it says goes to stdout, as events.
type candidate struct {
	orders

	say      func(event)
	lastWord atomic.Int64 // when the lock last got an answer, in ns since 1970
}

func runCandidate() error {
	var o orders
	if err := json.Unmarshal([]byte(os.Getenv(ordersVariable)), &o); err != nil {
		return fmt.Errorf("%s: %w", ordersVariable, err)
	}
	klog.SetLogger(logr.Discard()) // electors say much while everything fails
	var mu sync.Mutex
	encoder := json.NewEncoder(os.Stdout)
	c := &candidate{orders: o, say: func(e event) {
		mu.Lock()
		defer mu.Unlock()
		e.Who = o.Identity
		if e.Time.IsZero() {
			e.Time = time.Now()
		}
		_ = encoder.Encode(e) // the one who listens may be gone
	}}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	before := runtime.NumGoroutine()
	if err := c.compete(ctx); err != nil {
		return err
	}
	for end := time.Now().Add(2 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond) // the driver's watchers end a moment after their connections
	}
	c.say(event{Kind: bye, Goroutines: runtime.NumGoroutine() - before, Duration: time.Since(time.Unix(0, c.lastWord.Load()))})
	return nil
}

func (c *candidate) compete(ctx context.Context) error {
	clock, stopClock := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { c.watchClock(clock) })
	defer watching.Wait()
	defer stopClock()

	config, err := mysql.ParseDSN(c.DSN)
	if err != nil {
		return err
	}
	db, err := mysqllock.Open(config)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // nothing to lose
	if c.Break == breakCAS {
		_ = db.Close() // the one with the broken statements replaces it
		config.Logger = &mysql.NopLogger{}
		config.InterpolateParams = true
		connector, err := mysql.NewConnector(config)
		if err != nil {
			return err
		}
		db = sql.OpenDB(rewriting{connector, withoutVersion})
	}
	work, err := mysqllock.Open(config)
	if err != nil {
		return err
	}
	defer func() { _ = work.Close() }() // after the work

	for ctx.Err() == nil {
		if err := c.campaign(ctx, db, work); err != nil {
			return err
		}
	}
	return nil
}

// campaign runs one elector until it has lost its leadership, or ctx ends.
func (c *candidate) campaign(ctx context.Context, db, work *sql.DB) error {
	var working sync.WaitGroup
	defer working.Wait()
	ready := make(chan struct{}) // the work has begun
	term, endWork := context.WithCancel(context.Background())
	defer endWork()
	var lock resourcelock.Interface = &referenceLock{db: db, identity: c.Identity, timeout: max(time.Second, c.Timings.RenewDeadline/2)}
	fenced, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: c.Identity},
		mysqllock.WithTimings(c.Timings.LeaseDuration, c.Timings.RenewDeadline, c.Timings.RetryPeriod),
		mysqllock.WithBeforeRelease(func(context.Context) error {
			endWork()
			<-ready
			working.Wait()
			return nil
		}))
	if err != nil {
		return err
	}
	switch {
	case c.Break == breakRelease:
		lock = careless{fenced, db}
	case c.Lock == ours:
		lock = fenced
	default:
		fenced = nil
	}
	listening := &listener{Interface: lock, lastWord: &c.lastWord}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: listening, LeaseDuration: c.Timings.LeaseDuration, RenewDeadline: c.Timings.RenewDeadline, RetryPeriod: c.Timings.RetryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				token := listening.transitions.Load()
				if fenced != nil {
					token, _ = fenced.FencingToken()
				}
				context.AfterFunc(ctx, endWork)
				c.say(event{Kind: leads, Token: token})
				working.Go(func() { <-term.Done(); c.say(event{Kind: leadsNot, Token: token}) })
				working.Go(func() { c.lead(term, fenced, work, token) })
				close(ready)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	elector.Run(ctx)
	if elector.IsLeader() || listening.led.Load() {
		<-ready // OnStartedLeading runs beside the elector
	}
	return nil
}

// lead posts entries until ctx ends, and does not look at it while a transaction is under way: a stale leader wouldn't.
func (c *candidate) lead(ctx context.Context, lock *mysqllock.Lock, work *sql.DB, token int64) {
	careless := context.WithoutCancel(ctx)
	for seq := 1; ctx.Err() == nil; seq++ {
		limited, cancel := context.WithTimeout(careless, 2*c.Timings.LeaseDuration)
		_, _ = work.ExecContext(limited, `INSERT INTO unfenced (token, who) VALUES (?, ?)`, token, c.Identity) // the control
		err := c.post(limited, lock, work, token, seq)
		cancel()
		switch e := (event{Token: token, Seq: seq}); {
		case err == nil:
			e.Kind = posted
			c.say(e)
		case errors.Is(err, mysqllock.ErrNotLeader):
			e.Kind = refused
			c.say(e)
		case errors.Is(err, mysqllock.ErrOutcomeUnknown):
			e.Kind = unknown
			c.say(e)
		default:
			e.Kind, e.What = failed, err.Error()
			c.say(e)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(20+rand.IntN(60)) * time.Millisecond): //nolint:gosec // a pace, not a secret
		}
	}
}

// post adds an entry to the ledger: mostly through Transact, sometimes under a guard that comes first.
func (c *candidate) post(ctx context.Context, lock *mysqllock.Lock, work *sql.DB, token int64, seq int) error {
	insert := func(ctx context.Context, tx *sql.Tx) error {
		var n int // of a snapshot, which a takeover may make old
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM ledger WHERE token = ? AND seq = ?`, token, seq).Scan(&n); err != nil {
			return err
		}
		if n != 0 {
			return fmt.Errorf("the entry is there already, %d times", n)
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO ledger (token, who, seq) VALUES (?, ?, ?)`, token, c.Identity, seq); err != nil {
			return err
		}
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) //nolint:gosec // a pace, not a secret
		return nil
	}
	options := &sql.TxOptions{Isolation: []sql.IsolationLevel{
		sql.LevelDefault, sql.LevelReadCommitted, sql.LevelRepeatableRead,
	}[seq%3]}
	guarded := lock != nil && c.Break != breakGuard
	if guarded && seq%5 != 0 {
		return lock.Transact(ctx, work, options, insert)
	}
	tx, err := work.BeginTx(ctx, options)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // if it did not commit
	if guarded {
		if err := lock.Guard(ctx, tx); err != nil {
			return err
		}
	}
	if err := insert(ctx, tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("%w: %w", mysqllock.ErrOutcomeUnknown, err)
	}
	return nil
}

// watchClock tells when this process did not run for a while, whoever's fault that was.
func (c *candidate) watchClock(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := time.Now().Round(0) // by the wall clock: it goes on while a machine is suspended
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			now := time.Now().Round(0)
			if gap := now.Sub(last); gap > stall {
				c.say(event{Kind: stalled, Duration: gap})
			}
			last = now
		}
	}
}

// listener takes down when the lock last got an answer.
type listener struct {
	resourcelock.Interface

	lastWord    *atomic.Int64
	transitions atomic.Int64 // as last written
	led         atomic.Bool
}

func (l *listener) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err == nil {
		l.lastWord.Store(time.Now().UnixNano())
	}
	return record, raw, err
}

func (l *listener) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.wrote(record, l.Interface.Create(ctx, record))
}

func (l *listener) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.wrote(record, l.Interface.Update(ctx, record))
}

func (l *listener) wrote(record resourcelock.LeaderElectionRecord, err error) error {
	if err == nil {
		l.lastWord.Store(time.Now().UnixNano())
		if record.HolderIdentity == l.Identity() {
			l.transitions.Store(int64(record.LeaderTransitions))
			l.led.Store(true)
		}
	}
	return err
}
