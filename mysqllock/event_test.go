package mysqllock_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// eventRecorder is a record.EventRecorder as far as a resourcelock wants one. It
// keeps what it was told. (record.FakeRecorder keeps no object, and its package
// would bring this module three more.)
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
		{"a name with a slash", "prod/job/part", "a", nil, reference("prod", "job/part")},
		{"a name that begins with a slash", "/job", "a", nil, reference("", "/job")},
		{"a name that ends with a slash", "job/", "a", nil, reference("", "job/")},
		{"an identity and an election that look like formats", "100%/%s", "a%s%d%v%!", nil, reference("100%", "%s")},
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

// The recorder of client-go looks the object's kind up by its Go type, or reads
// it from a reference as it is; both must be possible.
func TestTheDefaultTargetIsAReferenceThatARecorderCanUse(t *testing.T) {
	db, _ := newTables(t)
	var r eventRecorder
	lock, err := mysqllock.New(db, "prod/job", resourcelock.ResourceLockConfig{Identity: "a", EventRecorder: &r})
	if err != nil {
		t.Fatal(err)
	}
	lock.RecordEvent("became leader")
	reference, ok := r.events[0].Object.(*corev1.ObjectReference)
	if !ok || reference.Kind == "" || reference.APIVersion == "" || reference.Name == "" {
		t.Errorf("the target is %#v", r.events[0].Object)
	}
}

func TestWithoutARecorderAnEventIsNotRecorded(t *testing.T) {
	db, _ := newTables(t)
	lock := newLock(t, db, "e", "a")
	lock.RecordEvent("became leader")
	lock.RecordEvent("stopped leading")
}

// Whoever reads the token afterwards must not find the one of a term that the
// elector has given up; and should the elector come back, its term is a new one.
func TestTheEventStoppedLeadingEndsTheTerm(t *testing.T) {
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
