package mysqllock

import (
	"context"
	"sync"
	"time"
)

// Collecting operations that are to be sent together.

// queue is what waits to be sent together.
type queue struct {
	run     func(context.Context, []*batched)
	mu      sync.Mutex
	waiting []*batched
	due     time.Time // when they are sent, at the latest
}

// batched is one operation in a queue.
type batched struct {
	lock *Lock
	o    *operation

	old, next *row       // what a renewal compares with and writes
	found     *row       // what a poll found
	outcome   chan error // has room for one, as nobody may be waiting any more
}

// wait sends m together with others and returns what became of it.
func (q *queue) wait(m *batched) error {
	m.outcome = make(chan error, 1)
	q.mu.Lock()
	q.waiting = append(q.waiting, m)
	wait := min(m.o.timeout/10, maxBatchWait)
	switch due := time.Now().Add(wait); {
	case len(q.waiting) == maxBatch:
		go q.flush()
	case len(q.waiting) == 1 || due.Before(q.due):
		q.due = due
		time.AfterFunc(wait, q.flush)
	}
	q.mu.Unlock()
	select {
	case err := <-m.outcome:
		return err
	case <-m.o.ctx.Done():
		return m.o.ctx.Err()
	}
}

func (q *queue) flush() {
	q.mu.Lock()
	waiting := q.waiting
	q.waiting = nil
	q.mu.Unlock()
	// The statement ends with the last of those who wait for it, whose own contexts may end before.
	var last time.Time
	live := waiting[:0]
	for _, m := range waiting {
		if m.o.ctx.Err() != nil {
			continue // given up
		}
		live = append(live, m)
		if end := m.o.started.Add(m.o.timeout); end.After(last) {
			last = end
		}
	}
	if len(live) == 0 {
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), last)
	defer cancel()
	for len(live) > 0 {
		n := min(len(live), maxBatch)
		q.run(ctx, live[:n])
		live = live[n:]
	}
}
