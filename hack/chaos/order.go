package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
)

// order is what a candidate is told while it runs.
type order struct {
	Clock     *clockOrder `json:",omitempty"` // how its clocks go from now on
	LeaveOpen []string    `json:",omitempty"` // statements that leave a transaction open in a session of its lock's pool
}

// obey does as it is told, for as long as the process lives.
func (c *candidate) obey(told *json.Decoder) {
	for {
		var o order
		if err := told.Decode(&o); err != nil {
			return // nobody is there
		}
		if o.Clock != nil {
			if err := setClock(*o.Clock); err != nil {
				fmt.Fprintln(os.Stderr, "chaos: candidate's clock:", err)
			}
		}
		if o.LeaveOpen != nil {
			c.leaveOpen(o.LeaveOpen)
		}
	}
}

// leaveTransaction has the candidate leave a transaction open. Nobody ends it but the lock, or what else ends the session.
func leaveTransaction(ctx context.Context, _ *world, s *slot, d time.Duration) error {
	ways := [][]string{
		{"START TRANSACTION"},
		{"START TRANSACTION WITH CONSISTENT SNAPSHOT"},
		{"SET completion_type = 'CHAIN'", "START TRANSACTION", "COMMIT"},
		{fmt.Sprintf("XA START '%s-%d'", s.who(), d)},
	}
	if err := s.tell(order{LeaveOpen: ways[int(d)%len(ways)]}); err != nil {
		return err
	}
	wait.For(ctx, d)
	return nil
}
