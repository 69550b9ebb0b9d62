package main

import (
	"encoding/json"
	"os"
	"slices"
	"sync"
	"time"
)

// kind is what an event says.
type kind string

const (
	// What candidates say of themselves.
	leads    kind = "leads"    // OnStartedLeading was called, for the term Token
	leadsNot kind = "leadsNot" // its context has ended
	posted   kind = "posted"   // the entry Seq of the term Token was committed, as Transact says
	refused  kind = "refused"  // Transact or Guard said ErrNotLeader: the entry Seq must not be there
	failed   kind = "failed"   // another error: it must not be there either
	unknown  kind = "unknown"  // the outcome of the commit is not known
	stalled  kind = "stalled"  // nothing of the process ran for Duration, until Time
	bye      kind = "bye"      // all is closed; Goroutines are left, and the lock was last heard of Duration ago

	// What the nemesis knows.
	started  kind = "started"
	exited   kind = "exited"
	fault    kind = "fault"    // What, for Duration
	healed   kind = "healed"   // all of them
	recovery kind = "recovery" // an entry was posted again, Duration after healed
)

// event is one line of a history.
type event struct {
	Time       time.Time     `json:"time"`
	Who        string        `json:"who,omitempty"` // a candidate's identity
	Kind       kind          `json:"kind"`
	Token      int64         `json:"token,omitempty"`
	Seq        int           `json:"seq,omitempty"`
	Duration   time.Duration `json:"ns,omitempty"`
	Goroutines int           `json:"goroutines,omitempty"`
	What       string        `json:"what,omitempty"`
}

// history is what happened, in the order in which it was heard.
type history struct {
	mu     sync.Mutex
	events []event
	heard  func(event)
}

func (h *history) add(e event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
	if h.heard != nil {
		h.heard(e)
	}
}

// since returns whether there is such an event after t.
func (h *history) since(t time.Time, k kind) (event, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range slices.Backward(h.events) {
		if e.Kind == k && e.Time.After(t) {
			return e, true
		}
	}
	return event{}, false
}

// save writes the history to a file, one event per line.
func (h *history) save(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // after Sync has told what could go wrong
	encoder := json.NewEncoder(file)
	for _, e := range h.events {
		if err := encoder.Encode(e); err != nil {
			return err
		}
	}
	return file.Sync()
}
