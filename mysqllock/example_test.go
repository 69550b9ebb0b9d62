package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// The elector of client-go runs on a lock, with the callbacks that it always had.
func ExampleNew() {
	ctx, stop := context.WithCancel(context.Background())
	db, drop := exampleDatabase(ctx)
	defer drop()

	lock, err := mysqllock.New(db, "default/my-controller",
		resourcelock.ResourceLockConfig{Identity: mysqllock.NewIdentity()},
		mysqllock.WithTimings(15*time.Second, 10*time.Second, 2*time.Second))
	must(err)
	leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   15 * time.Second,
		RenewDeadline:   10 * time.Second,
		RetryPeriod:     2 * time.Second,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) {
				fmt.Println("leads")
				stop() // a program does this on SIGTERM
			},
			OnStoppedLeading: func() {
				fmt.Println("leads no longer")
			},
		},
	})
	// Unordered output:
	// leads
	// leads no longer
}

func ExampleOpen() {
	config := mysql.NewConfig()
	config.User, config.Passwd, config.DBName = "app", "secret", "mydb"
	config.Net, config.Addr = "tcp", "db.example.com:3306"
	db, err := mysqllock.Open(config) // connects when the first statement needs it
	must(err)
	fmt.Println(db.Stats().OpenConnections, "connections, at most", db.Stats().MaxOpenConnections)
	fmt.Println(db.Close())
	// Output:
	// 0 connections, at most 10
	// <nil>
}

func ExampleConfigFromEnv() {
	for name, value := range map[string]string{
		"MYSQL_USER": "app", "MYSQL_PASSWORD": "secret", "MYSQL_HOST": "db.example.com", "MYSQL_DBNAME": "mydb", "MYSQL_PORT": "",
	} {
		defer setenv(name, value)()
	}
	config, err := mysqllock.ConfigFromEnv()
	must(err)
	fmt.Println(config.User, config.Addr, config.DBName)

	defer setenv("MYSQL_PORT", "many")()
	_, err = mysqllock.ConfigFromEnv()
	fmt.Println(err)
	// Output:
	// app db.example.com:3306 mydb
	// mysqllock: read the configuration from the environment: MYSQL_PORT is no number from 1 to 65535 (set it to the server's port, or leave it unset for 3306)
}

func ExampleMigrate() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	fmt.Println(mysqllock.Migrate(ctx, db)) // at every start, by every process
	// Output: <nil>
}

func ExampleNewIdentity() {
	first, second := mysqllock.NewIdentity(), mysqllock.NewIdentity()
	fmt.Println("the same:", first == second)
	// Output: the same: false
}

func ExampleElectLeader() {
	ctx, stop := context.WithCancel(context.Background())
	defer exampleEnvironment(ctx)() // MYSQL_USER, MYSQL_PASSWORD, ...
	err := mysqllock.ElectLeader(ctx, "my-task",
		func(context.Context) {
			fmt.Println("leads")
			stop() // a program does this on SIGTERM
		},
		func() { fmt.Println("leads no longer") },
	)
	fmt.Println(err)
	// Output:
	// leads
	// leads no longer
	// <nil>
}

func ExampleGetElection() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	lock := lockOf(db, "my-task", "a")
	must(tryTakeOver(ctx, lock)) // an elector does this

	election, err := mysqllock.GetElection(ctx, db, "my-task")
	must(err)
	fmt.Println("leader:", election.Holder, "expired:", election.Expired)
	// Output: leader: a expired: false
}

func ExampleListElections() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	must(tryTakeOver(ctx, lockOf(db, "backups", "a")))
	must(tryTakeOver(ctx, lockOf(db, "reports", "b")))

	elections, err := mysqllock.ListElections(ctx, db)
	must(err)
	for _, election := range elections {
		fmt.Println(election.Name, "is led by", election.Holder)
	}
	// Output:
	// backups is led by a
	// reports is led by b
}

func ExampleRequestStepDown() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	fmt.Println("no such election:", apierrors.IsNotFound(mysqllock.RequestStepDown(ctx, db, "my-task")))

	must(tryTakeOver(ctx, lockOf(db, "my-task", "a")))
	must(mysqllock.RequestStepDown(ctx, db, "my-task"))
	election, err := mysqllock.GetElection(ctx, db, "my-task")
	must(err)
	fmt.Println(election.Holder, "was asked:", election.StepDownRequested)
	// Output:
	// no such election: true
	// a was asked: true
}

func ExamplePreflight() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	_, err := db.ExecContext(ctx, `ALTER TABLE election_fences ENGINE=MEMORY`)
	must(err)

	findings, err := mysqllock.Preflight(ctx, db, mysqllock.WithTimings(15*time.Second, 10*time.Second, 2*time.Second))
	must(err)
	for _, finding := range findings {
		if finding.Severity == mysqllock.SeverityError {
			fmt.Println(finding.Problem)
		}
	}
	// Output: there is a table election_fences that is not this library's: its engine is MEMORY, not InnoDB; rename it, or have the tables in another database by WithDatabase; nothing was changed
}

func ExampleFinding_String() {
	fmt.Println(mysqllock.Finding{
		Severity: mysqllock.SeverityWarning,
		Subject:  "innodb_flush_log_at_trx_commit",
		Problem:  "a power failure loses the last second",
		Remedy:   "set it to 1",
	})
	// Output: warning: innodb_flush_log_at_trx_commit: a power failure loses the last second; set it to 1
}

// The elector's timings are checked before they can elect two.
func ExampleWithTimings() {
	_, err := mysqllock.New(new(sql.DB), "my-task", resourcelock.ResourceLockConfig{Identity: "a"},
		mysqllock.WithTimings(15*time.Second, 14*time.Second, 2*time.Second))
	fmt.Println(err)
	// Output: mysqllock: new "my-task": WithTimings: LeaseDuration 15s, RenewDeadline 14s and RetryPeriod 2s don't leave 50ms for an operation: (LeaseDuration - RenewDeadline - RetryPeriod) / 2 must be at least that, RenewDeadline more than 1.2 times RetryPeriod, and LeaseDuration whole seconds; 15s, 10s and 2s would work
}

func ExampleWithOperationTimeout() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	lock := lockOf(db, "my-task", "a", mysqllock.WithOperationTimeout(300*time.Millisecond))
	must(tryTakeOver(ctx, lock))

	tx, err := db.BeginTx(ctx, nil) // somebody's transaction holds the row
	must(err)
	_, err = tx.ExecContext(ctx, `UPDATE election_records SET version = version WHERE election_name = 'my-task'`)
	must(err)
	fmt.Println("renewed:", lock.Update(ctx, record("a")) == nil)
	must(tx.Rollback())
	// Output: renewed: false
}

// The tables may be in another database than the application's own.
func ExampleWithDatabase() {
	ctx := context.Background()
	name, err := server.CreateDatabase(ctx)
	must(err)
	defer func() { must(server.DropDatabase(ctx, name)) }()
	db, err := mysqllock.Open(server.Config()) // connects to no database
	must(err)
	defer func() { must(db.Close()) }()

	must(mysqllock.Migrate(ctx, db, mysqllock.WithDatabase(name)))
	must(tryTakeOver(ctx, lockOf(db, "my-task", "a", mysqllock.WithDatabase(name))))
	election, err := mysqllock.GetElection(ctx, db, "my-task", mysqllock.WithDatabase(name))
	must(err)
	fmt.Println("leader:", election.Holder)
	// Output: leader: a
}

// The locks of a process with many elections send their renewals together.
func ExampleWithBatch() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	var batch mysqllock.Batch // for all locks of this pool
	var electors sync.WaitGroup
	for shard := range 3 {
		lock := lockOf(db, fmt.Sprintf("shard-%d", shard), "a", mysqllock.WithBatch(&batch))
		must(tryTakeOver(ctx, lock))
		electors.Add(1)
		go func() {
			defer electors.Done()
			must(lock.Update(ctx, record("a"))) // an elector does this every RetryPeriod
		}()
	}
	electors.Wait()
	elections, err := mysqllock.ListElections(ctx, db)
	must(err)
	for _, election := range elections {
		fmt.Println(election.Name, "is led by", election.Holder)
	}
	// Output:
	// shard-0 is led by a
	// shard-1 is led by a
	// shard-2 is led by a
}

func ExampleWithEventTarget() {
	lock, err := mysqllock.New(new(sql.DB), "my-operator",
		resourcelock.ResourceLockConfig{Identity: "my-operator-0", EventRecorder: printer{}},
		mysqllock.WithEventTarget(&corev1.Pod{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "my-operator-0"},
		}))
	must(err)
	lock.RecordEvent("became leader") // the elector does this
	// Output: *v1.Pod default/my-operator-0: Normal LeaderElection my-operator-0 became leader
}

// printer is where mgr.GetEventRecorderFor, or a broadcaster's recorder, would be.
type printer struct{}

func (printer) Eventf(object runtime.Object, kind, reason, format string, args ...any) {
	o, err := meta.Accessor(object)
	must(err)
	fmt.Printf("%T %s/%s: %s %s %s\n", object, o.GetNamespace(), o.GetName(), kind, reason, fmt.Sprintf(format, args...))
}

// A lease that was held under the same name by a process that is gone counts as one's own with this option, and as
// another's without.
func ExampleWithSameIdentityTakeover() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	must(tryTakeOver(ctx, lockOf(db, "my-task", "my-app-0")))

	restarted := lockOf(db, "my-task", "my-app-0")
	observed, _, err := restarted.Get(ctx)
	must(err)
	fmt.Println("its own:", observed.HolderIdentity == restarted.Identity())

	restarted = lockOf(db, "my-task", "my-app-0", mysqllock.WithSameIdentityTakeover())
	observed, _, err = restarted.Get(ctx)
	must(err)
	fmt.Println("its own:", observed.HolderIdentity == restarted.Identity())
	// Output:
	// its own: false
	// its own: true
}

// A cold start, when all candidates of an election are gone and their lease is over, takes a few retries with this
// option, and a lease more without.
func ExampleWithServerClock() {
	lock, err := mysqllock.New(new(sql.DB), "my-task", resourcelock.ResourceLockConfig{Identity: "a"},
		mysqllock.WithTimings(15*time.Second, 10*time.Second, 2*time.Second),
		mysqllock.WithServerClock())
	must(err)
	fmt.Println(lock.Describe())
	// Output: election_records/my-task
}

// The API server of an operator is away for its leader alone. The leader says so in its row and renews all the same, until
// another candidate, which can work, asks it to step down.
func ExampleWithReadiness() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	var away error // an operator asks its API server's /readyz
	lock := lockOf(db, "my-operator", "a", mysqllock.WithReadiness(func(context.Context) error { return away }))
	must(tryTakeOver(ctx, lock)) // an elector does this

	away = errors.New("connection refused")
	must(lock.Update(ctx, record("a"))) // and this, every RetryPeriod
	election, err := mysqllock.GetElection(ctx, db, "my-operator")
	must(err)
	fmt.Println("leader:", election.Holder, "ready:", election.Ready)
	// Output: leader: a ready: false
}

func ExampleWithStepDown() {
	db, drop := exampleDatabase(context.Background())
	defer drop()
	ctx, stepDown := context.WithCancel(context.Background()) // ctx is for the elector's Run
	defer stepDown()
	lock := lockOf(db, "my-task", "a", mysqllock.WithStepDown(stepDown))
	must(tryTakeOver(context.Background(), lock)) // the elector does this

	must(mysqllock.RequestStepDown(context.Background(), db, "my-task"))
	must(lock.Update(context.Background(), record("a"))) // and this, every RetryPeriod
	<-ctx.Done()
	fmt.Println("the elector ends the work and releases the lease")
	// Output: the elector ends the work and releases the lease
}

func ExampleWithBeforeRelease() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	lock := lockOf(db, "my-task", "a", mysqllock.WithBeforeRelease(func(context.Context) error {
		fmt.Println("the work ends") // while nobody else can lead
		return nil
	}))
	must(tryTakeOver(ctx, lock))
	must(lock.Update(ctx, record(""))) // an elector with ReleaseOnCancel does this
	_, held := lock.FencingToken()
	fmt.Println("leads:", held)
	// Output:
	// the work ends
	// leads: false
}

// An elector calls these; so may a program that needs no elector, such as a test.
func ExampleLock() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	lock := lockOf(db, "my-task", "a")
	fmt.Println(lock.Identity(), "runs for", lock.Describe())

	_, _, err := lock.Get(ctx)
	fmt.Println("is there an election yet?", !apierrors.IsNotFound(err))
	now := metav1.Now()
	must(lock.Create(ctx, resourcelock.LeaderElectionRecord{HolderIdentity: "a", LeaseDurationSeconds: 15, AcquireTime: now, RenewTime: now}))
	observed, _, err := lock.Get(ctx)
	must(err)
	fmt.Println("held by", observed.HolderIdentity)

	observed.RenewTime = metav1.Now()
	must(lock.Update(ctx, *observed))
	observed.HolderIdentity = ""
	must(lock.Update(ctx, *observed))
	fmt.Println("renewed and released")
	// Output:
	// a runs for election_records/my-task
	// is there an election yet? false
	// held by a
	// renewed and released
}

// What a leader writes through Transact is committed only while it leads, whatever it believes.
func ExampleLock_Transact() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	leader := lockOf(db, "my-task", "a")
	must(tryTakeOver(ctx, leader)) // an elector does this

	work := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE resource SET value = 'by a' WHERE id = 1`)
		return err
	}
	fmt.Println(leader.Transact(ctx, db, nil, work))

	must(tryTakeOver(ctx, lockOf(db, "my-task", "b"))) // a was paused beyond its lease
	err := leader.Transact(ctx, db, nil, work)
	fmt.Println("refused:", errors.Is(err, mysqllock.ErrNotLeader))
	// Output:
	// <nil>
	// refused: true
}

// A single statement needs no transaction: a condition in its WHERE fences it.
func ExampleLock_FenceCondition() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	leader := lockOf(db, "my-task", "a")
	must(tryTakeOver(ctx, leader)) // an elector does this

	condition, args, err := leader.FenceCondition()
	must(err)
	work := func() int64 {
		result, err := db.ExecContext(ctx, `UPDATE resource SET value = UUID() WHERE id = 1 AND `+condition, args...)
		must(err)
		changed, err := result.RowsAffected()
		must(err)
		return changed
	}
	fmt.Println("rows changed:", work())

	must(tryTakeOver(ctx, lockOf(db, "my-task", "b"))) // a was paused beyond its lease
	fmt.Println("rows changed:", work())
	// Output:
	// rows changed: 1
	// rows changed: 0
}

// A guard at the beginning pins leadership for the whole transaction.
func ExampleLock_Guard() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	leader, follower := lockOf(db, "my-task", "a"), lockOf(db, "my-task", "b")
	must(tryTakeOver(ctx, leader))

	tx, err := db.BeginTx(ctx, nil)
	must(err)
	must(leader.Guard(ctx, tx))
	fmt.Println("taken over meanwhile:", tryTakeOver(ctx, follower) == nil)
	_, err = tx.ExecContext(ctx, `UPDATE resource SET value = 'by a' WHERE id = 1`)
	must(err)
	must(tx.Commit())
	fmt.Println("taken over afterwards:", tryTakeOver(ctx, follower) == nil)
	// Output:
	// taken over meanwhile: false
	// taken over afterwards: true
}

// A resource that is not in the transaction's reach keeps the largest fencing
// token that it has seen, and refuses smaller ones. Here the resource is another
// table; it may be a header that a service checks, or a field of an object.
func ExampleLock_FencingToken() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	set := func(value string, token int64) {
		result, err := db.ExecContext(ctx, `UPDATE resource SET value = ?, fence = ? WHERE id = 1 AND fence <= ?`, value, token, token)
		must(err)
		n, err := result.RowsAffected()
		must(err)
		fmt.Printf("%s: accepted %t\n", value, n == 1)
	}

	// An elector does this; the token is read once, when the term begins.
	first := lockOf(db, "my-task", "a")
	must(tryTakeOver(ctx, first))
	old, _ := first.FencingToken()
	set("by the first leader", old)

	second := lockOf(db, "my-task", "b") // the first one was paused beyond its lease
	must(tryTakeOver(ctx, second))
	token, _ := second.FencingToken()
	set("by the second leader", token)

	set("by the first one, late", old)
	// Output:
	// by the first leader: accepted true
	// by the second leader: accepted true
	// by the first one, late: accepted false
}

// exampleDatabase is one with the tables of the lock and of the example.
func exampleDatabase(ctx context.Context) (db *sql.DB, drop func()) {
	name, err := server.CreateDatabase(ctx)
	must(err)
	config := server.Config()
	config.DBName = name
	db, err = mysqllock.Open(config)
	must(err)
	must(mysqllock.Migrate(ctx, db))
	for _, statement := range []string{
		`CREATE TABLE resource (id INT PRIMARY KEY, value VARCHAR(100) NOT NULL, fence BIGINT NOT NULL)`,
		`INSERT INTO resource VALUES (1, 'nothing yet', 0)`,
	} {
		_, err := db.ExecContext(ctx, statement)
		must(err)
	}
	return db, func() {
		must(db.Close())
		must(server.DropDatabase(context.WithoutCancel(ctx), name))
	}
}

// exampleEnvironment sets the MYSQL_* variables.
func exampleEnvironment(ctx context.Context) (restore func()) {
	db, drop := exampleDatabase(ctx)
	config := server.Config()
	host, port, err := net.SplitHostPort(config.Addr)
	must(err)
	var name string
	must(db.QueryRowContext(ctx, `SELECT DATABASE()`).Scan(&name))
	undo := []func(){drop}
	for variable, value := range map[string]string{
		"MYSQL_USER": config.User, "MYSQL_PASSWORD": config.Passwd, "MYSQL_HOST": host, "MYSQL_PORT": port, "MYSQL_DBNAME": name,
	} {
		undo = append(undo, setenv(variable, value))
	}
	return func() {
		for _, f := range undo {
			f()
		}
	}
}

func setenv(variable, value string) (restore func()) {
	before, was := os.LookupEnv(variable)
	must(os.Setenv(variable, value))
	return func() {
		if was {
			must(os.Setenv(variable, before))
			return
		}
		must(os.Unsetenv(variable))
	}
}

func lockOf(db *sql.DB, election, identity string, opts ...mysqllock.Option) *mysqllock.Lock {
	lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: identity}, opts...)
	must(err)
	return lock
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
