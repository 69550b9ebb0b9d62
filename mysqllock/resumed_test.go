package mysqllock_test

import (
	"errors"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// The elector has given up, and its work was told to end. A renewal that was
// under way may still be applied, but its success must not make a leader again of
// a candidate that has no work any more.
func TestARenewalUnderWayDoesNotBringBackATermThatStoppedLeadingEnded(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	network := newProxy(t, config.Addr)
	const election = "ns/ended"
	lock := newLock(t, open(t, network.config(config)), election, "a", unhurried)
	held := record("a")
	if err := lock.Create(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	if err := lock.Update(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	before := readRow(t, db, election)

	network.swallowReplies()
	renewed := make(chan error, 1)
	go func() { renewed <- lock.Update(t.Context(), held) }()
	eventually(t, patience, "the renewal is applied", func() bool { return readRow(t, db, election).Version > before.Version })
	lock.RecordEvent("stopped leading")
	network.forward()
	if err := <-renewed; !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("the renewal of a term that had ended: %v", err)
	}
	if token, held := lock.FencingToken(); held {
		t.Errorf("the term that had ended is held again, with the token %d", token)
	}

	// The row is the Lock's own all the same, and the next run takes it up.
	if _, _, err := lock.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lock.Update(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if _, held := lock.FencingToken(); !held {
		t.Error("the next term is not held")
	}
}
