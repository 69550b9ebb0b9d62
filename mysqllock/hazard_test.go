package mysqllock_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
)

// This file shows what goes wrong with client-go's stock elector on a lock that does no more than
// LeaseLock does (see mysqllocktest.ReferenceLock), and that it does not with a Lock. The networks
// fail by means of a proxy, the rest is real. What is measured is for how long two candidates led
// at once, as they believed themselves: from OnStartedLeading to OnStoppedLeading.

// rereading releases as newer electors do (v0.37.2): it reads the row, still goes by what it
// believed before, and tries again on a Conflict. The elector of v0.31 only writes.
type rereading struct {
	resourcelock.Interface
	begin    func() // called before the first attempt, unless nil
	attempts atomic.Int64
}

func (l *rereading) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if record.HolderIdentity != "" {
		return l.Interface.Update(ctx, record)
	}
	if l.begin != nil {
		l.begin()
	}
	for {
		l.attempts.Add(1)
		if _, _, err := l.Interface.Get(ctx); err != nil {
			return err
		}
		if err := l.Interface.Update(ctx, record); !apierrors.IsConflict(err) {
			return err
		}
	}
}

// hazards are what client-go's elector and its LeaseLock leave open, or why they do not.
var hazards = []struct {
	name string
	pace cadence
	run  func(*contest) hazardResult
	// sound: LeaseLock's semantics withstand it as well.
	sound bool
}{
	{name: "a1: a success that arrives late", pace: long, run: lateSuccess},
	{name: "a2: a success that arrives late, while the process is paused", pace: long, run: lateSuccessInAPause},
	{name: "b1: the release of a leader that could not renew", pace: long, run: releaseAtTheDeadline},
	{name: "b2: the release of a leader that was cancelled and is cut off", pace: long, run: releaseWhenCancelled},
	{name: "a+b: a late success and then a release that fails", pace: long, run: lateSuccessAndRelease},
	{name: "b3: a late success and then a release in two steps", pace: cadence{6 * time.Second, 3 * time.Second, 200 * time.Millisecond}, run: releaseInTwoSteps},
	{name: "b4: the release of a leader that could not renew is applied, and its reply is lost", pace: cadence{6 * time.Second, 3 * time.Second, 200 * time.Millisecond}, run: releaseWithoutAnAnswer},
	{name: "c: the release of a leader that was paused while another took over", pace: short, run: releaseAfterTakeover},
	{name: "d: renewals within one second", pace: cadence{time.Second, 950 * time.Millisecond, 700 * time.Millisecond}, run: renewalsWithinASecond},
	{name: "e: two candidates with one identity", pace: short, run: oneIdentity},
	{name: "f: the row is deleted and made again under a leader", pace: short, run: rowMadeAgain},
	{name: "g1: an abandoned release that is applied after a takeover", pace: short, run: func(c *contest) hazardResult { return lateRelease(c, false) }, sound: true},
	{name: "g2: the same, and the server lost a write, so that versions repeat", pace: short, run: func(c *contest) hazardResult { return lateRelease(c, true) }},
	{name: "l: a transaction left open in the pool that the lock shares", pace: short, run: openTransaction},
	{name: "m: USE of another database in the pool that the lock shares", pace: short, run: otherDefaultDatabase},
}

func TestHazardsOfTheStockElector(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	newLedger(t, a.config)
	var tests []test
	for _, h := range hazards {
		tests = append(tests, test{h.name, func(t *testing.T) {
			var reference any = "not asked"
			var ours hazardResult
			contests := []test{{"Lock", func(t *testing.T) {
				ours = a.hold(t, true, h.pace, h.run, unbroken)
			}}}
			if os.Getenv(batchVariable) == "" { // which is nothing to the other lock
				contests = append(contests, test{"LeaseLock's semantics", func(t *testing.T) {
					// Otherwise the test would show nothing.
					reference = a.hold(t, false, h.pace, h.run, func(o hazardResult) bool { return o.broken != h.sound })
				}})
			}
			together(t, contests...)
			t.Logf("HAZARD | %s | %v | %v", h.name, reference, ours)
		}})
	}
	together(t, tests...)
}

// The leader's last renewal is applied at once, but its reply takes almost as long as LeaseLock
// allows. From then on the leader is cut off. It trusts its lease from the reply on, the followers
// count from the renewal on.
func lateSuccess(c *contest) hazardResult {
	return late(c, mysqllocktest.ReferenceTimeout(c.pace.renewDeadline)*8/10)
}

// The same, but nothing ends the wait for the reply: then only the clock tells the lock that the
// success is too late.
func lateSuccessInAPause(c *contest) hazardResult {
	network := newStubborn(c, mysqllocktest.ReferenceTimeout(c.pace.renewDeadline)*8/10, isRenewal)
	pool := open(c, network.config(c.config))
	pool.SetMaxOpenConns(1)
	leader := c.run(c.lock(pool, "leader"))
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	network.arm()
	return succession(c, leader, followers)
}

// Both at once: the reply is as late as a Lock allows, and the elector has another operation to
// spend on its release.
func lateSuccessAndRelease(c *contest) hazardResult {
	timeout := mysqllocktest.ReferenceTimeout(c.pace.renewDeadline)
	if c.ours {
		timeout = c.pace.operationTimeout()
	}
	return late(c, timeout*8/10, releasing)
}

// The leader is cut off. When it could not renew in time, its elector tries to release the lease
// first, and only then ends the work's context.
func releaseAtTheDeadline(c *contest) hazardResult {
	arm := failAtNextRenewal(c.network, c.network.blackHole, nil)
	leader := c.run(c.lock(c.proxied(), "leader"), releasing)
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	arm()
	return succession(c, leader, followers)
}

// The leader is cut off, and cancelled shortly before its deadline. Its work's context ends at
// once, but Run doesn't return, and OnStoppedLeading isn't called, before the release was given up;
// whoever waits for that (as controller-runtime does) still holds what the next leader needs.
func releaseWhenCancelled(c *contest) hazardResult {
	cut := make(chan struct{})
	arm := failAtNextRenewal(c.network, func() { c.network.blackHole(); close(cut) }, nil)
	leader := c.run(c.lock(c.proxied(), "leader"), releasing)
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	arm()
	receive(c, "the leader's next renewal", cut)
	// The moment matters: the later the elector begins to release, the longer beyond its lease it
	// is at it.
	<-time.After(c.pace.renewDeadline - 300*time.Millisecond)
	leader.cancel()
	return succession(c, leader, followers)
}

// The network is slow at the last renewal, then down, then slow once more when a newer elector
// releases: that reads the row first, and so has three operations to spend beyond its deadline, not
// two. Lost packets stay lost here, as a renewal that arrives late would be one.
func releaseInTwoSteps(c *contest) hazardResult {
	delay := mysqllocktest.ReferenceTimeout(c.pace.renewDeadline) * 8 / 10
	if c.ours {
		delay = c.pace.operationTimeout() * 8 / 10
	}
	slow := func() { c.network.delayReplies(delay) }
	var isReleasing atomic.Bool
	arm := failAtNextRenewal(c.network, slow, c.network.blackHole)
	down := c.network.onRequest
	var stage atomic.Int32
	c.network.onRequest = func(packet []byte) {
		switch {
		case !isReleasing.Load():
			down(packet)
		case stage.Load() == 0 && isPoll(packet):
			stage.Store(1)
			slow()
		case stage.Load() == 1:
			stage.Store(2)
			c.network.blackHole()
		}
	}
	lock := c.lock(c.proxied(), "leader")
	release := &rereading{Interface: lock, begin: func() {
		isReleasing.Store(true)
		c.network.cut()
		c.network.forward()
	}}
	leader := c.run(lock, releasing, func(config *campaign) { config.Lock = release })
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	arm()
	result := succession(c, leader, followers)
	if stage.Load() == 0 {
		c.Error("no read of the release was seen, so that its network was not slow")
	}
	return result
}

// The leader is cut off until RenewDeadline. Its release then reaches the server, and whoever polls
// may lead; but no reply comes, and the elector, which ends the work's context after its release,
// still calls itself leader.
func releaseWithoutAnAnswer(c *contest) hazardResult {
	arm := failAtNextRenewal(c.network, c.network.blackHole, nil)
	down := c.network.onRequest
	var isReleasing atomic.Bool
	c.network.onRequest = func(packet []byte) {
		switch {
		case !isReleasing.Load():
			down(packet)
		case isRenewal(packet):
			c.network.swallowReplies()
		}
	}
	lock := c.lock(c.proxied(), "leader")
	release := &rereading{Interface: lock, begin: func() {
		isReleasing.Store(true)
		c.network.cut()
		c.network.forward()
	}}
	leader := c.run(lock, releasing, func(config *campaign) { config.Lock = release })
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	arm()
	return succession(c, leader, followers)
}

// A leader is paused until another has taken over. When it goes on, it releases a lease that isn't
// its own any more, and a third one begins to lead beside the second. (That the first one believes
// in itself while it is paused can't be helped, and isn't counted.)
func releaseAfterTakeover(c *contest) hazardResult {
	lock := c.lock(c.db, "leader")
	release := &rereading{Interface: lock}
	leader := c.run(lock, releasing, func(config *campaign) { config.Lock = release })
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	leader.pause(c)
	for _, f := range followers {
		f.pauseAfterUpdate(true)
	}
	successor, others := whoLeads(c, followers, c.pace.takeoverWithin())
	leader.resume()
	leader.mustEnd(c)
	o := intruded(c, successor, others)
	o.note = fmt.Sprintf("%d attempts to release", release.attempts.Load())
	if n := release.attempts.Load(); c.ours && n != 1 {
		c.Errorf("the elector tried to release %d times, want once", n)
	}
	return o
}

// intruded reports whether one of the others begins to lead beside the successor. The successor's
// next renewal is a bit late, so that the hazard shows every time: otherwise that renewal races
// against the others' polls.
func intruded(c *contest, successor *candidate, others []*candidate) hazardResult {
	for _, f := range others {
		f.pauseAfterUpdate(false)
	}
	// Enough for several polls of each, and not for the successor's deadline.
	timeout := time.After(c.pace.renewDeadline * 6 / 10)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting && !slices.ContainsFunc(others, (*candidate).leads); {
		select {
		case <-tick.C:
		case <-timeout:
			waiting = false
		}
	}
	successor.resume()
	if !slices.ContainsFunc(others, (*candidate).leads) {
		successor.mustRenew(c, 2)
	} else {
		successor.mustEnd(c)
	}
	return overlapped(append(others, successor)...)
}

// The lease is 1 s, and the leader renews it every 0.7 s. The renewal's second, all that the bytes
// of LeaseLock's record show of it, stays the same for longer than a second now and then, and a
// follower that polls often notices that.
func renewalsWithinASecond(c *contest) hazardResult {
	o := keptWhileRenewed(c)
	for range 3 {
		if c.ours || o.broken {
			break
		}
		// It is a matter of how seconds, renewals and polls fall together.
		c.stop()
		o = keptWhileRenewed(c)
	}
	return o
}

func keptWhileRenewed(c *contest) hazardResult {
	timeout := mysqllock.WithOperationTimeout(250 * time.Millisecond)
	leader := c.run(c.lock(c.db, "leader", timeout))
	leader.mustLead(c, c.pace.takeoverWithin())
	often := func(config *campaign) { config.RetryPeriod = 30 * time.Millisecond }
	followers := []*candidate{c.run(c.lock(c.db, "follower 1", timeout), often), c.run(c.lock(c.db, "follower 2", timeout), often)}
	end := time.After(8 * time.Second) // the seconds in which the leader must keep its lease
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting && !slices.ContainsFunc(followers, (*candidate).leads); {
		select {
		case <-tick.C:
		case <-end:
			waiting = false
		}
	}
	i := slices.IndexFunc(followers, (*candidate).leads)
	if i < 0 {
		return hazardResult{note: fmt.Sprintf("kept for 8s, %d renewals", len(leader.renewals()))}
	}
	taken := followers[i].led(time.Now())[0].from
	renewals := slices.DeleteFunc(leader.renewals(), func(u call) bool { return u.returned.After(taken) })
	if len(renewals) == 0 {
		c.Fatal("the leader never renewed")
	}
	ago := taken.Sub(renewals[len(renewals)-1].returned)
	leader.mustEnd(c)
	return hazardResult{
		overlap: overlap(append(followers, leader)...),
		// A lease that was not renewed, as the machine was busy, was lost in good order.
		broken: ago < c.pace.lease-200*time.Millisecond,
		note:   fmt.Sprintf("lost %v after a renewal", ago.Round(time.Millisecond)),
	}
}

// Two processes have one identity. client-go compares the strings, so both lead, for ever and in
// silence. Of two Locks the second waits for the first one's lease to end like any other, and says
// once why.
func oneIdentity(c *contest) hazardResult {
	first := c.run(c.lock(c.db, "twin"))
	first.mustLead(c, 20*time.Second)
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
	second := c.run(c.lock(c.db, "twin"), within(klog.NewContext(context.Background(), logger)))
	if !c.ours {
		second.mustLead(c, 20*time.Second)
		first.mustRenew(c, 5) // both go on
		second.mustRenew(c, 5)
		first.mustRenew(c, 1)
		o := overlapped(first, second)
		o.note = "and no end"
		return o
	}
	// Longer than a lease.
	polls := second.polls()
	<-time.After(c.pace.lease * 3 / 2)
	if n := second.polls(); n < polls+3 {
		c.Errorf("the second one polled %d times only", n-polls)
	}
	if second.leads() || !first.leads() {
		c.Error("the second one led while the first one lived")
	}
	first.cancel() // its process ends without a release
	first.mustEnd(c)
	died := time.Now()
	second.mustLead(c, c.pace.takeoverWithin())
	took := time.Since(died)
	second.mustRenew(c, 3)
	lines := 0
	for _, line := range logger.GetSink().(ktesting.Underlier).GetBuffer().Data() {
		if errors.Is(line.Err, mysqllock.ErrDuplicateIdentity) {
			lines++
		}
	}
	if lines != 1 {
		c.Errorf("ErrDuplicateIdentity was logged %d times in %d polls, want once", lines, second.polls())
	}
	o := overlapped(first, second)
	o.note = fmt.Sprintf("takeover %v after the first one's death, lease %v", took.Round(10*time.Millisecond), c.pace.lease)
	return o
}

// Somebody deletes the row while the leader is out of reach for a moment; another candidate makes
// it anew. No lock below the elector can end the first one's belief before its RenewDeadline: the
// elector doesn't ask. But what it writes with Transact in that time is not committed, and tokens
// go on growing.
func rowMadeAgain(c *contest) hazardResult {
	work := c.arena.db
	cutOff := make(chan struct{})
	arm := failAtNextRenewal(c.network, func() { c.network.blackHole(); close(cutOff) }, nil)
	deposed := c.run(c.lock(c.proxied(), "leader"))
	deposed.mustLead(c, 20*time.Second)
	follower := c.follow(1)[0]
	write := func(r *candidate) error {
		if lock, ok := r.Interface.(*mysqllock.Lock); ok {
			return lock.Transact(c.Context(), work, nil, inserting(r.Identity()))
		}
		_, err := work.ExecContext(c.Context(), `INSERT INTO ledger (entry) VALUES (?)`, r.Identity())
		return err
	}
	if err := write(deposed); err != nil {
		c.Fatal(err)
	}
	var before, after int64
	if c.ours {
		before, _ = deposed.Interface.(*mysqllock.Lock).FencingToken()
	}
	arm()
	receive(c, "the leader's next renewal", cutOff) // or it would notice, and make the row again itself
	exec(c, c.db, `DELETE FROM election_records WHERE election_name = ?`, c.election)
	follower.mustLead(c, 20*time.Second)
	attempts, committed := 0, 0
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deposed.leads() {
		// The first time before it can have noticed.
		err := write(deposed)
		attempts++
		switch {
		case err == nil:
			committed++
		case !errors.Is(err, mysqllock.ErrNotLeader):
			c.Errorf("the deposed leader's write: %v", err)
		}
		c.network.forward()
		<-tick.C
	}
	deposed.mustEnd(c)
	if err := write(follower); err != nil {
		c.Errorf("the successor's write: %v", err)
	}
	if c.ours {
		if after, _ = follower.Interface.(*mysqllock.Lock).FencingToken(); after <= before {
			c.Errorf("the successor's token is %d after %d", after, before)
		}
	}
	follower.mustRenew(c, 2)
	if attempts == 0 {
		c.Error("the deposed leader was gone at once")
	}
	return hazardResult{
		overlap: overlap(c.candidates...),
		broken:  committed > 0,
		note:    fmt.Sprintf("%d of the deposed leader's %d writes committed", committed, attempts),
	}
}

// A leader's release gets lost in the network, the leader has given up, another one has taken over,
// and then the release arrives. It compares and swaps, so that it does nothing. But versions alone
// can repeat: here a server is promoted that lacks the last renewal, as an etcd restored from a
// backup does.
func lateRelease(c *contest, lostWrite bool) hazardResult {
	// As if by a client whose clock is in the year 2100, so that versions only count up.
	exec(c, c.db, `INSERT INTO election_records (election_name, leader_name, last_update, leader_uid, strategy, preferred_holder, server, version)
		VALUES (?, '', UTC_TIMESTAMP(6), '', '', '', '', 4102444800000000)`, c.election)
	pool := c.proxied()
	pool.SetMaxOpenConns(1) // so that the release's is known
	session := sessionID(c, pool)
	leader := c.run(c.lock(pool, "leader"), releasing)
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	// Nothing but the release is to be under way.
	leader.pause(c)
	c.network.blackHole()
	leader.cancel()
	leader.resume()
	leader.mustEnd(c)
	if lostWrite {
		exec(c, c.db, `UPDATE election_records SET version = version - 1 WHERE election_name = ?`, c.election)
	}
	for _, f := range followers {
		f.pauseAfterUpdate(true)
	}
	successor, others := whoLeads(c, followers, c.pace.takeoverWithin())
	c.network.forward()
	eventually(c, 20*time.Second, "the server has executed the release", func() bool {
		return countSessions(c, c.db, `ID = ?`, session) == 0
	})
	return intruded(c, successor, others)
}

// The leader shares its pool with an application that begins transactions by Exec: the COMMIT went
// to another session, or never came. So the lease is written inside of a transaction, and nobody
// sees it. When the session ends, as sessions do, all of that is gone, and a follower leads beside
// the leader.
func openTransaction(c *contest) hazardResult {
	pool := openOne(c, c.config, "")
	session := sessionID(c, pool)
	exec(c, pool, `BEGIN`)
	leader := c.run(c.lock(pool, "leader"))
	leader.mustLead(c, 20*time.Second)
	leader.mustRenew(c, 2)
	for i := range 3 {
		c.run(c.lock(c.db, fmt.Sprintf("follower %d", i+1)))
	}
	leader.mustRenew(c, 3)
	if holder := table(c, c.db, `SELECT leader_name FROM election_records WHERE election_name = ?`, c.election); c.ours && holder != "leader" {
		c.Errorf("others see the election held by %q", holder)
	}
	_, _ = c.db.ExecContext(c.Context(), fmt.Sprintf(`KILL %d`, session)) // fails if it has ended already
	ended := time.Now()
	eventually(c, 20*time.Second, "a lease has passed since the session's end", func() bool { return time.Since(ended) > c.pace.lease })
	if c.ours && !leader.leads() {
		c.Error("the leader lost its lease")
	}
	return overlapped(c.candidates...)
}

// The leader shares its pool with an application that changes the session's default database, and
// there are tables of the same names: the leader finds no row, makes one and goes on, and so does
// whoever waited for the lease to end.
func otherDefaultDatabase(c *contest) hazardResult {
	other := newConfig(c)
	if err := mysqllock.Migrate(c.Context(), open(c, other)); err != nil {
		c.Fatal(err)
	}
	pool := openOne(c, c.config, "")
	leader := c.run(c.lock(pool, "leader"))
	leader.mustLead(c, 20*time.Second)
	followers := c.follow(3)
	exec(c, pool, `USE `+other.DBName)
	changed := time.Now()
	if !c.ours {
		successor, _ := whoLeads(c, followers, c.pace.takeoverWithin())
		leader.mustRenew(c, 5) // both go on
		successor.mustRenew(c, 5)
		leader.mustRenew(c, 1)
		o := overlapped(c.candidates...)
		o.note = "and no end"
		return o
	}
	eventually(c, 20*time.Second, "two leases have passed", func() bool { return time.Since(changed) > 2*c.pace.lease })
	leader.mustRenew(c, 2)
	if n := len(leader.led(time.Now())); n != 1 || !leader.leads() {
		c.Errorf("the leader had %d terms (leads now: %t)", n, leader.leads())
	}
	return overlapped(c.candidates...)
}

// A candidate vanishes, with neither FIN nor RST, at each packet of a takeover and of a Create in
// turn. Whatever the server has of it by then must not be in another candidate's way: a takeover
// that was a transaction of several packets would keep its locks until the server's wait_timeout, 8
// hours later.
func TestHazardOfATakeoverThatIsCutOffAtAnyPacketHindersNobody(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	patient := mysqllock.WithOperationTimeout(time.Second) // on a busy machine
	// attempt cuts a candidate off after n packets; negative: never.
	attempt := func(t *testing.T, election string, n int) (packets int) {
		network := newSevered(t)
		pool := open(t, network.config(config))
		pool.SetMaxOpenConns(1)
		if err := pool.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		lock := newLock(t, pool, election, "cut off", patient)
		network.after(n)
		if err := tryTakeOver(t.Context(), lock); (err == nil) != (n < 0) {
			t.Fatalf("after %d packets: %v", n, err)
		}
		packets = network.count()
		if n < 0 {
			return packets
		}
		start := time.Now()
		other := newLock(t, db, election, "other", patient)
		eventually(t, 5*time.Second, "another candidate leads", func() bool { return tryTakeOver(t.Context(), other) == nil })
		t.Logf("HAZARD | h: cut off after packet %d of a %s | another candidate leads %v later", n, election, time.Since(start).Round(time.Millisecond))
		if err := other.Update(t.Context(), record("other")); err != nil {
			t.Errorf("its renewal: %v", err)
		}
		if _, held := lock.FencingToken(); held {
			t.Error("the candidate that was cut off holds a token")
		}
		return packets
	}
	for _, operation := range []string{"Create", "takeover"} {
		prepare := func(t *testing.T, election string) {
			if operation == "takeover" {
				takeOver(t, newLock(t, db, election, "gone", patient))
			}
		}
		prepare(t, operation)
		packets := attempt(t, operation, -1)
		if packets < 3 {
			t.Fatalf("%s took %d packets only", operation, packets)
		}
		var tests []test
		for n := range packets + 1 {
			tests = append(tests, test{fmt.Sprintf("%s, %d of %d", operation, n, packets), func(t *testing.T) {
				election := fmt.Sprintf("%s %d", operation, n)
				prepare(t, election)
				attempt(t, election, n)
			}})
		}
		together(t, tests...)
	}
}

// Nobody told the lock the elector's timings. A tenth of this lease is five to ten times as long as
// they leave for an operation, and the reply to the leader's last renewal takes almost that long.
func TestHazardOfALateSuccessMakesNoSecondLeaderWithoutWithTimings(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	p := cadence{10 * time.Second, 9600 * time.Millisecond, 200 * time.Millisecond}
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
