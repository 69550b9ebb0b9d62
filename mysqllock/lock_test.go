package mysqllock_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// The life of an election, as client-go's elector asks for it: a candidate creates it and renews
// its lease; another one polls, takes over once that is released, and has a larger fencing token.
func TestLockThroughTheLifeOfAnElection(t *testing.T) {
	db, _ := newTables(t)
	first, second := newLock(t, db, "life", "first"), newLock(t, db, "life", "second")
	if err := get(t.Context(), first)(); !apierrors.IsNotFound(err) {
		t.Fatalf("an election that nobody has campaigned in: %v", err)
	}
	mustSucceed(t, "Create", create(t.Context(), first, record("first")))
	token, held := first.FencingToken()
	if !held {
		t.Error("the creator holds no term")
	}
	_, before, err := second.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustSucceed(t, "a renewal", update(t.Context(), first, record("first")))
	seen, after, err := second.Get(t.Context())
	if err != nil || seen.HolderIdentity != "first" || string(before) == string(after) {
		t.Errorf("the follower sees no sign of life: %v, %v", seen, err)
	}
	mustSucceed(t, "the release", update(t.Context(), first, recordFor("", 1)))
	if _, held := first.FencingToken(); held {
		t.Error("a term outlived its release")
	}
	mustSucceed(t, "Get", get(t.Context(), second))
	mustSucceed(t, "the takeover", update(t.Context(), second, record("second")))
	if next, held := second.FencingToken(); !held || next <= token {
		t.Errorf("the successor's token is %d (held: %t) after %d", next, held, token)
	}
	if err := update(t.Context(), first, record("first"))(); !apierrors.IsConflict(err) {
		t.Errorf("the predecessor's renewal: %v, want a Conflict", err)
	}
}

func TestRecordComesBackInEveryField(t *testing.T) {
	db, _ := newTables(t)
	lock := newLock(t, db, "ns/every-field", "a")
	want := resourcelock.LeaderElectionRecord{
		HolderIdentity:       "a",
		LeaseDurationSeconds: 17,
		AcquireTime:          metav1.NewTime(time.Date(2026, 3, 29, 2, 30, 0, 123456000, time.UTC)),
		RenewTime:            metav1.NewTime(time.Date(2026, 10, 25, 2, 30, 0, 654321000, time.UTC)),
		LeaderTransitions:    42,
		Strategy:             "OldestEmulationVersion",
		PreferredHolder:      "b",
	}
	if err := lock.Create(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	got, _, err := lock.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Error(diff)
	}
	if err := lock.Update(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	other := newLock(t, db, "ns/every-field", "b")
	got, _, err = other.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Error(diff)
	}
	if err := other.Update(t.Context(), record("b")); err != nil {
		t.Fatal(err)
	}
	if err := lock.Update(t.Context(), want); !apierrors.IsConflict(err) {
		t.Fatal(err)
	}
}
