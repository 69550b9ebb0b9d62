package mysqllock_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

func TestEveryFieldOfTheRecordComesBack(t *testing.T) {
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
	got, _, err = lock.Get(t.Context())
	t.Log(got, err)
}
