package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
)

// leaseAPI is Kubernetes as far as a LeaseLock sees it: one Lease, changed by optimistic
// concurrency. Resource versions never repeat.
type leaseAPI struct {
	lease   *coordinationv1.Lease // nil: there is none
	version int
}

var leaseGroup = coordinationv1.Resource("leases")

func (s *leaseAPI) store(lease *coordinationv1.Lease) *coordinationv1.Lease {
	s.version++
	s.lease = lease.DeepCopy()
	s.lease.ResourceVersion = strconv.Itoa(s.version)
	return s.lease.DeepCopy()
}

// record is what anybody would read.
func (s *leaseAPI) record() *resourcelock.LeaderElectionRecord {
	if s.lease == nil {
		return nil
	}
	return resourcelock.LeaseSpecToLeaderElectionRecord(&s.lease.Spec)
}

// leaseClient is the client of one LeaseLock. What LeaseLock doesn't call is missing.
type leaseClient struct {
	coordinationclient.LeaseInterface

	api *leaseAPI
	// last is what the LeaseLock holds for the newest lease. The generated client returns an empty
	// lease with an error, so that a LeaseLock forgets what it had observed when its Create fails;
	// see the deviations below.
	last    *coordinationv1.Lease
	forgets bool
}

func (c *leaseClient) Leases(string) coordinationclient.LeaseInterface { return c }

func (c *leaseClient) Get(_ context.Context, name string, _ metav1.GetOptions) (*coordinationv1.Lease, error) {
	if c.api.lease == nil {
		return &coordinationv1.Lease{}, apierrors.NewNotFound(leaseGroup, name)
	}
	c.last = c.api.lease.DeepCopy()
	return c.last, nil
}

func (c *leaseClient) Create(_ context.Context, lease *coordinationv1.Lease, _ metav1.CreateOptions) (*coordinationv1.Lease, error) {
	if c.api.lease != nil {
		if c.forgets {
			c.last = &coordinationv1.Lease{}
		}
		return c.last, apierrors.NewAlreadyExists(leaseGroup, lease.Name)
	}
	c.last = c.api.store(lease)
	return c.last, nil
}

func (c *leaseClient) Update(_ context.Context, lease *coordinationv1.Lease, _ metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	switch {
	case lease.Name == "":
		return &coordinationv1.Lease{}, errors.New("resource name may not be empty")
	case c.api.lease == nil:
		return &coordinationv1.Lease{}, apierrors.NewNotFound(leaseGroup, lease.Name)
	case c.api.lease.ResourceVersion != lease.ResourceVersion:
		return &coordinationv1.Lease{}, apierrors.NewConflict(leaseGroup, lease.Name, errors.New("the object has been modified"))
	}
	c.last = c.api.store(lease)
	return c.last, nil
}

// world is one election and the candidates for it: on Kubernetes or on MySQL.
type world interface {
	lock(identity string) resourcelock.Interface
	remove()
	// record is what is stored now, nil if nothing is.
	record() *resourcelock.LeaderElectionRecord
}

type leaseWorld struct {
	api     *leaseAPI
	forgets bool
}

func (w *leaseWorld) lock(identity string) resourcelock.Interface {
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: "ns", Name: "election"},
		Client:     &leaseClient{api: w.api, forgets: w.forgets},
		LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
	}
}

func (w *leaseWorld) remove() { w.api.lease = nil }

func (w *leaseWorld) record() *resourcelock.LeaderElectionRecord { return w.api.record() }

type mysqlWorld struct {
	db       *sql.DB
	election string
	failed   error // of what isn't an operation
}

func (w *mysqlWorld) lock(identity string) resourcelock.Interface {
	lock, err := mysqllock.New(w.db, w.election, resourcelock.ResourceLockConfig{Identity: identity}, mysqllock.WithOperationTimeout(time.Minute))
	w.failed = errors.Join(w.failed, err)
	return lock
}

func (w *mysqlWorld) remove() {
	_, err := w.db.ExecContext(context.Background(), `DELETE FROM election_records WHERE election_name = ?`, w.election)
	w.failed = errors.Join(w.failed, err)
}

func (w *mysqlWorld) record() *resourcelock.LeaderElectionRecord {
	record, _, err := w.lock("observer").Get(context.Background())
	if err != nil && !apierrors.IsNotFound(err) {
		w.failed = errors.Join(w.failed, err)
	}
	return record
}

// outcome is as much as client-go can tell.
func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case apierrors.IsNotFound(err):
		return "NotFound"
	case apierrors.IsAlreadyExists(err):
		return "AlreadyExists"
	case apierrors.IsConflict(err):
		return "Conflict"
	}
	return "other error"
}

// fakeElector asks its lock what client-go's would ask, with the same records.
type fakeElector struct {
	lock resourcelock.Interface
	view resourcelock.LeaderElectionRecord // what the elector believes
	// The holder of the row that the lock observed, as the elector or without its knowledge; looked
	// is false before there was any.
	looked   bool
	observed string
}

func (e *fakeElector) leads() bool { return e.view.HolderIdentity == e.lock.Identity() }

// next is the record of the elector's Create, Update or release.
func (e *fakeElector) next(op string, now metav1.Time) resourcelock.LeaderElectionRecord {
	r := resourcelock.LeaderElectionRecord{HolderIdentity: e.lock.Identity(), LeaseDurationSeconds: 15, AcquireTime: now, RenewTime: now}
	switch {
	case op == "release":
		r.HolderIdentity, r.LeaseDurationSeconds, r.LeaderTransitions = "", 1, e.view.LeaderTransitions
	case strings.HasSuffix(op, " third"):
		r.HolderIdentity = "third"
	case op == "update" && e.leads():
		r.AcquireTime, r.LeaderTransitions = e.view.AcquireTime, e.view.LeaderTransitions
	case op == "update":
		r.LeaderTransitions = e.view.LeaderTransitions + 1
	}
	return r
}

func (e *fakeElector) do(op string, now metav1.Time) error {
	ctx := context.Background()
	switch op {
	case "get", "peek":
		// A peek is what the release of newer client-go does: it reads, and goes on with what it
		// believed before.
		record, _, err := e.lock.Get(ctx)
		if err != nil {
			return err
		}
		e.looked, e.observed = true, record.HolderIdentity
		if op == "get" {
			e.view = *record
		}
		return nil
	}
	record := e.next(op, now)
	var err error
	if strings.HasPrefix(op, "create") {
		err = e.lock.Create(ctx, record)
	} else {
		err = e.lock.Update(ctx, record)
	}
	if err == nil {
		e.view, e.looked, e.observed = record, true, record.HolderIdentity
	}
	return err
}

// play runs a sequence such as "A create", "B get", "delete" and returns the outcomes. before is
// asked before each step.
func play(w world, sequence []string, before func(e *fakeElector, op string, now metav1.Time) (skip bool)) []string {
	electors := map[string]*fakeElector{}
	for who, identity := range map[string]string{"A": "a", "B": "b"} {
		electors[who] = &fakeElector{lock: w.lock(identity)}
	}
	var outcomes []string
	for i, step := range sequence {
		now := metav1.NewTime(time.Date(2026, 10, 25, 1, 59, 58+i, 1000*(i+1), time.UTC))
		who, op, _ := strings.Cut(step, " ")
		if who == "delete" {
			w.remove()
			outcomes = append(outcomes, "ok")
			continue
		}
		if before != nil && before(electors[who], op, now) {
			outcomes = append(outcomes, "skipped")
			continue
		}
		outcomes = append(outcomes, outcome(electors[who].do(op, now)))
	}
	return outcomes
}

// deviation is where mysqllock differs from LeaseLock on purpose.
type deviation struct {
	name string
	// applies reports whether LeaseLock's behaviour is not wanted at this step, by what it would
	// know: the elector, its next record, what is stored.
	applies func(e *fakeElector, op string, record resourcelock.LeaderElectionRecord, stored *resourcelock.LeaderElectionRecord) bool
	// outcome is mysqllock's, which then changes nothing.
	outcome string
}

var deviations = []deviation{{
	// A LeaseLock releases whatever row it observed. client-go's release reads the row first and
	// then looks at its own stale record: it erases a successor. No Conflict, as client-go retries
	// one at once.
	name: "a release by a lock that does not hold the row",
	applies: func(e *fakeElector, op string, _ resourcelock.LeaderElectionRecord, stored *resourcelock.LeaderElectionRecord) bool {
		return op == "release" && e.looked && (e.observed != e.lock.Identity() || stored != nil && stored.HolderIdentity != e.lock.Identity())
	},
	outcome: "other error",
}, {
	// A leader that hasn't noticed its successor goes on with its own term: a LeaseLock that has
	// seen the successor's row meanwhile overwrites it.
	name: "a record that goes on with a term, on a row that someone else holds",
	applies: func(e *fakeElector, op string, record resourcelock.LeaderElectionRecord, _ *resourcelock.LeaderElectionRecord) bool {
		return op == "update" && e.looked && e.observed != "" && e.observed != e.lock.Identity() && !record.AcquireTime.Equal(&record.RenewTime)
	},
	outcome: "Conflict",
}}

// sequences are all of the given length.
func sequences(ops []string, length int) [][]string {
	all := [][]string{nil}
	for range length {
		var longer [][]string
		for _, sequence := range all {
			for _, op := range ops {
				longer = append(longer, append(slices.Clone(sequence), op))
			}
		}
		all = longer
	}
	return all
}

func TestDifferentialEverySequenceOfOperationsEndsAsWithALeaseLock(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	basic := []string{"A get", "A create", "A update", "B get", "B create", "B update"}
	more := append(slices.Clone(basic), "A release", "B release", "A peek", "B peek", "delete")
	var todo [][]string
	for length := 1; length <= 4; length++ {
		todo = append(todo, sequences(basic, length)...)
	}
	for length := 1; length <= 3; length++ {
		// Nothing else happens before there is a row; an election begins so.
		for _, sequence := range sequences(more, length) {
			todo = append(todo, append([]string{"A create"}, sequence...))
		}
	}
	for _, sequence := range sequences(more, 2) {
		todo = append(todo,
			sequence,
			// B leads, and A has seen it or not.
			append([]string{"A create", "B get", "B update"}, sequence...),
			append([]string{"A create", "B get", "B update", "A get"}, sequence...),
			append([]string{"A create", "B get", "B update", "A peek"}, sequence...),
			// Released, and B has seen it or not.
			append([]string{"A create", "A release", "B get"}, sequence...),
			append([]string{"A create", "B get", "A release"}, sequence...),
			// Recreated under the eyes of A, and of A and B.
			append([]string{"A create", "delete", "B create"}, sequence...),
			append([]string{"A create", "B get", "delete", "A create"}, sequence...),
			append([]string{"A create", "A release", "delete", "B create", "B release"}, sequence...),
		)
	}

	const workers = 4
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		deviated = map[string]int{}
		failures int
		next     = make(chan int)
	)
	for range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range next {
				used, problem := compareWorlds(db, fmt.Sprintf("ns/%d", i), todo[i])
				mu.Lock()
				for name, n := range used {
					deviated[name] += n
				}
				if problem != "" {
					if failures++; failures <= 20 {
						t.Errorf("%s:\n%s", strings.Join(todo[i], ", "), problem)
					}
				}
				mu.Unlock()
			}
		}()
	}
	for i := range todo {
		next <- i
	}
	close(next)
	wg.Wait()
	t.Logf("%d sequences, %d differ; deliberate deviations: %v", len(todo), failures, deviated)
	for _, d := range deviations {
		if deviated[d.name] == 0 {
			t.Errorf("no sequence shows the deviation %q", d.name)
		}
	}
}

// compareWorlds plays a sequence with LeaseLocks and with Locks. A step that deviates on purpose is
// left out with LeaseLocks, as it must change nothing.
func compareWorlds(db *sql.DB, election string, sequence []string) (used map[string]int, problem string) {
	used = map[string]int{}
	want := make([]string, len(sequence))
	step := -1
	lease := &leaseWorld{api: &leaseAPI{}}
	var steps []int // of those that aren't "delete"
	for i, s := range sequence {
		if s != "delete" {
			steps = append(steps, i)
		}
	}
	outcomes := play(lease, sequence, func(e *fakeElector, op string, now metav1.Time) bool {
		step++
		for _, d := range deviations {
			if d.applies(e, op, e.next(op, now), lease.record()) {
				want[steps[step]] = d.outcome
				used[d.name]++
				return true
			}
		}
		return false
	})
	for i := range want {
		if want[i] == "" {
			want[i] = outcomes[i]
		}
	}
	own := &mysqlWorld{db: db, election: election}
	got := play(own, sequence, nil)
	stored := own.record()
	if own.failed != nil {
		return used, own.failed.Error()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		problem += fmt.Sprintf("outcomes (-LeaseLock +Lock):\n%s", diff)
	}
	if diff := cmp.Diff(lease.record(), stored); diff != "" {
		problem += fmt.Sprintf("record (-LeaseLock +Lock):\n%s", diff)
	}
	return used, problem
}

// Each deviation once more, with what LeaseLock does at that step: it shows that there is one, and
// what is better about it.
func TestDifferentialDeviationsFromLeaseLockAreDeliberate(t *testing.T) {
	db, _ := newTables(t)
	for i, tt := range []struct {
		reason    string
		sequence  []string // its last step deviates
		lease     string   // LeaseLock's outcome
		own       string   // Lock's
		leaseThen string   // the holder afterwards
		ownThen   string
	}{{
		reason:   "a release erases no successor",
		sequence: []string{"A create", "B get", "B update", "A peek", "A release"},
		lease:    "ok", leaseThen: "",
		own: "other error", ownThen: "b",
	}, {
		reason:   "a refused release is no Conflict, which client-go would retry at once",
		sequence: []string{"A create", "B get", "B update", "A release"},
		lease:    "Conflict", leaseThen: "b",
		own: "other error", ownThen: "b",
	}, {
		reason:   "who never led has nothing to release",
		sequence: []string{"A create", "B get", "B release"},
		lease:    "ok", leaseThen: "",
		own: "other error", ownThen: "a",
	}, {
		reason:   "a record that goes on with a term does not begin one: two would lead",
		sequence: []string{"A create", "B get", "B update", "A peek", "A update"},
		lease:    "ok", leaseThen: "a",
		own: "Conflict", ownThen: "b",
	}, {
		reason:   "a lock writes for its own candidate only",
		sequence: []string{"A create", "A update third"},
		lease:    "ok", leaseThen: "third",
		own: "other error", ownThen: "a",
	}, {
		reason:   "a lock writes for its own candidate only",
		sequence: []string{"A create third"},
		lease:    "ok", leaseThen: "third",
		own: "other error", ownThen: "nobody: no row",
	}, {
		reason:   "a failed Create leaves what was observed, which LeaseLock loses; client-go calls Get next in any case",
		sequence: []string{"A create", "A create", "A update"},
		lease:    "other error", leaseThen: "a",
		own: "ok", ownThen: "a",
	}} {
		t.Run(tt.reason, func(t *testing.T) {
			lease := &leaseWorld{api: &leaseAPI{}, forgets: true}
			own := &mysqlWorld{db: db, election: fmt.Sprintf("ns/deviation-%d", i)}
			for _, w := range []struct {
				name          string
				world         world
				outcome, then string
			}{{"LeaseLock", lease, tt.lease, tt.leaseThen}, {"Lock", own, tt.own, tt.ownThen}} {
				outcomes := play(w.world, tt.sequence, nil)
				if got := outcomes[len(outcomes)-1]; got != w.outcome {
					t.Errorf("%s: %s: %v, not %s", w.name, strings.Join(tt.sequence, ", "), outcomes, w.outcome)
				}
				then := "nobody: no row"
				if r := w.world.record(); r != nil {
					then = r.HolderIdentity
				}
				if then != w.then {
					t.Errorf("%s: %s: then %q holds the row, not %q", w.name, strings.Join(tt.sequence, ", "), then, w.then)
				}
			}
			if own.failed != nil {
				t.Error(own.failed)
			}
		})
	}
}

// With LeaseLocks a second process of the same identity leads from its first Get on, without having
// written anything.
func TestDifferentialSecondProcessOfTheSameIdentitySeesSomeoneElseLead(t *testing.T) {
	db, _ := newTables(t)
	now := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	for _, w := range []struct {
		name  string
		world world
		leads bool
	}{
		{"LeaseLock", &leaseWorld{api: &leaseAPI{}}, true},
		{"Lock", &mysqlWorld{db: db, election: "ns/double"}, false},
	} {
		first, double := &fakeElector{lock: w.world.lock("a")}, &fakeElector{lock: w.world.lock("a")}
		if err := errors.Join(first.do("create", now), double.do("get", now)); err != nil {
			t.Fatal(err)
		}
		if double.leads() != w.leads {
			t.Errorf("%s: the second process believes to lead: %v", w.name, double.leads())
		}
	}
}

// TestDifferentialReferenceLockIsSound keeps the comparison fair: where nothing goes wrong, the
// reference elects one.
func TestDifferentialReferenceLockIsSound(t *testing.T) {
	db, _ := newTables(t)
	a, b := mysqllocktest.NewReferenceLock(db, "e", "a", time.Second), mysqllocktest.NewReferenceLock(db, "e", "b", time.Second)
	if _, _, err := a.Get(t.Context()); !apierrors.IsNotFound(err) {
		t.Errorf("no row: %v", err)
	}
	if err := a.Create(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if err := b.Create(t.Context(), record("b")); !apierrors.IsAlreadyExists(err) {
		t.Errorf("second Create: %v", err)
	}
	for _, l := range []*mysqllocktest.ReferenceLock{a, b} {
		got, raw, err := l.Get(t.Context())
		if err != nil || got.HolderIdentity != "a" || len(raw) == 0 {
			t.Fatalf("Get: %v, %s, %v", got, raw, err)
		}
	}
	if err := a.Update(t.Context(), record("a")); err != nil {
		t.Errorf("renewal: %v", err)
	}
	if err := b.Update(t.Context(), record("b")); !apierrors.IsConflict(err) {
		t.Errorf("Update of an older version: %v", err)
	}
}
