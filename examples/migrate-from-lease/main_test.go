package main

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/apiserver"
	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// Three replicas go from step 1 to step 3 and back, one after the other, by SIGTERM or by a crash, and at no moment do two
// lead.
func TestARollingUpdateNeverHasTwoLeaders(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			db, api := exampletest.NewDatabase(t), apiserver.New(t)
			kubeconfig := api.Kubeconfig(t)
			leaders := exampletest.NewLeaders(t, " leads (step", " leads no more")
			n := 0
			start := func(step int) *exampletest.Process {
				n++
				id := fmt.Sprintf("replica-%d", n)
				return exampletest.Start(t, id, db.Env, leaders.Seen, "-id="+id, fmt.Sprintf("-step=%d", step),
					"-kubeconfig="+kubeconfig, "-lease-duration=2s", "-renew-deadline=1s", "-retry-period=200ms")
			}
			replicas := []*exampletest.Process{start(1), start(1), start(1)}
			leaders.Who(replicas...)
			for _, step := range []int{2, 3, 2, 1} {
				for i := range replicas {
					old := replicas[i]
					old.Signal(t, signal)
					old.Ends(t)
					leaders.Gone(old)
					replicas[i] = start(step)
					replicas[i].Prints(t, " sees that ", 1)
					leaders.Who(replicas...)
				}
				leader := leaders.Who(replicas...)
				leader.Prints(t, fmt.Sprintf("leads (step %d)", step), 1)
			}
			t.Logf("leaders: %v", leaders.Changes())
		})
	}
}

func TestBadFlagsAreNamed(t *testing.T) {
	for flag, message := range map[string]string{"-step=4": "-step is 4; give 1, 2 or 3", "-lease=x": `-lease is "x"; give it as namespace/name`} {
		p := exampletest.Start(t, flag, nil, nil, "-step=1", flag)
		if code := p.Ends(t); code != 1 {
			t.Errorf("%s: exit code %d", flag, code)
		}
		p.Prints(t, message, 1)
	}
}
