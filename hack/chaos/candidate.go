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

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/machine"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
)

const election = "chaos"

// tables are for what leaders write; those of the lock are Migrate's.
var tables = []string{
	`CREATE TABLE ledger (id BIGINT AUTO_INCREMENT PRIMARY KEY, token BIGINT NOT NULL, who VARCHAR(60) NOT NULL, seq INT NOT NULL) ENGINE=InnoDB`,
	`CREATE TABLE unfenced (id BIGINT AUTO_INCREMENT PRIMARY KEY, token BIGINT NOT NULL, who VARCHAR(60) NOT NULL) ENGINE=InnoDB`,
}

var profiles = map[string]elector.Timings{"tight": elector.Tight, "default": elector.Default}

// candidateArgument makes this program a candidate.
const candidateArgument = "candidate"

// orders are what a candidate is told first. What it is told later is an order.
type orders struct {
	Identity, DSN, Lock, Break string
	Timings                    elector.Timings
	Own                        bool  // its pools are ones that a user made, and not Open's
	Raw                        bool  // it also is a client of raw operations
	Number                     int   // of its process in this run
	Epoch                      int64 // see trueTime
}

// candidate is one process that competes until SIGTERM. What it says goes to stdout, as events.
type candidate struct {
	orders

	say      func(event)
	lastWord atomic.Int64 // when the lock last got an answer, in ns since 1970 by the true time

	rewriting *rewriting // by which -break changes the lock's statements

	lending sync.Mutex
	lent    *sql.DB // the lock's pool, while somebody else may use it, too
}

func runCandidate() error {
	var o orders
	told := json.NewDecoder(os.Stdin)
	if err := told.Decode(&o); err != nil {
		return fmt.Errorf("orders: %w", err)
	}
	klog.SetLogger(logr.Discard()) // electors say much while everything fails
	var mu sync.Mutex
	encoder := json.NewEncoder(os.Stdout)
	c := &candidate{orders: o, say: func(e event) {
		mu.Lock()
		defer mu.Unlock()
		e.Who = o.Identity
		if e.Time.IsZero() {
			e.Time = trueTime()
		}
		_ = encoder.Encode(e) // the one who listens may be gone
	}}
	epoch = o.Epoch
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go c.obey(told)
	before := runtime.NumGoroutine()
	if err := c.compete(ctx); err != nil {
		return err
	}
	for end := time.Now().Add(2 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond) // the driver's watchers end a moment after their connections
	}
	c.say(event{Kind: bye, Goroutines: runtime.NumGoroutine() - before, Duration: trueTime().Sub(time.Unix(0, c.lastWord.Load()))})
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
	db, err := c.open(config)
	if err != nil {
		return err
	}
	defer c.close("lock", db)
	c.lend(db)
	defer c.lend(nil)
	work, err := c.pool(config)
	if err != nil {
		return err
	}
	defer c.close("work", work)
	if c.Raw {
		free, err := c.open(config)
		if err != nil {
			return err
		}
		defer c.close("raw", free)
		client := &rawClient{db: free, identity: c.Identity, timings: c.Timings, tag: c.Number << 16, wrap: c.lockOf(free), say: c.say}
		failure := make(chan error, 1)
		go func() { failure <- client.run(ctx) }()
		defer func() {
			if e := <-failure; e != nil {
				c.say(event{Kind: babbled, What: e.Error()})
			}
		}()
	}
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
	var lock resourcelock.Interface = mysqllocktest.NewReferenceLock(db, election, c.Identity, c.Timings.RenewDeadline)
	fenced, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: c.Identity},
		c.Timings.Option(),
		mysqllock.WithBeforeRelease(func(context.Context) error {
			endWork()
			<-ready
			working.Wait()
			return nil
		}))
	if err != nil {
		return err
	}
	if c.Lock == ours {
		lock = c.lockOf(db)(fenced, election)
	} else {
		fenced = nil
	}
	listening := &listener{Interface: lock, lastWord: &c.lastWord}
	e, err := c.Timings.New(listening, leaderelection.LeaderCallbacks{
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
	})
	if err != nil {
		return err
	}
	e.Run(ctx)
	if listening.led.Load() { // the row may be its own although it never led: a takeover without an answer
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
		began := trueTime()
		e := &entryToBe{candidate: c, token: token, seq: seq}
		err := e.post(limited, lock, work)
		cancel()
		said := event{Kind: posted, Token: e.token, Seq: seq, Duration: trueTime().Sub(began)}
		switch {
		case err == nil:
		case errors.Is(err, mysqllock.ErrNotLeader):
			said.Kind = refused
		case errors.Is(err, mysqllock.ErrOutcomeUnknown):
			said.Kind = unknown
		default:
			said.Kind, said.What = failed, err.Error()
		}
		c.say(said)
		wait.For(ctx, time.Duration(20+rand.IntN(60))*time.Millisecond) //nolint:gosec // a pace, not a secret
	}
}

// entryToBe is an entry of the ledger that may be posted.
type entryToBe struct {
	*candidate

	token int64 // of the term in which it is posted, which may have begun since OnStartedLeading
	seq   int
}

// post adds the entry: mostly through Transact, sometimes by a fenced statement or under a guard that comes first.
func (e *entryToBe) post(ctx context.Context, lock *mysqllock.Lock, work *sql.DB) error {
	insert := func(ctx context.Context, tx *sql.Tx) error {
		if lock != nil {
			// If the term is another than Transact began with, or than Guard guarded, it fails.
			token, held := lock.FencingToken()
			if !held && e.Break != breakGuard {
				return mysqllock.ErrNotLeader
			}
			if held {
				e.token = token
			}
		}
		var n int // of a snapshot, which a takeover may make old
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM ledger WHERE token = ? AND seq = ?`, e.token, e.seq).Scan(&n); err != nil {
			return err
		}
		if n != 0 {
			return fmt.Errorf("the entry is there already, %d times", n)
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO ledger (token, who, seq) VALUES (?, ?, ?)`, e.token, e.Identity, e.seq); err != nil {
			return err
		}
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) //nolint:gosec // a pace, not a secret
		return nil
	}
	options := &sql.TxOptions{Isolation: []sql.IsolationLevel{
		sql.LevelDefault, sql.LevelReadCommitted, sql.LevelRepeatableRead,
	}[e.seq%3]}
	guarded := lock != nil && e.Break != breakGuard
	if guarded && e.seq%5 == 1 {
		if err := e.postFenced(ctx, lock, work); !errors.Is(err, errNoCondition) {
			return err
		}
	}
	if guarded && e.seq%5 != 0 {
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

// errNoCondition: a read lock is not enough on this server.
var errNoCondition = errors.New("no condition")

// postFenced adds the entry by one statement with a FenceCondition.
func (e *entryToBe) postFenced(ctx context.Context, lock *mysqllock.Lock, work *sql.DB) error {
	token, _ := lock.FencingToken()
	condition, args, err := lock.FenceCondition()
	switch after, _ := lock.FencingToken(); {
	case errors.Is(err, mysqllock.ErrNotLeader), token == 0, after != token: // or the condition may be of another term
		return mysqllock.ErrNotLeader
	case err != nil:
		return errNoCondition
	}
	e.token = token
	time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)                                     //nolint:gosec // a pace, not a secret
	statement := `INSERT INTO ledger (token, who, seq) SELECT ?, ?, ? FROM DUAL WHERE ` + condition //nolint:gosec // a condition of the lock's
	result, err := work.ExecContext(ctx, statement, append([]any{token, e.Identity, e.seq}, args...)...)
	var answered *mysql.MySQLError
	switch {
	case errors.As(err, &answered):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", mysqllock.ErrOutcomeUnknown, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(mysqllock.ErrNotLeader, err)
	}
	return nil
}

// watchClock says when this process did not run for a while.
func (c *candidate) watchClock(ctx context.Context) {
	lastTrue := trueTime()
	machine.WatchStalls(ctx, stall/4, func(passed time.Duration) {
		// Its own clock, which may be slow, shows whether it ran; the true one for how long it did not.
		nowTrue := trueTime()
		if passed > stall {
			c.say(event{Kind: stalled, Duration: nowTrue.Sub(lastTrue)})
		}
		lastTrue = nowTrue
	})
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
		l.lastWord.Store(trueTime().UnixNano())
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
		l.lastWord.Store(trueTime().UnixNano())
		if record.HolderIdentity == l.Identity() {
			l.transitions.Store(int64(record.LeaderTransitions))
			l.led.Store(true)
		}
	}
	return err
}
