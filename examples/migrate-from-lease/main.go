// Command migrate-from-lease moves an election from a Kubernetes Lease to MySQL without a moment when nobody may lead, in
// two rolling updates of the same program:
//
//	-step 1    the Lease alone: where you are
//	-step 2    Lease and MySQL, by client-go's MultiLock: whoever leads holds both
//	-step 3    MySQL alone: where you want to be
//
// Begin step 3 only when no replica of step 1 is left: those two have no lock in common. Going back works in the same
// way, step by step. All replicas need the same timings, and each an identity of its own.
//
//	export MYSQL_USER=app MYSQL_PASSWORD=secret MYSQL_HOST=127.0.0.1 MYSQL_DBNAME=mydb
//	go run ./migrate-from-lease -kubeconfig ~/.kube/config -id a -step 1
//	go run ./migrate-from-lease -kubeconfig ~/.kube/config -id b -step 2
//
// The second one prints, when the first one has ended:
//
//	b sees that "b" leads
//	b leads (step 2)
//
// MultiLock is deprecated in client-go, as Kubernetes itself has no other lock left to migrate from; it is still what
// this needs, and a few lines to copy if it goes. One thing to know: MultiLock reads its second lock again just before it
// writes, so in the moment of a takeover it can't tell a MySQL lease that ended from one that a candidate of step 3 took a
// millisecond ago. The deposed one notices within RenewDeadline, and Transact refuses its commits; keep steps 2 and 3
// together for no longer than the rolling update takes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

type options struct {
	id, election, kubeconfig string
	step                     int
	lease, renew, retry      time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.id, "id", mysqllock.NewIdentity(), "the holder identity, which no other candidate may have")
	flag.StringVar(&o.election, "lease", "default/example", "namespace and name of the Lease; the election in MySQL has the same name")
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "path of a kubeconfig; empty inside a cluster")
	flag.IntVar(&o.step, "step", 2, "of the migration: 1, 2 or 3")
	flag.DurationVar(&o.lease, "lease-duration", 15*time.Second, "whole seconds")
	flag.DurationVar(&o.renew, "renew-deadline", 10*time.Second, "how long a leader tries to renew before it gives up")
	flag.DurationVar(&o.retry, "retry-period", 2*time.Second, "how often the leader renews and followers look")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "migrate-from-lease:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	var lock resourcelock.Interface
	var err error
	switch o.step {
	case 1:
		lock, err = leaseLock(o)
	case 2, 3:
		config, err := mysqllock.ConfigFromEnv()
		if err != nil {
			return err
		}
		db, err := mysqllock.Open(config)
		if err != nil {
			return err
		}
		defer func() { _ = db.Close() }() // after the elector
		if err := mysqllock.Migrate(ctx, db); err != nil {
			return err
		}
		lock, err = mysqllock.New(db, o.election, resourcelock.ResourceLockConfig{Identity: o.id}, mysqllock.WithTimings(o.lease, o.renew, o.retry))
		if err != nil {
			return err
		}
		if o.step == 2 {
			primary, err := leaseLock(o)
			if err != nil {
				return err
			}
			// The Lease comes first: it decides as long as there are replicas of
			// step 1, and MultiLock creates the second lock where it is missing.
			lock = &resourcelock.MultiLock{Primary: primary, Secondary: lock} //nolint:staticcheck // deprecated, and the only lock of its kind
		}
	default:
		return fmt.Errorf("-step is %d; give 1, 2 or 3", o.step)
	}
	if err != nil {
		return err
	}

	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: o.lease, RenewDeadline: o.renew, RetryPeriod: o.retry, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				fmt.Printf("%s leads (step %d)\n", o.id, o.step)
				<-ctx.Done() // your work
				fmt.Printf("%s leads no more\n", o.id)
			},
			OnStoppedLeading: func() {},
			// leaderelection.k8s.io/unknown is MultiLock's name for whoever holds one
			// of the two locks only, as the candidates of steps 1 and 3 do.
			OnNewLeader: func(leader string) { fmt.Printf("%s sees that %q leads\n", o.id, leader) },
		},
	})
	if err != nil {
		return err
	}
	elector.Run(ctx)
	if ctx.Err() == nil {
		return errors.New("leadership was lost")
	}
	return nil
}

// leaseLock is what the program had before.
func leaseLock(o options) (*resourcelock.LeaseLock, error) {
	namespace, name, ok := strings.Cut(o.election, "/")
	if !ok {
		return nil, fmt.Errorf("-lease is %q; give it as namespace/name", o.election)
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return nil, err
	}
	config.Timeout = o.renew / 2 // as client-go's own constructor has it
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.id},
	}, nil
}
