// Command sharded shares N shards among any number of processes: each shard is an election, and each process leads its fair
// share of them. A process that joins gets its share from the others; those of one that dies go to the rest.
//
//	export MYSQL_USER=app MYSQL_PASSWORD=secret MYSQL_HOST=127.0.0.1 MYSQL_DBNAME=mydb
//	go run ./sharded -id a -shards 12        # and -id b, -id c in other terminals
//
// It prints what it works on, and its whole share when that has changed:
//
//	a works on shard 3
//	a stops work on shard 7
//	a holds 4 of 12 shards; processes: 3
//
// A process leads one more election, of its own, that nobody else competes for: so each can count the others. None holds
// more than the number of shards divided by that of processes, rounded up, once the others have noticed it; with 10 shards
// and 3 processes that may be 4, 4 and 2. All elections of a process share one pool of connections.
package main

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

const (
	leaseDuration = 3 * time.Second
	renewDeadline = 2 * time.Second
	retryPeriod   = 300 * time.Millisecond

	shardPrefix   = "sharded/shard-"
	processPrefix = "sharded/process-"
)

func main() {
	id := flag.String("id", mysqllock.NewIdentity(), "this process's name, which no other process may have")
	shards := flag.Int("shards", 12, "how many there are, the same for all processes")
	flag.Parse()
	klog.SetLogger(klog.Logger{}) // client-go would log every campaign
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *id, *shards); err != nil {
		fmt.Fprintln(os.Stderr, "sharded:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, id string, shards int) error {
	config, err := mysqllock.ConfigFromEnv()
	if err != nil {
		return err
	}
	db, err := mysqllock.Open(config)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // after the electors
	// Each campaign looks at its election once a retry period; ten connections
	// do for hundreds of them.
	db.SetMaxOpenConns(10)
	if err := mysqllock.Migrate(ctx, db); err != nil {
		return err
	}

	s := &sharer{id: id, db: db, shards: shards, leads: map[int]context.CancelFunc{}, campaigns: map[int]context.CancelFunc{}}
	defer s.running.Wait()
	s.running.Go(func() {
		for ctx.Err() == nil { // also after an outage
			s.elect(ctx, processPrefix+id, func(ctx context.Context) { <-ctx.Done() })
		}
	})
	tick := time.NewTicker(retryPeriod)
	defer tick.Stop()
	for {
		s.balance(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

type sharer struct {
	id      string
	db      *sql.DB
	shards  int
	running sync.WaitGroup
	told    string

	mu        sync.Mutex
	leads     map[int]context.CancelFunc // the shards that it leads: how to step down
	campaigns map[int]context.CancelFunc // those that it campaigns for: how to stop
}

// balance campaigns for all shards of others while it has less than its share, and steps down from what it has too much.
func (s *sharer) balance(ctx context.Context) {
	elections, err := mysqllock.ListElections(ctx, s.db)
	if err != nil {
		return // the leases of an outage are the electors' business
	}
	processes := 0
	for _, e := range elections {
		if strings.HasPrefix(e.Name, processPrefix) && e.Holder != "" && !e.Expired {
			processes++
		}
	}
	processes = max(processes, 1) // it may not have its own yet
	share := (s.shards + processes - 1) / processes

	s.mu.Lock()
	defer s.mu.Unlock()
	held := len(s.leads)
	switch {
	case held < share:
		for _, shard := range rand.Perm(s.shards) { //nolint:gosec // not the same first shard in all processes; nothing depends on it
			if s.leads[shard] == nil && s.campaigns[shard] == nil {
				s.campaign(ctx, shard)
			}
		}
	default:
		for _, stop := range s.campaigns {
			stop()
		}
		for _, stepDown := range s.leads {
			if held--; held < share {
				break
			}
			stepDown()
		}
	}
	if state := fmt.Sprintf("%s holds %d of %d shards; processes: %d", s.id, len(s.leads), s.shards, processes); state != s.told {
		fmt.Println(state)
		s.told = state
	}
}

// campaign runs one elector for one shard until it has led, or is stopped.
func (s *sharer) campaign(ctx context.Context, shard int) {
	ctx, stop := context.WithCancel(ctx)
	s.campaigns[shard] = stop
	s.running.Go(func() {
		defer stop()
		s.elect(ctx, fmt.Sprint(shardPrefix, shard), func(ctx context.Context) {
			s.mu.Lock()
			delete(s.campaigns, shard)
			s.leads[shard] = stop
			s.mu.Unlock()
			work(ctx, s.id, shard)
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.campaigns, shard)
		delete(s.leads, shard)
	})
}

// work is where the work on one shard goes. It must return when ctx ends.
func work(ctx context.Context, id string, shard int) {
	fmt.Println(id, "works on shard", shard)
	<-ctx.Done()
	fmt.Println(id, "stops work on shard", shard)
}

// elect runs one elector. It returns after lead has.
func (s *sharer) elect(ctx context.Context, election string, lead func(context.Context)) {
	ended := make(chan struct{})
	lock, err := mysqllock.New(s.db, election, resourcelock.ResourceLockConfig{Identity: s.id},
		mysqllock.WithTimings(leaseDuration, renewDeadline, retryPeriod),
		// The next one works on the shard as soon as it is released.
		mysqllock.WithBeforeRelease(func(ctx context.Context) error {
			select {
			case <-ended:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}))
	if err != nil {
		fmt.Fprintln(os.Stderr, "sharded:", err) // a name that can't be
		os.Exit(1)
	}
	var mu sync.Mutex
	began, over := false, false
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			// Called in a goroutine of its own, which may be so late that the term is over.
			OnStartedLeading: func(ctx context.Context) {
				defer close(ended)
				mu.Lock()
				began = !over && ctx.Err() == nil
				start := began
				mu.Unlock()
				if start {
					lead(ctx)
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "sharded:", err)
		os.Exit(1)
	}
	elector.Run(ctx)
	mu.Lock()
	over = true
	wait := began
	mu.Unlock()
	if wait {
		<-ended
	}
}
