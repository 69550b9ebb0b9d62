package mysqllock_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"pgregory.net/rapid"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// eventRecorder is a record.EventRecorder as far as a resourcelock wants one. It keeps what it was
// told. (record.FakeRecorder keeps no object, and its package would bring this module three more.)
type eventRecorder struct{ events []recordedEvent }

type recordedEvent struct {
	Object            runtime.Object
	Type, Reason, Say string
}

func (r *eventRecorder) Eventf(object runtime.Object, eventType, reason, format string, args ...any) {
	r.events = append(r.events, recordedEvent{object, eventType, reason, fmt.Sprintf(format, args...)})
}

func TestEventsAreRecordedOnTheTarget(t *testing.T) {
	db, _ := newTables(t)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "pod-1", UID: "u"}}
	reference := func(namespace, name string) *corev1.ObjectReference {
		return &corev1.ObjectReference{APIVersion: "mysqllock/v1", Kind: "Election", Namespace: namespace, Name: name}
	}
	for _, test := range []struct {
		name               string
		election, identity string
		options            []mysqllock.Option
		target             runtime.Object
	}{
		{"the process's pod", "prod/job", "a", []mysqllock.Option{mysqllock.WithEventTarget(pod)}, pod},
		{"a reference to the election in its namespace", "prod/job", "a", nil, reference("prod", "job")},
		{"a reference to the election", "job", "a", nil, reference("", "job")},
		{"a name with a slash", "prod/job/part", "a", nil, reference("prod", "job-part-47fbe1ab")},
		{"a name that begins with a slash", "/job", "a", nil, reference("", "job-3ede81fb")},
		{"a name that ends with a slash", "job/", "a", nil, reference("", "job-409976a3")},
		{"a name with an underscore", "ops/my_task", "a", nil, reference("ops", "my-task-5d8517a4")},
		{"a name with a space", "Nightly report", "a", nil, reference("", "nightly-report-06f212f8")},
		{"a name that no letter is left of", "選挙", "a", nil, reference("", "election-79eff287")},
		{"a namespace that is none", "Ops/task", "a", nil, reference("", "ops-task-446e322f")},
		{"a long name", "prod/" + strings.Repeat("a", 240), "a", nil, reference("prod", strings.Repeat("a", 227)+"-9b304390")},
		{"an identity and an election that look like formats", "100%/%s", "a%s%d%v%!", nil, reference("", "100---s-f2e62927")},
	} {
		t.Run(test.name, func(t *testing.T) {
			var r eventRecorder
			lock, err := mysqllock.New(db, test.election, resourcelock.ResourceLockConfig{Identity: test.identity, EventRecorder: &r}, test.options...)
			if err != nil {
				t.Fatal(err)
			}
			// Before the lock has read or written any row.
			lock.RecordEvent("became leader")
			lock.RecordEvent("stopped leading")
			lock.RecordEvent("100% sure")
			want := []recordedEvent{
				{test.target, "Normal", "LeaderElection", test.identity + " became leader"},
				{test.target, "Normal", "LeaderElection", test.identity + " stopped leading"},
				{test.target, "Normal", "LeaderElection", test.identity + " 100% sure"},
			}
			if diff := cmp.Diff(want, r.events); diff != "" {
				t.Error(diff)
			}
			if want := "election_records/" + test.election; lock.Describe() != want {
				t.Errorf("Describe() is %q, want %q", lock.Describe(), want)
			}
			if lock.Identity() != test.identity {
				t.Errorf("Identity() is %q, want %q", lock.Identity(), test.identity)
			}
		})
	}
}

// takenByAnAPIServer reports what an API server has against the event that client-go's recorder
// makes of a reference: its name is the reference's with a time appended, its namespace the
// reference's, or "default".
func takenByAnAPIServer(object runtime.Object) error {
	reference, ok := object.(*corev1.ObjectReference)
	if !ok || reference.Kind == "" || reference.APIVersion == "" {
		return fmt.Errorf("a recorder can't refer to %#v", object)
	}
	if problems := validation.NameIsDNSSubdomain(fmt.Sprintf("%v.%x", reference.Name, time.Now().UnixNano()), false); len(problems) > 0 {
		return fmt.Errorf("name %q: %v", reference.Name, problems)
	}
	if reference.Namespace == "" {
		return nil
	}
	if problems := validation.ValidateNamespaceName(reference.Namespace, false); len(problems) > 0 {
		return fmt.Errorf("namespace %q: %v", reference.Namespace, problems)
	}
	return nil
}

func TestEventsOfAnElectionOfAnyNameAreTakenByAnAPIServer(t *testing.T) {
	db := open(t, mysql.NewConfig()) // which is never connected
	targets := map[corev1.ObjectReference]string{}
	rapid.Check(t, func(t *rapid.T) {
		election := rapid.OneOf(validName, rapid.Custom(func(t *rapid.T) string {
			return validName.Draw(t, "namespace") + "/" + validName.Draw(t, "name")
		}), rapid.StringMatching(`[a-z]{1,2}[./_-]{1,2}[a-zA-Z]{1,2}`)).Draw(t, "election")
		var r eventRecorder
		lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: "a", EventRecorder: &r})
		if err != nil {
			return // a name that is refused
		}
		lock.RecordEvent("became leader")
		if err := takenByAnAPIServer(r.events[0].Object); err != nil {
			t.Fatalf("%q: %v", election, err)
		}
		target, _ := r.events[0].Object.(*corev1.ObjectReference)
		if other, ok := targets[*target]; ok && other != election {
			t.Fatalf("%q and %q have the target %v", election, other, target)
		}
		targets[*target] = election
	})
}

func TestEventIsNotRecordedWithoutARecorder(t *testing.T) {
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a")
	lock.RecordEvent("became leader")
	lock.RecordEvent("stopped leading")
}

// Whoever reads the token afterwards must not find the one of a term that the elector has given up;
// and should the elector come back, its term is a new one.
func TestEventStoppedLeadingEndsTheTerm(t *testing.T) {
	for name, config := range map[string]resourcelock.ResourceLockConfig{
		"with a recorder": {Identity: "a", EventRecorder: &eventRecorder{}}, "without one": {Identity: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			db, _ := newTables(t)
			lock, err := mysqllock.New(db, "e", config)
			if err != nil {
				t.Fatal(err)
			}
			mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
			lock.RecordEvent("became leader")
			token, held := lock.FencingToken()
			if !held || token != tokenOf(t, db, "e") {
				t.Fatalf("fencing token %d, %v", token, held)
			}
			lock.RecordEvent("stopped leading")
			if token, held := lock.FencingToken(); held {
				t.Errorf("fencing token %d is still held", token)
			}
			mustSucceed(t, "Update", update(context.Background(), lock, record("a")))
			if next, held := lock.FencingToken(); !held || next <= token || next != tokenOf(t, db, "e") {
				t.Errorf("fencing token %d, %v; want a new term's, larger than %d", next, held, token)
			}
		})
	}
}
