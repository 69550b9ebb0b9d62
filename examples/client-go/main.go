// Command client-go is client-go's own leader election example with the lease in MySQL or MariaDB instead of a
// Kubernetes API server. Start it in two terminals, and end the one that leads by Ctrl-C:
//
//	export MYSQL_USER=app MYSQL_PASSWORD=secret MYSQL_HOST=127.0.0.1 MYSQL_DBNAME=mydb
//	go run ./client-go -id 1
//	go run ./client-go -id 2
//
// The second one logs, until the first one has ended and some two seconds more:
//
//	"Attempting to acquire leader lease..." lock="election_records/default/example"
//	"New leader elected" identity="1"
//	"Successfully acquired lease" lock="election_records/default/example"
//	"Controller loop..."
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

func main() {
	klog.InitFlags(nil)
	var (
		id       = flag.String("id", mysqllock.NewIdentity(), "the holder identity, which no other candidate may have")
		election = flag.String("lease-lock-name", "default/example", "the election's name")
		lease    = flag.Duration("lease-duration", 15*time.Second, "how long followers wait for a leader that is gone; whole seconds")
		renew    = flag.Duration("renew-deadline", 10*time.Second, "how long a leader tries to renew before it gives up")
		retry    = flag.Duration("retry-period", 2*time.Second, "how often the leader renews and followers look")
		health   = flag.String("healthz-address", "", "where to serve /healthz, such as :8080; nowhere if empty")
	)
	flag.Parse()

	// What Kubernetes, systemd and Ctrl-C send to stop a program. It ends the
	// elector, which then releases the lease.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *election, *id, *lease, *renew, *retry, *health); err != nil {
		klog.ErrorS(err, "Exiting")
		klog.FlushAndExit(klog.ExitFlushTimeout, 1)
	}
}

func run(ctx context.Context, election, id string, lease, renew, retry time.Duration, health string) error {
	// In the original, this is where the clientset is made from a kubeconfig.
	db, err := openDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // after the elector, which needs it to release the lease

	// In the original, this is a resourcelock.LeaseLock.
	lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: id}, mysqllock.WithTimings(lease, renew, retry))
	if err != nil {
		return err
	}

	// /healthz fails when a leader could not renew and is still there 20 s after
	// its lease: then it hangs, and whoever watches should restart it.
	watchdog := leaderelection.NewLeaderHealthzAdaptor(20 * time.Second)
	if health != "" {
		go serveHealth(health, watchdog)
	}

	// From here on all is as in the original.
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          lock,
		LeaseDuration: lease,
		RenewDeadline: renew,
		RetryPeriod:   retry,
		WatchDog:      watchdog,
		// The work must have ended before the lease is released, as it has here
		// when ctx ends; otherwise see mysqllock.WithBeforeRelease.
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: work,
			// Called at the end of every candidate, also of one that never led.
			OnStoppedLeading: func() { klog.InfoS("Leader lost", "identity", id) },
			OnNewLeader: func(identity string) {
				if identity != id {
					klog.InfoS("New leader elected", "identity", identity)
				}
			},
		},
	})
	if err != nil {
		return err
	}
	elector.Run(ctx)
	if ctx.Err() == nil {
		// Exit, and let Kubernetes or systemd start the next process: whatever
		// the work left half done in memory is gone then.
		return errors.New("leadership was lost")
	}
	return nil
}

// work is your controller loop. ctx ends when leadership does.
func work(ctx context.Context) {
	klog.InfoS("Controller loop...")
	<-ctx.Done()
}

// openDatabase connects to the database of MYSQL_USER, MYSQL_PASSWORD, MYSQL_HOST and MYSQL_DBNAME, and makes the two
// tables there. Where the program's account may not do that, apply mysqllock.Schema once by hand.
func openDatabase(ctx context.Context) (*sql.DB, error) {
	config, err := mysqllock.ConfigFromEnv()
	if err != nil {
		return nil, err
	}
	db, err := mysqllock.Open(config)
	if err != nil {
		return nil, err
	}
	if err := mysqllock.Migrate(ctx, db); err != nil {
		_ = db.Close() // the other error matters
		return nil, err
	}
	return db, nil
}

func serveHealth(address string, watchdog *leaderelection.HealthzAdaptor) {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := watchdog.Check(r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	if err := server.ListenAndServe(); err != nil {
		klog.ErrorS(err, "No /healthz is served")
	}
}
