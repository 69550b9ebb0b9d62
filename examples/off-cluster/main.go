// Command off-cluster is a controller-runtime manager with no Kubernetes anywhere: on virtual machines, on bare metal, on
// somebody else's platform. It has work queues, retries with back-off, metrics, probes and graceful shutdown from
// controller-runtime, its leader election and its state from MySQL.
//
//	export MYSQL_USER=app MYSQL_PASSWORD=secret MYSQL_HOST=127.0.0.1 MYSQL_DBNAME=mydb
//	go run ./off-cluster
//
// The leader runs a job every -interval and logs
//
//	"ran" controller="jobs" job="cleanup" ... run=17
//
// The number of runs is kept in MySQL, by transactions that only the leader can commit: whatever happens to the processes,
// no run of a stale leader is counted, and none is counted twice.
//
// A second one on the same machine needs other addresses: -metrics-bind-address=0 -health-probe-bind-address=0 for none.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

const schema = `CREATE TABLE IF NOT EXISTS jobs (name VARCHAR(100) PRIMARY KEY, runs BIGINT NOT NULL) ENGINE=InnoDB`

type options struct {
	metrics, probes     string
	interval            time.Duration
	lease, renew, retry time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.metrics, "metrics-bind-address", ":8080", "where the metrics are served")
	flag.StringVar(&o.probes, "health-probe-bind-address", ":8081", "where /healthz is served")
	flag.DurationVar(&o.interval, "interval", 5*time.Second, "how often the job runs")
	flag.DurationVar(&o.lease, "lease-duration", 15*time.Second, "whole seconds")
	flag.DurationVar(&o.renew, "renew-deadline", 10*time.Second, "how long a leader tries to renew before it gives up")
	flag.DurationVar(&o.retry, "retry-period", 2*time.Second, "how often the leader renews and the others look")
	flag.Parse()
	ctrl.SetLogger(klog.NewKlogr())
	if err := run(ctrl.SetupSignalHandler(), o); err != nil {
		fmt.Fprintln(os.Stderr, "off-cluster:", err)
		os.Exit(1) // let systemd start the next process
	}
}

func run(ctx context.Context, o options) error {
	account, err := mysqllock.ConfigFromEnv()
	if err != nil {
		return err
	}
	db, err := mysqllock.Open(account)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // after the manager
	if err := mysqllock.Migrate(ctx, db); err != nil {
		return err
	}
	// The work has a pool of its own, so that no renewal waits for a connection.
	work, err := mysqllock.Open(account)
	if err != nil {
		return err
	}
	defer func() { _ = work.Close() }() // after the manager
	if _, err := work.ExecContext(ctx, schema); err != nil {
		return err
	}
	metrics.Registry.MustRegister(collectors.NewDBStatsCollector(db, "lock"), collectors.NewDBStatsCollector(work, "work"))

	// A leader whose work can't reach what it needs is asked to step down by one that can.
	ctx, stepDown := context.WithCancel(ctx)
	defer stepDown()
	lock, err := mysqllock.New(db, "off-cluster", resourcelock.ResourceLockConfig{Identity: mysqllock.NewIdentity()},
		mysqllock.WithTimings(o.lease, o.renew, o.retry), mysqllock.WithReadiness(work.PingContext), mysqllock.WithStepDown(stepDown))
	if err != nil {
		return err
	}

	// The manager wants an API server's address, and never talks to it as long as
	// nothing watches, reads or writes cluster objects, or records events.
	nowhere := &rest.Config{Host: "http://127.0.0.1:1"}
	m, err := ctrl.NewManager(nowhere, ctrl.Options{
		Metrics:                             metricsserver.Options{BindAddress: o.metrics},
		HealthProbeBindAddress:              o.probes,
		LeaderElection:                      true, // or the lock is ignored
		LeaderElectionID:                    "off-cluster",
		LeaderElectionResourceLockInterface: lock,
		LeaderElectionReleaseOnCancel:       true,
		LeaseDuration:                       &o.lease,
		RenewDeadline:                       &o.renew,
		RetryPeriod:                         &o.retry,
	})
	if err != nil {
		return err
	}
	if err := m.AddHealthzCheck("healthz", healthz.Ping); err != nil {
		return err
	}

	// A ticker in the place of a watch. A request is whatever identifies the work:
	// here a job's name.
	ticker := source.TypedFunc[string](func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string]) error {
		go func() {
			tick := time.NewTicker(o.interval)
			defer tick.Stop()
			for {
				queue.Add("cleanup")
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		}()
		return nil
	})
	jobs := &jobs{lock, work}
	if err := builder.TypedControllerManagedBy[string](m).Named("jobs").WatchesRawSource(ticker).
		WithLogConstructor(func(job *string) klog.Logger {
			logger := m.GetLogger().WithValues("controller", "jobs")
			if job != nil {
				logger = logger.WithValues("job", *job)
			}
			return logger
		}).Complete(jobs); err != nil {
		return err
	}
	return m.Start(ctx)
}

type jobs struct {
	lock *mysqllock.Lock
	db   *sql.DB
}

// Reconcile runs a job, in the leader only. After an error it is called again, later and later.
func (j *jobs) Reconcile(ctx context.Context, job string) (reconcile.Result, error) {
	var run int64
	err := j.lock.Transact(ctx, j.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO jobs (name, runs) VALUES (?, 1) ON DUPLICATE KEY UPDATE runs = runs + 1`, job); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT runs FROM jobs WHERE name = ?`, job).Scan(&run)
	})
	if errors.Is(err, mysqllock.ErrNotLeader) || errors.Is(err, mysqllock.ErrOutcomeUnknown) {
		// Another one leads; or it may have been committed, and to try again could count the run twice. The next tick
		// runs the job anyway.
		return reconcile.Result{}, reconcile.TerminalError(err)
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	ctrl.LoggerFrom(ctx).Info("ran", "run", run)
	return reconcile.Result{}, nil
}
