package main

import (
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

var ran = regexp.MustCompile(`"ran".* run=(\d+)`)

// Three processes, of which the leader is stopped, killed and paused: every run has a number of its own.
func TestNoRunIsLostOrCountedTwice(t *testing.T) {
	db := exampletest.NewDatabase(t)
	leaders := exampletest.NewLeaders(t, "Starting workers", "All workers finished")
	var mu sync.Mutex
	runs := map[int]string{}
	seen := func(p *exampletest.Process, line string) {
		leaders.Seen(p, line)
		if found := ran.FindStringSubmatch(line); found != nil {
			n, err := strconv.Atoi(found[1])
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if other := runs[n]; other != "" {
				t.Errorf("run %d was counted by %s and %s", n, other, p.Name)
			}
			runs[n] = p.Name
		}
	}
	metrics := map[*exampletest.Process]string{}
	start := func(name string) *exampletest.Process {
		address := exampletest.FreeAddress(t)
		p := exampletest.Start(t, name, db.Env, seen, "-interval=50ms", "-lease-duration=2s", "-renew-deadline=1s", "-retry-period=200ms",
			"-metrics-bind-address="+address, "-health-probe-bind-address="+exampletest.FreeAddress(t))
		metrics[p] = "http://" + address + "/metrics"
		return p
	}
	all := []*exampletest.Process{start("a"), start("b"), start("c")}
	leader := leaders.Who(all...)
	leader.Prints(t, `"ran"`, 5)
	exampletest.Eventually(t, "the leader's metric", func() bool {
		response, err := http.Get(metrics[leader])
		if err != nil {
			return false
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		return err == nil && strings.Contains(string(text), `leader_election_master_status{name="off-cluster"} 1`) && strings.Contains(string(text), `go_sql_open_connections{db_name="work"}`)
	})

	leader.Signal(t, syscall.SIGTERM)
	if code := leader.Ends(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	all = append(exampletest.Others(all, leader), start("d"))
	leader = leaders.Who(all...)
	leader.Prints(t, `"ran"`, 5)

	leaders.Gone(leader)
	leader.Kill()
	leader.Ends(t)
	all = append(exampletest.Others(all, leader), start("e"))
	leader = leaders.Who(all...)
	leader.Prints(t, `"ran"`, 5)

	leaders.Gone(leader)
	leader.Signal(t, syscall.SIGSTOP)
	next := leaders.Who(exampletest.Others(all, leader)...)
	next.Prints(t, `"ran"`, 5)
	leader.Signal(t, syscall.SIGCONT)
	if code := leader.Ends(t); code != 1 {
		t.Errorf("exit code %d of a leader that was paused", code)
	}
	next.Prints(t, `"ran"`, 10)
	next.Signal(t, syscall.SIGTERM)
	next.Ends(t)

	mu.Lock()
	defer mu.Unlock()
	// The numbers that somebody printed; a process that was killed may have
	// committed one more than it printed.
	var total int
	if err := db.QueryRowContext(t.Context(), `SELECT runs FROM jobs`).Scan(&total); err != nil {
		t.Fatal(err)
	}
	if missing := total - len(runs); missing < 0 || missing > 1 {
		t.Errorf("%d runs in the table, %d were printed", total, len(runs))
	}
}
