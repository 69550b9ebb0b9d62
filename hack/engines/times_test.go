//go:build engines

package engines

import (
	"context"
	"database/sql"
	"slices"
	"testing"
	"time"
)

// To be compared between servers on one machine.
func TestTimesOfOperations(t *testing.T) {
	db := open(t, config(t))
	tables(t, db)
	election := newName("times")
	a, b := newLock(t, db, election, "a"), newLock(t, db, election, "b")
	must(t, "Create", a.Create(t.Context(), record("a")))
	nothing := func(context.Context, *sql.Tx) error { return nil }
	next := a
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"takeover with its poll", func() error {
			if next == a {
				next = b
			} else {
				next = a
			}
			return takeOver(t.Context(), next)
		}},
		{"poll", func() error { _, _, err := a.Get(t.Context()); return err }},
		{"renewal", func() error { return next.Update(t.Context(), record(next.Identity())) }},
		{"Transact of nothing", func() error { return next.Transact(t.Context(), db, nil, nothing) }},
	} {
		var took []time.Duration
		for range 60 {
			began := time.Now()
			must(t, step.name, step.do())
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.Logf("%s: median %v, 90%% %v", step.name, took[30].Round(10*time.Microsecond), took[54].Round(10*time.Microsecond))
	}
}
