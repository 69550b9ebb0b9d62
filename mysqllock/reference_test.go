package mysqllock_test

import (
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
)

// TestTheReferenceLockIsASoundLock keeps the comparison fair: where nothing goes
// wrong, the reference elects one.
func TestTheReferenceLockIsASoundLock(t *testing.T) {
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
