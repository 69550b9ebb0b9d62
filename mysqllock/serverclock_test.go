package mysqllock_test

import (
	"bytes"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// uptime is for how many seconds the server has been up.
func uptime(t testing.TB, db *sql.DB) time.Duration {
	t.Helper()
	var name string
	var seconds int64
	if err := db.QueryRowContext(t.Context(), `SHOW GLOBAL STATUS LIKE 'Uptime'`).Scan(&name, &seconds); err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds) * time.Second
}

// waitForUptime waits until the server has been up since before a row of that age was written, with
// some to spare, as the uptime is whole seconds. Without that a row which is made older than it is
// would be one of before a restart.
func waitForUptime(t testing.TB, db *sql.DB, age time.Duration) {
	t.Helper()
	eventually(t, age+30*time.Second, "the server is old enough", func() bool { return uptime(t, db) > age+3*time.Second })
}

// age is how long ago the server wrote the row, by its own clock.
func age(t testing.TB, db *sql.DB, election string) time.Duration {
	t.Helper()
	var micros int64
	err := db.QueryRowContext(t.Context(), `SELECT TIMESTAMPDIFF(MICROSECOND, last_update, UTC_TIMESTAMP(6)) FROM election_records WHERE election_name = ?`, election).Scan(&micros)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(micros) * time.Microsecond
}

// setAge makes the server believe that it wrote the row so long ago.
func setAge(t testing.TB, db *sql.DB, election string, age time.Duration) {
	t.Helper()
	exec(t, db, `UPDATE election_records SET last_update = UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND WHERE election_name = ?`, age.Microseconds(), election)
}

// holderSeenBy is whom the lock's Get names.
func holderSeenBy(t testing.TB, lock *mysqllock.Lock) string {
	t.Helper()
	r, _, err := lock.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r.HolderIdentity
}

func TestServerClockMakesAColdStartTakeAFewRetriesInsteadOfALease(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	waitForUptime(t, db, 0)
	c := cadence{4 * time.Second, 2400 * time.Millisecond, 400 * time.Millisecond}
	const byClock, byObservation = "by the server's clock", "by observation"
	startAll := func(election string, n int) []*candidate {
		opts := []mysqllock.Option{c.option()}
		if election == byClock {
			opts = append(opts, mysqllock.WithServerClock())
		}
		var candidates []*candidate
		for i := range n {
			candidates = append(candidates, start(t, newLock(t, db, election, fmt.Sprintf("%d of %d", i, n), opts...), c))
		}
		return candidates
	}
	for _, election := range []string{byClock, byObservation} {
		first := startAll(election, 2)
		whoLeads(t, first, 30*time.Second)
		for _, candidate := range first {
			candidate.stop()
		}
	}
	for _, election := range []string{byClock, byObservation} {
		eventually(t, 30*time.Second, "the lease is over", func() bool { return age(t, db, election) > c.lease+500*time.Millisecond })
	}
	began := time.Now()
	clocked, observed := startAll(byClock, 3), startAll(byObservation, 3)
	firstByClock, _ := whoLeads(t, clocked, 30*time.Second)
	firstByObservation, _ := whoLeads(t, observed, 30*time.Second)
	withClock := firstByClock.from.Sub(began)
	without := firstByObservation.from.Sub(began)
	t.Logf("with WithServerClock %v, without %v, retry period %v", withClock.Round(time.Millisecond), without.Round(time.Millisecond), c.retry)
	if limit := 5 * c.retry; withClock > limit {
		t.Errorf("a leader after %v, want it within %v", withClock, limit)
	}
	if without < c.lease || without-withClock < c.lease/2 {
		t.Errorf("without the option a leader after %v, which is sooner than a lease of %v: there was nothing to compare", without, c.lease)
	}
}

// A server's clock that steps forward makes every row look old at once: two believed leaders for
// 2.2 s, when a first look was enough.
func TestServerClockTakesOverNoLiveLeaderWhoseRowLooksExpired(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	c := cadence{5 * time.Second, 2500 * time.Millisecond, time.Second}
	const ahead = 6 * time.Second // more than lease and margin
	waitForUptime(t, db, ahead+c.retry)
	live := newLock(t, db, "e", "leader", c.option())
	if err := live.Create(t.Context(), c.record("leader")); err != nil {
		t.Fatal(err)
	}
	token, _ := live.FencingToken()
	// Each renewal looks that old as soon as it is written, and so does this one.
	exec(t, db, fmt.Sprintf(`CREATE TRIGGER ahead BEFORE UPDATE ON election_records FOR EACH ROW SET NEW.last_update = NEW.last_update - INTERVAL %d SECOND`, int(ahead.Seconds())))
	if err := live.Update(t.Context(), c.record("leader")); err != nil {
		t.Fatal(err)
	}

	// Renewals as its elector would send them. The ticker is the retry period.
	renewals := time.NewTicker(c.retry)
	defer renewals.Stop()
	var followers []*candidate
	for i := range 2 {
		followers = append(followers, start(t, newLock(t, db, "e", fmt.Sprintf("follower %d", i), c.option(), mysqllock.WithServerClock()), c))
	}
	watcher := newLock(t, db, "e", "watcher", c.option(), mysqllock.WithServerClock())
	looks := time.NewTicker(30 * time.Millisecond)
	defer looks.Stop()
	last := time.Now()
	for renewed := 0; renewed < 6; {
		select {
		case <-renewals.C:
			if err := live.Update(t.Context(), c.record("leader")); err != nil {
				t.Fatalf("renewal %d: %v", renewed, err)
			}
			if gap := time.Since(last); gap > 2*c.retry {
				t.Logf("this machine kept the leader from renewing for %v", gap) // a takeover would be right
			}
			last = time.Now()
			renewed++
		case <-looks.C:
			if holder := holderSeenBy(t, watcher); holder != "leader" {
				t.Fatalf("after %d renewals, %v after the last: reported as held by %q", renewed, time.Since(last), holder)
			}
		}
	}
	for i, f := range followers {
		if f.told("started") {
			t.Errorf("follower %d took over", i)
		}
		f.stop()
	}
	if now, held := live.FencingToken(); now != token || !held {
		t.Errorf("the leader's token was %d, is %d (%t)", token, now, held)
	}
	if a := age(t, db, "e"); a < c.lease+c.lease/10 {
		t.Fatalf("the row looks only %v old: nothing was tried", a)
	}
	// It was the renewals that kept it.
	eventually(t, 10*time.Second, "the row of a leader that renews no more is presented as released", func() bool { return holderSeenBy(t, watcher) == "" })
}

// After a failover or a restart the server's clock may have jumped, so that it can't tell how old
// the row is.
func TestServerClockLeavesARowOfAnotherServerOrOfBeforeARestartToObservation(t *testing.T) {
	t.Parallel()
	own, config := ownServer(t)
	c := cadence{2 * time.Second, 1200 * time.Millisecond, 200 * time.Millisecond}
	over := c.lease + 500*time.Millisecond

	// Two elections each: one that an elector takes over, one to look at.
	before := open(t, config)
	if err := mysqllock.Migrate(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	restarted := []string{"restarted, followed", "restarted, watched"}
	for _, election := range restarted {
		if err := newLock(t, before, election, "gone", c.option()).Create(t.Context(), c.record("gone")); err != nil {
			t.Fatal(err)
		}
	}
	if err := own.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := own.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	db := open(t, config)

	// Rows that the shared server wrote, as a replica of it would have them.
	replaced := []string{"replaced, followed", "replaced, watched"}
	source, _ := newTables(t)
	for _, election := range replaced {
		if err := newLock(t, source, election, "gone", c.option()).Create(t.Context(), c.record("gone")); err != nil {
			t.Fatal(err)
		}
		copyElection(t, source, db, election)
	}
	waitForUptime(t, db, over+c.lease) // so that only the server's name tells
	for _, election := range replaced {
		setAge(t, db, election, over)
	}
	for _, election := range restarted {
		setAge(t, db, election, time.Minute) // the clock stepped while it was down
	}

	began := time.Now()
	watchers := map[string]*mysqllock.Lock{}
	followers := map[string]*candidate{}
	for i := range 2 {
		for _, election := range [][]string{replaced, restarted}[i] {
			lock := newLock(t, db, election, "next", c.option(), mysqllock.WithServerClock())
			if strings.HasSuffix(election, "followed") {
				followers[election] = start(t, lock, c)
			} else {
				watchers[election] = lock
			}
		}
	}
	waiting := func() (n int) {
		for _, f := range followers {
			if !f.leads() {
				n++
			}
		}
		return n
	}
	eventually(t, 30*time.Second, "the followers lead", func() bool {
		for election, w := range watchers {
			if holder := holderSeenBy(t, w); holder != "gone" {
				t.Fatalf("%s: reported as held by %q after %v", election, holder, time.Since(began))
			}
		}
		return waiting() == 0
	})
	for election, f := range followers {
		t.Logf("%s: taken over after %v, with a lease of %v", election, f.from.Sub(began).Round(time.Millisecond), c.lease)
		if took := f.from.Sub(began); took < c.lease {
			t.Errorf("%s: taken over after %v, before a lease of %v was over", election, took, c.lease)
		}
	}

	// It was the server's name and its uptime that kept them.
	exec(t, db, `UPDATE election_records SET server = LEFT(CONCAT(@@hostname, ':', @@port, '#', @@server_id), 255) WHERE election_name = ?`, replaced[1])
	setAge(t, db, restarted[1], over)
	for election, w := range watchers {
		eventually(t, 10*time.Second, election+": presented as released", func() bool { return holderSeenBy(t, w) == "" })
	}
}

// copyElection copies an election's two rows, as replication does.
func copyElection(t testing.TB, from, to *sql.DB, election string) {
	t.Helper()
	for table, columns := range map[string]string{
		"election_records": "election_name, leader_name, last_update, leader_uid, lease_duration_seconds, acquire_time, renew_time, leader_transitions, strategy, preferred_holder, server, version",
		"election_fences":  "election_name, fencing_token, leader_uid",
	} {
		n := strings.Count(columns, ",") + 1
		values, into := make([]sql.NullString, n), make([]any, n)
		for i := range values {
			into[i] = &values[i]
		}
		err := from.QueryRowContext(t.Context(), fmt.Sprintf(`SELECT %s FROM %s WHERE election_name = ?`, columns, table), election).Scan(into...)
		if err != nil {
			t.Fatal(err)
		}
		args := make([]any, n)
		for i, v := range values {
			args[i] = v
		}
		exec(t, to, fmt.Sprintf(`INSERT INTO %s (%s) VALUES (?%s)`, table, columns, strings.Repeat(", ?", n-1)), args...)
	}
}

func TestServerClockSaysNothingOfOnesOwnLeaseAndOfAReleasedOne(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	c := cadence{4 * time.Second, 2400 * time.Millisecond, 400 * time.Millisecond}
	waitForUptime(t, db, 3*c.lease)
	own := newLock(t, db, "held", "a", c.option(), mysqllock.WithServerClock())
	if err := own.Create(t.Context(), c.record("a")); err != nil {
		t.Fatal(err)
	}
	token, _ := own.FencingToken()
	releaser := newLock(t, db, "released", "a", c.option())
	if err := releaser.Create(t.Context(), c.record("a")); err != nil {
		t.Fatal(err)
	}
	if err := releaser.Update(t.Context(), record("")); err != nil {
		t.Fatal(err)
	}
	for _, election := range []string{"held", "released"} {
		setAge(t, db, election, 2*c.lease)
	}

	released := newLock(t, db, "released", "b", c.option(), mysqllock.WithServerClock())
	duplicate := newLock(t, db, "held", "a", c.option(), mysqllock.WithServerClock())
	other := newLock(t, db, "held", "b", c.option(), mysqllock.WithServerClock())
	if holder := holderSeenBy(t, duplicate); !strings.HasPrefix(holder, "a (another candidate, uid ") {
		t.Errorf("a duplicate's first look: held by %q", holder)
	}
	if holder := holderSeenBy(t, other); holder != "a" {
		t.Errorf("another's first look: held by %q", holder)
	}
	var ownRaw, releasedRaw []byte
	look := func() (goneForOthers bool) {
		r, raw, err := own.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if r.HolderIdentity != "a" || ownRaw != nil && !bytes.Equal(raw, ownRaw) {
			t.Fatalf("its own row: %+v, %s after %s", *r, raw, ownRaw)
		}
		ownRaw = raw
		r, raw, err = released.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if r.HolderIdentity != "" || releasedRaw != nil && !bytes.Equal(raw, releasedRaw) {
			t.Fatalf("a released row: %+v, %s after %s", *r, raw, releasedRaw)
		}
		releasedRaw = raw
		return holderSeenBy(t, duplicate) == "" && holderSeenBy(t, other) == ""
	}
	eventually(t, 10*time.Second, "others find the lease over", look)
	look() // its owner still doesn't

	if err := own.Update(t.Context(), c.record("a")); err != nil {
		t.Errorf("the owner's renewal: %v", err)
	}
	if now, held := own.FencingToken(); now != token || !held {
		t.Errorf("the owner's token was %d, is %d (%t)", token, now, held)
	}
	setAge(t, db, "held", 2*c.lease)
	eventually(t, 10*time.Second, "the duplicate finds the renewed lease over", func() bool { return holderSeenBy(t, duplicate) == "" })
	if err := duplicate.Update(t.Context(), c.record("a")); err != nil {
		t.Errorf("the duplicate's takeover: %v", err)
	}
	if now, held := duplicate.FencingToken(); now <= token || !held {
		t.Errorf("the duplicate's token is %d (%t), the earlier one %d", now, held, token)
	}
}

func TestServerClockNeedsTwoSightsSoFarApartThatALeaderWouldHaveRenewed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		opts  []mysqllock.Option
		lease int           // seconds, of the row
		apart time.Duration // at least
	}{
		{"two retry periods as WithTimings tells them", []mysqllock.Option{mysqllock.WithTimings(4*time.Second, 2*time.Second, 400*time.Millisecond)}, 4, 800 * time.Millisecond},
		{"whatever the row's lease is", []mysqllock.Option{mysqllock.WithTimings(4*time.Second, 2*time.Second, 300*time.Millisecond)}, 9, 600 * time.Millisecond},
		{"a third of the row's lease without WithTimings", []mysqllock.Option{mysqllock.WithOperationTimeout(time.Second)}, 3, time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, _ := newTables(t)
			lease := time.Duration(test.lease) * time.Second
			waitForUptime(t, db, lease+10*time.Second)
			held := record("a")
			held.LeaseDurationSeconds = test.lease
			if err := newLock(t, db, "e", "a").Create(t.Context(), held); err != nil {
				t.Fatal(err)
			}
			setAge(t, db, "e", lease+5*time.Second)
			watcher := newLock(t, db, "e", "b", append(test.opts, mysqllock.WithServerClock())...)
			// Once more after a renewal: sights of different versions don't count together.
			for round := range 2 {
				beforeFirst := time.Now()
				if holder := holderSeenBy(t, watcher); holder != "a" {
					t.Fatalf("round %d: at first sight held by %q", round, holder)
				}
				afterFirst := time.Now()
				looks := 1
				eventually(t, 10*time.Second, "presented as released", func() bool {
					before := time.Now()
					released := holderSeenBy(t, watcher) == ""
					after := time.Now()
					looks++
					if released && after.Sub(beforeFirst) < test.apart {
						t.Errorf("round %d: presented as released %v after the first sight", round, after.Sub(beforeFirst))
					}
					if !released && before.Sub(afterFirst) >= test.apart {
						t.Errorf("round %d: not presented as released %v after the first sight", round, before.Sub(afterFirst))
					}
					return released
				})
				t.Logf("round %d: %d looks", round, looks)
				exec(t, db, `UPDATE election_records SET version = version + 1`)
			}
		})
	}
}

func TestServerClockCallsALeaseOverATenthAndAtLeastHalfASecondAfterItsEnd(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	cases := []struct{ stored, over time.Duration }{
		{1 * time.Second, 1500 * time.Millisecond},
		{4 * time.Second, 4500 * time.Millisecond},
		{7 * time.Second, 7700 * time.Millisecond},
	}
	waitForUptime(t, db, cases[len(cases)-1].over)
	for _, test := range cases {
		election := test.stored.String()
		held := record("a")
		held.LeaseDurationSeconds = int(test.stored / time.Second)
		if err := newLock(t, db, election, "a", mysqllock.WithOperationTimeout(10*time.Second)).Create(t.Context(), held); err != nil {
			t.Fatal(err)
		}
		setAge(t, db, election, test.over-700*time.Millisecond)
		// Its own lease duration says nothing about the row's.
		watcher := newLock(t, db, election, "b", mysqllock.WithTimings(3*time.Second, time.Second, 10*time.Millisecond), mysqllock.WithServerClock())
		looks := 0
		eventually(t, 10*time.Second, election+": presented as released", func() bool {
			before := age(t, db, election)
			released := holderSeenBy(t, watcher) == ""
			after := age(t, db, election)
			if looks++; looks == 1 {
				return false // the first of two sights
			}
			if released && after <= test.over {
				t.Errorf("a lease of %v is over after %v", test.stored, after)
			}
			if !released && before > test.over {
				t.Errorf("a lease of %v is not over after %v", test.stored, before)
			}
			return released
		})
		t.Logf("a lease of %v: %d looks", test.stored, looks)
	}
}
