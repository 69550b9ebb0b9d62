package main

import (
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/apiserver"
	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/exampletest"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

type cluster struct {
	*exampletest.Process
	api      *apiserver.Server
	database *mysqltest.Proxy
}

func TestTheOtherClusterTakesOver(t *testing.T) {
	for _, c := range []struct {
		name    string
		fail    func(cluster)
		message string
	}{
		{"the API server is gone", func(c cluster) { c.api.CloseClientConnections(); c.api.Close() }, "stepped down"},
		{"MySQL is gone", func(c cluster) { c.database.Set(mysqltest.Network{Refuse: true}) }, "leader election lost"},
		{"all is gone", func(c cluster) {
			c.api.CloseClientConnections()
			c.api.Close()
			c.database.Set(mysqltest.Network{Refuse: true})
		}, "multi-cluster: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := exampletest.NewDatabase(t)
			leaders := exampletest.NewLeaders(t, "Starting workers", "All workers finished")
			start := func(name string) cluster {
				proxy, env := db.Behind(t)
				c := cluster{api: apiserver.New(t), database: proxy}
				c.api.Put("/api/v1/namespaces/default/configmaps/settings", apiserver.Object{})
				c.Process = exampletest.Start(t, name, env, leaders.Seen, "-cluster="+name,
					"-kubeconfig="+c.api.Kubeconfig(t), "-lease-duration=2s", "-renew-deadline=1s", "-retry-period=200ms")
				return c
			}
			east, west := start("east"), start("west")
			if leaders.Who(east.Process, west.Process) == west.Process {
				east, west = west, east
			}
			east.Prints(t, "reconciled", 1)
			c.fail(east)
			if code := east.Ends(t); code != 1 {
				t.Errorf("exit code %d", code)
			}
			east.Prints(t, c.message, 1)
			// Without a word, when the lease is lost: the process is the boundary.
			leaders.Gone(east.Process)
			leaders.Who(west.Process)
			west.Prints(t, "reconciled", 1)
		})
	}
}
