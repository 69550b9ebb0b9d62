package mysqllock_test

import (
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Nobody told the lock the elector's timings. A tenth of this lease is five to ten
// times as long as they leave for an operation, and the reply to the leader's last
// renewal takes almost that long.
func TestASuccessThatArrivesLateMakesNoSecondLeaderWithoutWithTimings(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	p := pace{10 * time.Second, 9600 * time.Millisecond, 200 * time.Millisecond}
	untold := func(c *contest) hazardResult {
		arm := failAtNextRenewal(c.network, func() { c.network.delayReplies(p.lease / 10 * 9 / 10) }, c.network.blackHole)
		leader := c.run(c.lock(c.proxied(), "leader", mysqllock.WithDatabase(c.config.DBName)))
		leader.mustLead(c, 20*time.Second)
		followers := c.follow(3)
		arm()
		return succession(c, leader, followers)
	}
	var ours, reference hazardResult
	together(t,
		test{"Lock", func(t *testing.T) { ours = a.hold(t, true, p, untold, unbroken) }},
		test{"LeaseLock's semantics", func(t *testing.T) {
			reference = a.hold(t, false, p, untold, func(o hazardResult) bool { return o.broken })
		}})
	t.Logf("HAZARD | l: a success that arrives late, without WithTimings | %v | %v", reference, ours)
}
