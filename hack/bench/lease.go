package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// leaseOptions are what the user says of an API server and a database of their own.
type leaseOptions struct {
	kubeconfig, namespace string
	// Of the API server with its etcd, and of the database's server, if they run here.
	apiServer, database processes
}

// leasePrefix begins the names of Leases, and of elections in the user's own database.
const leasePrefix = "mysqllock-bench-"

// apiServer is the user's own.
type apiServer struct {
	leaseOptions
	client   *kubernetes.Clientset
	settings string // its version, and where it is
}

// startLease connects to the API server and to the database that the environment names, if it does.
func startLease(ctx context.Context, b *bench) (err error) {
	if b.api, err = connectAPIServer(b.lease); err != nil {
		return err
	}
	for _, variable := range []string{"MYSQL_USER", "MYSQL_PASSWORD", "MYSQL_HOST", "MYSQL_DBNAME"} {
		if _, set := os.LookupEnv(variable); set {
			config, err := mysqllock.ConfigFromEnv()
			if err != nil {
				return err
			}
			if b.server, err = useServer(ctx, config); err != nil {
				return err
			}
			b.processes = b.lease.database
			return nil
		}
	}
	b.server, err = startServer(ctx)
	return err
}

func connectAPIServer(o leaseOptions) (*apiServer, error) {
	if o.kubeconfig == "" {
		return nil, errors.New("which API server? Name it by -kubeconfig FILE; its Leases are made in -namespace, and deleted again")
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("-kubeconfig %s: %w", o.kubeconfig, err)
	}
	impatient := rest.CopyConfig(config)
	impatient.Timeout = 10 * time.Second
	asking, err := discovery.NewDiscoveryClientForConfig(impatient)
	if err != nil {
		return nil, fmt.Errorf("-kubeconfig %s: %w", o.kubeconfig, err)
	}
	version, err := asking.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("the API server of -kubeconfig %s: %w", o.kubeconfig, err)
	}
	// As little as can be in the way of a Lease: no limit of the client's own, and the shortest encoding.
	config.QPS = -1
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("-kubeconfig %s: %w", o.kubeconfig, err)
	}
	return &apiServer{o, client, "Kubernetes " + version.GitVersion + whereIs(config)}, nil
}

// whereIs says whether the API server is on this machine.
func whereIs(config *rest.Config) string {
	if u, err := url.Parse(config.Host); err == nil {
		if ip := net.ParseIP(u.Hostname()); ip.IsLoopback() || u.Hostname() == "localhost" {
			return " on this machine"
		}
	}
	return " on another machine"
}

func runLease(ctx context.Context, b *bench, s *section) (err error) {
	s.printf(`The first line of each table is this lock by a pool of Open, with a connection for each caller. Beside it client-go's
LeaseLock on %s, whose client is not held back by a limit of its own and speaks protobuf.
The server CPU of a Lease is the API server's and its etcd's.
`, b.api.settings)
	run := leasePrefix + strings.ToLower(rand.Text()[:8])
	var names []string
	defer func() { err = errors.Join(err, b.deleteAll(ctx, names)) }()
	for _, kind := range []string{"Renewal", "Poll"} {
		s.printf("\n### %s\n\n", kind)
		r := comparisons{per: "caller", bars: bars{title: kind + " beside a Lease", y: "p50, ratio to this lock"}}
		err := b.sweep(ctx, s, "lease-"+kind, r, []int{1, 8, 32}, func(callers int) ([]arm, func(), error) {
			kindNames := make([]string, callers)
			for caller := range callers {
				kindNames[caller] = strings.ToLower(fmt.Sprintf("%s-%s-%d-%03d", run, kind, callers, caller))
			}
			names = append(names, kindNames...)
			return b.leaseArms(ctx, kind == "Poll", kindNames)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// leaseArms have an election for each caller, by these names on both sides.
func (b *bench) leaseArms(ctx context.Context, poll bool, names []string) ([]arm, func(), error) {
	pool, err := b.open(ctx, len(names), true)
	if err != nil {
		return nil, nil, err
	}
	done := func() { _ = pool.Close() } // nothing more is asked of it
	var mine, theirs []resourcelock.Interface
	for _, name := range names {
		lock, err := lead(ctx, pool, name)
		if err != nil {
			done()
			return nil, nil, err
		}
		lease := b.api.lock(name, leaderName)
		if err := bounded(ctx, func(ctx context.Context) error { return lease.Create(ctx, record()) }); err != nil {
			done()
			return nil, nil, fmt.Errorf("make a Lease (the account of -kubeconfig has to create, get, update and delete them): %w", err)
		}
		mine, theirs = append(mine, lock), append(theirs, lease)
		if poll {
			follower, err := newLock(pool, name, followerName)
			if err != nil {
				done()
				return nil, nil, err
			}
			mine[len(mine)-1], theirs[len(theirs)-1] = follower, b.api.lock(name, followerName)
		}
	}
	operation := func(locks []resourcelock.Interface) func(context.Context, int) error {
		return func(ctx context.Context, caller int) error {
			if poll {
				_, _, err := locks[caller].Get(ctx)
				return err
			}
			return locks[caller].Update(ctx, record())
		}
	}
	lease := operation(theirs)
	return []arm{
		{"this lock", operation(mine), b.processes},
		// A deadline as this lock has it.
		{"LeaseLock", func(ctx context.Context, caller int) error {
			return bounded(ctx, func(ctx context.Context) error { return lease(ctx, caller) })
		}, b.api.apiServer},
	}, done, nil
}

func bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return f(ctx)
}

func (a *apiServer) lock(name, identity string) *resourcelock.LeaseLock {
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: a.namespace, Name: name},
		Client:     a.client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
	}
}

// deleteAll deletes the Leases, and the rows of the elections, which may be in the user's own database.
func (b *bench) deleteAll(ctx context.Context, names []string) error {
	// Also after an interrupt.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	var failed []error
	for _, name := range names {
		err := b.api.client.CoordinationV1().Leases(b.api.namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			failed = append(failed, fmt.Errorf("delete the Leases %s* in namespace %s: %w", leasePrefix, b.api.namespace, err))
			break
		}
	}
	for _, deletion := range []string{`DELETE FROM election_records WHERE election_name = ?`, `DELETE FROM election_fences WHERE election_name = ?`} {
		for _, name := range names {
			if _, err := b.admin.ExecContext(ctx, deletion, name); err != nil {
				failed = append(failed, fmt.Errorf("delete the elections %s*: %w", leasePrefix, err))
				break
			}
		}
	}
	return errors.Join(failed...)
}

// Set makes processes a flag: their ids with commas between.
func (p *processes) Set(text string) error {
	*p = nil
	for field := range strings.SplitSeq(text, ",") {
		pid, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || pid < 1 {
			return errors.New("ids of processes, with commas between")
		}
		*p = append(*p, pid)
	}
	_, err := p.cpu()
	return err
}

// String makes processes a flag.
func (p *processes) String() string { return strings.Trim(fmt.Sprint([]int(*p)), "[]") }
