package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/apiserver"
	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

type replica struct {
	*exampletest.Process
	metrics, probes string
}

func page(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return fmt.Sprint(response.StatusCode, " ", string(text))
}

// Two replicas, and a rolling restart: at no moment do two lead, and only the leader reconciles.
func TestARollingRestart(t *testing.T) {
	db, api := exampletest.NewDatabase(t), apiserver.New(t)
	kubeconfig := api.Kubeconfig(t)
	api.Put("/api/v1/namespaces/default/configmaps/settings", apiserver.Object{"data": map[string]any{"color": "blue"}})
	leaders := exampletest.NewLeaders(t, `Starting workers`, `All workers finished`)
	n := 0
	start := func() replica {
		n++
		r := replica{metrics: exampletest.FreeAddress(t), probes: exampletest.FreeAddress(t)}
		pod := fmt.Sprintf("operator-%d", n)
		api.Put("/api/v1/namespaces/default/pods/"+pod, apiserver.Object{})
		r.Process = exampletest.Start(t, pod, append(db.Env, "POD_NAME="+pod, "POD_NAMESPACE=default"), leaders.Seen,
			"-kubeconfig="+kubeconfig, "-leader-elect", "-metrics-bind-address="+r.metrics, "-health-probe-bind-address="+r.probes,
			"-lease-duration=2s", "-renew-deadline=1s", "-retry-period=200ms")
		exampletest.Eventually(t, pod+" is ready", func() bool {
			return strings.HasPrefix(page(t, "http://"+r.probes+"/readyz"), "200") && strings.HasPrefix(page(t, "http://"+r.probes+"/healthz"), "200")
		})
		return r
	}
	status := func(r replica) string { return page(t, "http://"+r.metrics+"/metrics") }
	const leads, waits = `leader_election_master_status{name="example-operator"} 1`, `leader_election_master_status{name="example-operator"} 0`

	first, second := start(), start()
	leader := leaders.Who(first.Process, second.Process)
	if leader == second.Process {
		first, second = second, first
	}
	first.Prints(t, "reconciled", 1)
	exampletest.Eventually(t, "the leader's metric", func() bool { return strings.Contains(status(first), leads) })
	exampletest.Eventually(t, "the other one's metric", func() bool { return strings.Contains(status(second), waits) })
	if !strings.Contains(status(first), `go_sql_open_connections{db_name="`+db.Config.DBName+`"}`) {
		t.Error("no statistics of the pool")
	}

	// SIGTERM: handed over without waiting for the lease.
	third := start()
	first.Signal(t, syscall.SIGTERM)
	if code := first.Ends(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	next := leaders.Who(second.Process, third.Process)
	next.Prints(t, "reconciled", 1)

	// A crash.
	leaders.Gone(next)
	next.Kill()
	other := exampletest.Others([]*exampletest.Process{second.Process, third.Process}, next)[0]
	leaders.Who(other)
	api.Put("/api/v1/namespaces/default/configmaps/settings", apiserver.Object{"data": map[string]any{"color": "red"}})
	other.Prints(t, "reconciled", 2)

	// Somebody takes the lease: the process must end.
	if _, err := db.ExecContext(t.Context(), `UPDATE election_records SET leader_name = 'other', leader_uid = 'x', version = version + 1`); err != nil {
		t.Fatal(err)
	}
	if code := other.Ends(t); code != 1 {
		t.Errorf("exit code %d of a leader that lost its lease", code)
	}
	other.Prints(t, "leader election lost", 1)

	exampletest.Eventually(t, "an event on the Pod", func() bool {
		for _, event := range api.All("/events/") {
			text := fmt.Sprint(event)
			if strings.Contains(text, " became leader") && strings.Contains(text, "kind:Pod name:"+first.Name+" ") {
				return true
			}
		}
		return false
	})
	if strings.Contains(second.Output()+third.Output()+first.Output(), db.Config.Passwd) {
		t.Error("the password is in the log")
	}
}

// A leader that can't reach its API server does no work: a replica that can takes its place.
func TestAReplicaThatIsCutOffFromItsAPIServerHandsOver(t *testing.T) {
	db := exampletest.NewDatabase(t)
	leaders := exampletest.NewLeaders(t, `Starting workers`, `All workers finished`)
	servers := map[*exampletest.Process]*apiserver.Server{}
	start := func(name string) *exampletest.Process {
		api := apiserver.New(t)
		p := exampletest.Start(t, name, db.Env, leaders.Seen, "-kubeconfig="+api.Kubeconfig(t), "-leader-elect",
			"-metrics-bind-address=0", "-health-probe-bind-address=0", "-lease-duration=30s", "-renew-deadline=10s", "-retry-period=200ms")
		servers[p] = api
		return p
	}
	first, second := start("first"), start("second")
	leader := leaders.Who(first, second)
	other := exampletest.Others([]*exampletest.Process{first, second}, leader)[0]
	servers[leader].CloseClientConnections()
	servers[leader].Close()
	if code := leader.Ends(t); code != 1 {
		t.Errorf("exit code %d", code)
	}
	leader.Prints(t, "stepped down", 1)
	leaders.Gone(leader)
	leaders.Who(other)
}
