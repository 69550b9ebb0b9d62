package machine

import (
	"context"
	"time"
)

// WatchStalls looks at this process's clock at that pace until ctx ends, and at the end, and reports how much time passed
// since the look before: if that is much more than pace, the process did not run, whoever's fault that was.
func WatchStalls(ctx context.Context, pace time.Duration, report func(passed time.Duration)) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	last := time.Now()
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true
		case <-tick.C:
		}
		now := time.Now()
		report(now.Sub(last))
		last = now
	}
}
