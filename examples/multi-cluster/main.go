// Command multi-cluster is an operator that runs in several clusters, of which one at a time does the work: the election
// is in a MySQL that all of them reach, and each replica watches its own cluster.
//
//	export MYSQL_USER=app MYSQL_PASSWORD=secret MYSQL_HOST=127.0.0.1 MYSQL_DBNAME=mydb
//	go run ./multi-cluster -cluster east -kubeconfig ~/.kube/east
//	go run ./multi-cluster -cluster west -kubeconfig ~/.kube/west
//
// The leader logs "reconciled" for each ConfigMap of its cluster. When its cluster is cut off from MySQL, it loses the
// lease; when it loses its own API server only, it could hold the lease for ever and do nothing, so it gives it up. In
// both cases it exits, and the other cluster takes over.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

type options struct {
	cluster             string
	lease, renew, retry time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.cluster, "cluster", "", "this cluster's name")
	flag.DurationVar(&o.lease, "lease-duration", 15*time.Second, "whole seconds")
	flag.DurationVar(&o.renew, "renew-deadline", 10*time.Second, "how long a leader tries to renew before it gives up")
	flag.DurationVar(&o.retry, "retry-period", 2*time.Second, "how often the leader renews and the others look")
	flag.Parse() // also -kubeconfig, which controller-runtime defines
	ctrl.SetLogger(klog.NewKlogr())
	if err := run(ctrl.SetupSignalHandler(), o); err != nil {
		fmt.Fprintln(os.Stderr, "multi-cluster:", err)
		os.Exit(1) // whatever starts it again makes it a candidate again
	}
}

func run(ctx context.Context, o options) error {
	if o.cluster == "" {
		return errors.New("-cluster is missing; give each cluster a name of its own")
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	config.Timeout = o.renew / 2
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
	// One election for all clusters. Pods may have one name in two clusters, so
	// the cluster's name is part of the identity.
	lock, err := mysqllock.New(db, "fleet/example", resourcelock.ResourceLockConfig{Identity: o.cluster + "/" + mysqllock.NewIdentity()},
		mysqllock.WithTimings(o.lease, o.renew, o.retry))
	if err != nil {
		return err
	}
	m, err := ctrl.NewManager(config, ctrl.Options{
		Metrics:                             metricsserver.Options{BindAddress: "0"},
		LeaderElection:                      true,
		LeaderElectionID:                    "fleet-example",
		LeaderElectionResourceLockInterface: lock,
		LeaderElectionReleaseOnCancel:       true,
		LeaseDuration:                       &o.lease,
		RenewDeadline:                       &o.renew,
		RetryPeriod:                         &o.retry,
	})
	if err != nil {
		return err
	}
	// A runnable runs in the leader only, unless it says otherwise.
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return err
	}
	if err := m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		return watchAPIServer(ctx, client, o)
	})); err != nil {
		return err
	}
	if err := ctrl.NewControllerManagedBy(m).For(&corev1.ConfigMap{}).Complete(reconcile.Func(work)); err != nil {
		return err
	}
	return m.Start(ctx)
}

// work is where your work goes. It is called in the leading cluster only.
func work(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	ctrl.LoggerFrom(ctx).Info("reconciled")
	return ctrl.Result{}, nil
}

// watchAPIServer ends the manager, and so the term, when the leader's own cluster hasn't answered for a RenewDeadline.
func watchAPIServer(ctx context.Context, client discovery.ServerVersionInterface, o options) error {
	tick := time.NewTicker(o.retry)
	defer tick.Stop()
	for answered := time.Now(); ; {
		if _, err := client.ServerVersion(); err == nil {
			answered = time.Now()
		} else if time.Since(answered) > o.renew {
			return fmt.Errorf("the API server of cluster %s has not answered for %v: %w", o.cluster, o.renew, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
