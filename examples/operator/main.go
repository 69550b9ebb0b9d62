// Command operator is a controller-runtime manager as kubebuilder scaffolds it, whose leader election is in MySQL instead
// of the cluster's API server. What is different from the scaffold is marked with (1) to (6).
//
//	export MYSQL_USER=app MYSQL_PASSWORD=secret MYSQL_HOST=127.0.0.1 MYSQL_DBNAME=mydb
//	go run ./operator -kubeconfig ~/.kube/config -leader-elect
//
// A replica that leads logs
//
//	"Starting workers" controller="configmap" ... worker count=1
//	"reconciled" controller="configmap" ... ConfigMap="default/settings"
//
// and has leader_election_master_status{name="example-operator"} 1 among its metrics; the others wait.
// A second one on the same machine needs other addresses: -metrics-bind-address=0 -health-probe-bind-address=0 for none.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

const name = "example-operator"

type options struct {
	metrics, probes     string
	elect               bool
	lease, renew, retry time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.metrics, "metrics-bind-address", ":8080", "where the metrics are served")
	flag.StringVar(&o.probes, "health-probe-bind-address", ":8081", "where /healthz and /readyz are served")
	flag.BoolVar(&o.elect, "leader-elect", false, "have one active replica at a time")
	flag.DurationVar(&o.lease, "lease-duration", 15*time.Second, "whole seconds")
	flag.DurationVar(&o.renew, "renew-deadline", 10*time.Second, "how long a leader tries to renew before it gives up")
	flag.DurationVar(&o.retry, "retry-period", 2*time.Second, "how often the leader renews and the others look")
	flag.Parse() // also -kubeconfig, which controller-runtime defines
	ctrl.SetLogger(klog.NewKlogr())
	if err := run(ctrl.SetupSignalHandler(), o); err != nil {
		fmt.Fprintln(os.Stderr, "operator:", err)
		// (5) Also when leadership was lost: exit, as controllers may still run.
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}

	// (1) The pool of the lock. Close it only after the manager has returned, or
	// the manager can't release the lease.
	account, err := mysqllock.ConfigFromEnv()
	if err != nil {
		return err
	}
	db, err := mysqllock.Open(account)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	if err := mysqllock.Migrate(ctx, db); err != nil {
		return err
	}
	// (2) Prometheus' own collector shows connections in use, and waits for them.
	metrics.Registry.MustRegister(collectors.NewDBStatsCollector(db, account.DBName))

	// (3) The lock. Events go to the manager's API server, to the operator's own
	// Pod: POD_NAME and POD_NAMESPACE come from the downward API.
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = os.Getenv("POD_NAME"), os.Getenv("POD_NAMESPACE")
	pod.APIVersion, pod.Kind = "v1", "Pod"
	recorder := &lateRecorder{}
	// Not the Pod's name alone, which a container that is started again has, too.
	lockConfig := resourcelock.ResourceLockConfig{Identity: mysqllock.NewIdentity()}
	// (6) A leader that is cut off from its API server alone is asked by another
	// replica to step down, and its process ends; if all are, nobody loses the lease.
	ctx, stepDown := context.WithCancelCause(ctx)
	defer stepDown(nil)
	api, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return err
	}
	lockOptions := []mysqllock.Option{
		mysqllock.WithTimings(o.lease, o.renew, o.retry),
		mysqllock.WithReadiness(func(ctx context.Context) error {
			return api.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		}),
		mysqllock.WithStepDown(func() { stepDown(errSteppedDown) }),
	}
	if pod.Name != "" {
		lockConfig.EventRecorder = recorder
		lockOptions = append(lockOptions, mysqllock.WithEventTarget(pod))
	}
	lock, err := mysqllock.New(db, name, lockConfig, lockOptions...)
	if err != nil {
		return err
	}

	manager, err := ctrl.NewManager(config, ctrl.Options{
		Metrics:                metricsserver.Options{BindAddress: o.metrics},
		HealthProbeBindAddress: o.probes,
		// (4) The manager ignores the lock unless LeaderElection is true. Its own
		// timings apply, so give WithTimings the same. LeaderElectionID is only the
		// label of the metric leader_election_master_status.
		LeaderElection:                      o.elect,
		LeaderElectionID:                    name,
		LeaderElectionResourceLockInterface: lock,
		LeaseDuration:                       &o.lease,
		RenewDeadline:                       &o.renew,
		RetryPeriod:                         &o.retry,
		// The manager stops its controllers before it releases the lease, so
		// nothing else is needed for a safe handover.
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return err
	}
	recorder.set(manager.GetEventRecorderFor(name)) //nolint:staticcheck // the recorder that client-go's locks take

	if err := ctrl.NewControllerManagedBy(manager).For(&corev1.ConfigMap{}).Complete(&reconciler{manager.GetClient()}); err != nil {
		return err
	}
	if err := manager.AddHealthzCheck("healthz", healthz.Ping); err != nil {
		return err
	}
	// Ready also while another replica leads: a rolling update waits for it.
	if err := manager.AddReadyzCheck("readyz", healthz.Ping); err != nil {
		return err
	}
	if err := manager.Start(ctx); err != nil {
		return err
	}
	if err := context.Cause(ctx); errors.Is(err, errSteppedDown) {
		return err
	}
	return nil
}

var errSteppedDown = errors.New("stepped down, as another replica asked for it")

// reconciler is where your work goes.
type reconciler struct{ client.Client }

// Reconcile is called in the leader only.
func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var settings corev1.ConfigMap
	if err := r.Get(ctx, request.NamespacedName, &settings); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	ctrl.LoggerFrom(ctx).Info("reconciled")
	return ctrl.Result{}, nil
}
