package mysqllock

import (
	"context"
	"errors"
	"testing"
	"time"
)

// In a process that wakes up from a pause, a reply may be read before the timer of the deadline has
// fired; no test can make that happen each time.
func TestDeadlineIsByTheClockAlsoBeforeATimerHasFired(t *testing.T) {
	t.Parallel()
	o := &operation{ctx: t.Context(), started: time.Now().Add(-time.Second), timeout: 900 * time.Millisecond}
	if err := o.late(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	o.timeout = time.Hour
	if err := o.late(); err != nil {
		t.Errorf("before the deadline: %v", err)
	}
}
