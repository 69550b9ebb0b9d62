// Command multi-cluster is an operator that runs in several clusters, of which one at a time does the work: the election
// is in a MySQL that all of them reach, and each replica watches its own cluster.
//
//	export MYSQL_USER=app MYSQL_PASSWORD=secret MYSQL_HOST=127.0.0.1 MYSQL_DBNAME=mydb
//	go run ./multi-cluster -cluster east -kubeconfig ~/.kube/east
//	go run ./multi-cluster -cluster west -kubeconfig ~/.kube/west
//
// The leader logs "reconciled" for each ConfigMap of its cluster. When its cluster is cut off from MySQL, it loses the
// lease; when it loses its own API server only, it is asked to step down by a cluster that can work. In both cases it
// exits, and the other cluster takes over. If all API servers are away, the lease stays where it is.
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
	// A cluster whose API server is away hands over to one whose is not: a follower that
	// can work asks the leader that can't to step down.
	ctx, stepDown := context.WithCancelCause(ctx)
	defer stepDown(nil)
	api, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return err
	}
	// One election for all clusters. Pods may have one name in two clusters, so
	// the cluster's name is part of the identity.
	lock, err := mysqllock.New(db, "fleet/example", resourcelock.ResourceLockConfig{Identity: o.cluster + "/" + mysqllock.NewIdentity()},
		mysqllock.WithTimings(o.lease, o.renew, o.retry),
		mysqllock.WithReadiness(func(ctx context.Context) error {
			return api.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		}),
		mysqllock.WithStepDown(func() { stepDown(errSteppedDown) }))
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
	if err := ctrl.NewControllerManagedBy(m).For(&corev1.ConfigMap{}).Complete(reconcile.Func(work)); err != nil {
		return err
	}
	if err := m.Start(ctx); err != nil {
		return err
	}
	if err := context.Cause(ctx); errors.Is(err, errSteppedDown) {
		return err
	}
	return nil
}

// work is where your work goes. It is called in the leading cluster only.
func work(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	ctrl.LoggerFrom(ctx).Info("reconciled")
	return ctrl.Result{}, nil
}

var errSteppedDown = errors.New("stepped down, as another cluster asked for it")
