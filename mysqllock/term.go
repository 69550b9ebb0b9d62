package mysqllock

import (
	"sync"
	"time"
)

// term is what a Lock may rely on without asking the server. It does no I/O, and any goroutine may
// ask it.
//
// Trust counts from when a renewal was sent, not from when its reply came: the server may have
// written it at once, and followers count from that. So a slow reply never lengthens it.
type term struct {
	mu    sync.Mutex
	token int64     // the fencing token; 0: this Lock holds no term
	sent  time.Time // when the last renewal was sent
	// lease is the LeaseDuration of the last record written here that has a holder.
	lease time.Duration
	// drained is what WithBeforeRelease's function came to in this term.
	drained drain
	// asked is whether this leader was asked to step down.
	asked bool
	// engine is what the term began on.
	engine engine
}

// drain is how far the work of a term has ended, by WithBeforeRelease's function.
type drain struct {
	done bool
	err  error // why not
}

// current returns the token of the term that this Lock holds; 0 if it holds none.
func (t *term) current() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.token
}

// begin begins a term whose takeover was sent at that time.
func (t *term) begin(token int64, sent time.Time, on engine) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.token, t.sent = token, sent
	t.drained, t.asked, t.engine = drain{}, false, on
}

// renew goes on with the term that has that token. It reports whether that is still held: a term
// that ended while its renewal was under way must not come back to life.
func (t *term) renew(token int64, sent time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if token == 0 || t.token != token {
		return false
	}
	t.sent = sent
	return true
}

// end ends the term, if there is one.
func (t *term) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.token = 0
}

// ask notes that this leader was asked to step down.
func (t *term) ask() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = true
}

func (t *term) isAsked() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.asked
}

// leaseDuration is that of the last record written here; 0 if there is none.
func (t *term) leaseDuration() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lease
}

func (t *term) setLeaseDuration(lease time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lease = lease
}

// expires is when the lease ends: nobody takes over before.
func (t *term) expires() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sent.Add(t.lease)
}

// pastRenewDeadline reports whether an elector that gives up after that time without a renewal has
// done so by now. It ends its leader's work only after the release, unless that was drained.
func (t *term) pastRenewDeadline(limit time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.drained.done && time.Since(t.sent) >= limit
}

// toDrain reports whether the work of this term is to be drained. If not, err is why that failed
// before.
func (t *term) toDrain() (due bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.token != 0 && !t.drained.done, t.drained.err
}

func (t *term) setDrained(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drained = drain{done: err == nil, err: err}
}

func (t *term) isDrained() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.drained.done
}

// fence is what a fence compares with, 0 if this Lock holds no term, and the engine that the term
// began on.
func (t *term) fence() (token int64, on engine) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.token, t.engine
}
