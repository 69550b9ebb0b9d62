package mysqllock_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

func TestTimingsThatLeaveNoRoomAreRefused(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	lock := func(opts ...mysqllock.Option) (*mysqllock.Lock, error) {
		return mysqllock.New(db, "e", resourcelock.ResourceLockConfig{Identity: "a"}, opts...)
	}
	const why = " don't leave 50ms for an operation: (LeaseDuration - RenewDeadline - RetryPeriod) / 2 must be at least that, " +
		"RenewDeadline more than 1.2 times RetryPeriod, and LeaseDuration whole seconds; "
	for _, c := range []struct {
		cadence
		given, instead string // "" if they are accepted
	}{
		{cadence: cadence{15 * time.Second, 10 * time.Second, 2 * time.Second}},
		{cadence: cadence{60 * time.Second, 40 * time.Second, 15 * time.Second}},
		{cadence: cadence{time.Second, 700 * time.Millisecond, 200 * time.Millisecond}}, // leaves exactly 50ms
		{cadence{time.Second, 701 * time.Millisecond, 200 * time.Millisecond}, "LeaseDuration 1s, RenewDeadline 701ms and RetryPeriod 200ms", "1s, 666ms and 133ms"},
		{cadence{15 * time.Second, 13 * time.Second, 2 * time.Second}, "LeaseDuration 15s, RenewDeadline 13s and RetryPeriod 2s", "15s, 10s and 2s"},
		{cadence{15 * time.Second, 15 * time.Second, 2 * time.Second}, "LeaseDuration 15s, RenewDeadline 15s and RetryPeriod 2s", "15s, 10s and 2s"},
		{cadence{15 * time.Second, 2400 * time.Millisecond, 2 * time.Second}, "LeaseDuration 15s, RenewDeadline 2.4s and RetryPeriod 2s", "15s, 10s and 2s"},
		{cadence{15 * time.Second, 10 * time.Second, 0}, "LeaseDuration 15s, RenewDeadline 10s and RetryPeriod 0s", "15s, 10s and 2s"},
		{cadence{15 * time.Second, 10 * time.Second, -time.Second}, "LeaseDuration 15s, RenewDeadline 10s and RetryPeriod -1s", "15s, 10s and 2s"},
		{cadence{15 * time.Second, 0, 2 * time.Second}, "LeaseDuration 15s, RenewDeadline 0s and RetryPeriod 2s", "15s, 10s and 2s"},
		{cadence{1900 * time.Millisecond, 1200 * time.Millisecond, 200 * time.Millisecond}, "LeaseDuration 1.9s, RenewDeadline 1.2s and RetryPeriod 200ms", "2s, 1.333s and 266ms"},
		{cadence{0, 0, 0}, "LeaseDuration 0s, RenewDeadline 0s and RetryPeriod 0s", "1s, 666ms and 133ms"},
		{cadence{-time.Second, 10 * time.Second, 2 * time.Second}, "LeaseDuration -1s, RenewDeadline 10s and RetryPeriod 2s", "1s, 666ms and 133ms"},
	} {
		_, err := lock(c.option())
		if c.given == "" {
			if err != nil {
				t.Errorf("%v: %v", c.cadence, err)
			}
			continue
		}
		if want := `mysqllock: new "e": WithTimings: ` + c.given + why + c.instead + ` would work`; err == nil || err.Error() != want {
			t.Errorf("%v:\nerror %v\nwant  %s", c.cadence, err, want)
		}
		// What is proposed is accepted, by client-go too.
		var texts [3]string
		if _, err := fmt.Sscanf(strings.NewReplacer(",", "", " and", "").Replace(c.instead), "%s %s %s", &texts[0], &texts[1], &texts[2]); err != nil {
			t.Fatal(err)
		}
		var proposed [3]time.Duration
		for i, text := range texts {
			if proposed[i], err = time.ParseDuration(text); err != nil {
				t.Fatal(err)
			}
		}
		accepted, err := lock(mysqllock.WithTimings(proposed[0], proposed[1], proposed[2]))
		if err != nil {
			t.Errorf("%s: %v", c.instead, err)
			continue
		}
		_, err = leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: accepted, LeaseDuration: proposed[0], RenewDeadline: proposed[1], RetryPeriod: proposed[2],
			Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) {}, OnStoppedLeading: func() {}},
		})
		if err != nil {
			t.Errorf("%s: %v", c.instead, err)
		}
	}

	defaults := mysqllock.WithTimings(15*time.Second, 10*time.Second, 2*time.Second)
	if _, err := lock(defaults, mysqllock.WithOperationTimeout(1500*time.Millisecond)); err != nil {
		t.Error(err)
	}
	const tooLong = `mysqllock: new "e": WithOperationTimeout(1.501s) is longer than the 1.5s that WithTimings leaves for an operation; leave WithOperationTimeout out`
	for _, opts := range [][]mysqllock.Option{
		{defaults, mysqllock.WithOperationTimeout(1501 * time.Millisecond)},
		{mysqllock.WithOperationTimeout(1501 * time.Millisecond), defaults},
	} {
		if _, err := lock(opts...); err == nil || err.Error() != tooLong {
			t.Errorf("error %v, want %s", err, tooLong)
		}
	}

	// An elector with another LeaseDuration than the one that was told.
	accepted, err := lock(defaults)
	if err != nil {
		t.Fatal(err)
	}
	other := record("a")
	other.LeaseDurationSeconds = 14
	const mismatch = `mysqllock: create "e": leaseDurationSeconds is 14, WithTimings says 15s; give WithTimings the elector's own LeaseDuration`
	if err := accepted.Create(t.Context(), other); err == nil || err.Error() != mismatch {
		t.Errorf("error %v, want %s", err, mismatch)
	}
	if err := accepted.Create(t.Context(), record("a")); err != nil {
		t.Error(err)
	}
	if err := accepted.Update(t.Context(), record("")); err != nil {
		t.Error(err)
	}
}
