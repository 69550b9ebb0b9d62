package main

import (
	"encoding/json"
	"os"
	"sync"
	"time"
)

// kind is what an event says.
type kind string

const (
	// What candidates say of themselves.
	leads    kind = "leads"    // OnStartedLeading was called, for the term Token; 0 if that was over by then
	leadsNot kind = "leadsNot" // its context has ended
	posted   kind = "posted"   // the entry Seq of the term Token was committed, as Transact says
	refused  kind = "refused"  // Transact or Guard said ErrNotLeader: the entry Seq must not be there
	failed   kind = "failed"   // another error: it must not be there either
	unknown  kind = "unknown"  // the outcome of the commit is not known
	called   kind = "called"   // an operation on a lock begins, see rawOperation
	returned kind = "returned" // it has returned
	stalled  kind = "stalled"  // nothing of the process ran for Duration, until Time
	stuck    kind = "stuck"    // a pool has sessions in use when all is over
	bye      kind = "bye"      // all is closed; Goroutines are left, and the lock was last heard of Duration ago

	// What the nemesis knows.
	started  kind = "started"
	exited   kind = "exited"
	babbled  kind = "babbled"  // a candidate said what is no event: a panic, say
	fault    kind = "fault"    // What, for Duration
	hit      kind = "hit"      // the fault What has done what it is for
	skewed   kind = "skewed"   // the clocks of a process went at Rate times the true speed for Duration, until Time
	lost     kind = "lost"     // the server that takes over has nothing of what was committed for Duration, until Time
	healed   kind = "healed"   // all of them
	quiet    kind = "quiet"    // and long enough ago for everyone to have heard of the server again
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
	Rate       float64       `json:"rate,omitempty"`
	What       string        `json:"what,omitempty"`
	Raw        *rawOperation `json:"raw,omitempty"`
}

// history is what happened, in the order in which it was heard.
type history struct {
	mu     sync.Mutex
	events []event
	latest map[kind]event // by its time
}

func (h *history) add(e event) {
	if e.Time.IsZero() {
		e.Time = trueTime()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
	if h.latest == nil {
		h.latest = map[kind]event{}
	}
	if e.Time.After(h.latest[e.Kind].Time) {
		h.latest[e.Kind] = e
	}
}

// last returns the latest event of a kind.
func (h *history) last(k kind) event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.latest[k]
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
