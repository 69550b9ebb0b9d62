package main

import (
	"context"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// campaign runs client-go's elector until the test ends, again and again, as a process that is started again would.
func (d *database) campaign(t *testing.T, identity string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
	})
	var stop atomic.Pointer[context.CancelFunc]
	lock, err := mysqllock.New(d.DB, "e", resourcelock.ResourceLockConfig{Identity: identity},
		mysqllock.WithTimings(3*time.Second, 2*time.Second, 300*time.Millisecond), mysqllock.WithStepDown(func() { (*stop.Load())() }))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			term, end := context.WithCancel(ctx)
			stop.Store(&end)
			elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
				Lock: lock, LeaseDuration: 3 * time.Second, RenewDeadline: 2 * time.Second, RetryPeriod: 300 * time.Millisecond, ReleaseOnCancel: true,
				Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) {}, OnStoppedLeading: func() {}},
			})
			if err != nil {
				t.Error(err)
				return
			}
			elector.Run(term)
			end()
		}
	}()
}

func (d *database) led(t *testing.T, by string) {
	t.Helper()
	eventually(t, by+" leads", func() bool {
		e, err := mysqllock.GetElection(t.Context(), d.DB, "e")
		return err == nil && e.Holder == by
	})
}

func TestStepDownHandsOverAndSaysToWhom(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	db.campaign(t, "worker-1")
	db.led(t, "worker-1")
	// Alone, it leads again.
	r := do(t, db.env, "step-down", "e", "-wait")
	r.is(t, 0, "worker-1 was asked to step down\nworker-1 leads again, as no other candidate took over after ", "")

	db.campaign(t, "worker-2")
	eventually(t, "it hands over to the other", func() bool {
		r = do(t, db.env, "step-down", "-wait", "e")
		return strings.Contains(r.stdout, "worker-2 leads after")
	})
	r.is(t, 0, "worker-1 was asked to step down\n", "")
	if !regexp.MustCompile(`\nworker-2 leads after \d+\.\ds\n$`).MatchString(r.stdout) {
		t.Errorf("%q", r.stdout)
	}
	do(t, db.env, "step-down", "e").is(t, 0, "worker-2 was asked to step down\n", "")
	db.led(t, "worker-1")
}

func TestStepDownAsksNobodyWhoDoesNotLead(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	do(t, db.env, "step-down", "e").is(t, exitRefused, "", `there is no election "e"`)
	lock := db.lead(t, "e", "worker-1", 15)
	db.silent(t, "e", 60)
	do(t, db.env, "step-down", "e").is(t, exitRefused, "", `"worker-1" has not renewed for 1m 0s and is gone`)
	db.silent(t, "e", 0)
	do(t, db.as(t, "SELECT"), "step-down", "e").is(t, exitFailed, "", "needs SELECT, INSERT and UPDATE")
	db.release(t, lock)
	do(t, db.env, "step-down", "e").is(t, exitRefused, "", "nobody leads")
}

func TestStepDownEndsIfNobodyElseLeads(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	db.lead(t, "e", "worker-1", 1) // for 13 s: nobody is there to step down
	db.exec(t, "UPDATE election_records SET last_update = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR WHERE election_name = 'e'")
	deaf := start(t, db.env, nil, "step-down", "e", "-wait")
	waits := func(p *process) {
		t.Helper()
		eventually(t, "it waits", func() bool { return p.stdout.String() == "worker-1 was asked to step down\n" })
	}
	waits(deaf)
	told := start(t, db.env, nil, "step-down", "e", "-wait")
	waits(told)
	told.signal(t, syscall.SIGTERM)
	if code := told.ends(t); code != exitFailed || !strings.Contains(told.stderr.String(), "ended before another term began") {
		t.Errorf("exit code %d: %s", code, told.stderr.String())
	}
	if code := deaf.ends(t); code != exitRefused || !strings.Contains(deaf.stderr.String(), "no other term has begun in 13s") {
		t.Errorf("exit code %d: %s", code, deaf.stderr.String())
	}
}
