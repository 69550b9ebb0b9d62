package main

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	ctrl "sigs.k8s.io/controller-runtime"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/exampletest"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// The lock sees a manager's timings, whatever it was told: what it logs of them has all three. Manager and server are real,
// the time is synctest's, so that minutes take milliseconds.
func TestTheLockSeesTheManagersTimings(t *testing.T) {
	db := exampletest.NewDatabase(t)
	if err := mysqllock.Migrate(t.Context(), db.DB); err != nil {
		t.Fatal(err)
	}
	defaults := mysqllock.WithTimings(15*time.Second, 10*time.Second, 2*time.Second)
	for _, c := range []struct {
		name                string
		lease, renew, retry time.Duration
		told                []mysqllock.Option
		logged              string // "" if there is nothing to say
		lost                bool   // the manager can't renew
	}{
		{name: "its defaults", lease: 15 * time.Second, renew: 10 * time.Second, retry: 2 * time.Second},
		{name: "its defaults, told", lease: 15 * time.Second, renew: 10 * time.Second, retry: 2 * time.Second, told: []mysqllock.Option{defaults}},
		{name: "OpenShift's", lease: 137 * time.Second, renew: 107 * time.Second, retry: 26 * time.Second},
		{name: "CSI sidecars'", lease: 15 * time.Second, renew: 10 * time.Second, retry: 5 * time.Second, logged: "LeaseDuration 15s, RenewDeadline 10s and RetryPeriod 5s don't leave"},
		{name: "longer ones", lease: 137 * time.Second, renew: 117 * time.Second, retry: 26 * time.Second, logged: "LeaseDuration 2m17s, RenewDeadline 1m57s and RetryPeriod 26s don't leave"},
		{name: "others than told", lease: 15 * time.Second, renew: 12 * time.Second, retry: 2 * time.Second, told: []mysqllock.Option{defaults}, logged: "RenewDeadline is 12s, WithTimings says 10s", lost: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pool, err := mysqllock.Open(db.Config)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = pool.Close() }() // its manager has returned
				lock, err := mysqllock.New(pool, c.name, resourcelock.ResourceLockConfig{Identity: "a"}, c.told...)
				if err != nil {
					t.Fatal(err)
				}
				var mu sync.Mutex
				var logs strings.Builder
				manager, err := ctrl.NewManager(&rest.Config{Host: "nowhere.invalid"}, ctrl.Options{ // it has no controllers
					Logger: funcr.New(func(_, line string) {
						mu.Lock()
						defer mu.Unlock()
						logs.WriteString(line + "\n")
					}, funcr.Options{}),
					Metrics:        metricsserver.Options{BindAddress: "0"},
					LeaderElection: true, LeaderElectionID: c.name, LeaderElectionResourceLockInterface: lock, LeaderElectionReleaseOnCancel: true,
					LeaseDuration: &c.lease, RenewDeadline: &c.renew, RetryPeriod: &c.retry,
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*c.retry)
				defer cancel()
				if err := manager.Start(ctx); (err != nil) != c.lost {
					t.Errorf("the manager ended with %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				if !strings.Contains(logs.String(), c.logged) || c.logged == "" && strings.Contains(logs.String(), "RenewDeadline") {
					t.Errorf("logged:\n%s", logs.String())
				}
			})
		})
	}
}
