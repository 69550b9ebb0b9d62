package servers

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

const galeraVariable = "MYSQLLOCK_TEST_GALERA"

// Galera is a cluster of MariaDB servers, each of which takes writes.
//
// Each node can be killed, stopped, restarted, paused and resumed by its own methods: a restarted node joins the others
// and is sent what it missed. While all nodes are down, or too few are up to be a majority, that waits for the others.
type Galera struct {
	Nodes []*mysqltest.Server
}

// StartGalera starts a cluster and returns when all nodes are in step. The program is that of MYSQLLOCK_TEST_GALERA.
// Close ends it; if this program ends without, the servers end all the same.
func StartGalera(ctx context.Context, nodes int) (*Galera, error) {
	g, err := startGalera(ctx, nodes)
	if err != nil {
		return nil, fmt.Errorf("start a Galera cluster: %w", err)
	}
	return g, nil
}

func startGalera(ctx context.Context, n int) (_ *Galera, err error) {
	program := os.Getenv(galeraVariable)
	if program == "" {
		return nil, fmt.Errorf("%s is not set: set it to what hack/servers/get.sh galera prints", galeraVariable)
	}
	nodes, err := start(ctx, n, func(int) mysqltest.Options { return mysqltest.Options{Binary: program} })
	if err != nil {
		return nil, err
	}
	g := &Galera{nodes}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	var members []string
	var ports []int
	for range 2 * n {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	for i := range n {
		members = append(members, "127.0.0.1:"+strconv.Itoa(ports[i]))
	}
	for i, node := range nodes {
		// The first begins a cluster by itself; afterwards it is as good as the others.
		others := strings.Join(members, ",")
		if i == 0 {
			others = ""
		}
		if err := g.join(ctx, i, members[i], ports[n+i], others); err != nil {
			return nil, err
		}
		if err := g.synced(ctx, node, i+1); err != nil {
			return nil, err
		}
	}
	return g, writeOptions(ctx, nodes[0], members[0], ports[n], strings.Join(members, ","))
}

// join restarts a server as a node of the cluster. Nothing is copied for that: as all servers began without any
// database of a user, it is told that it has what the first node has, and what follows is sent to it.
func (g *Galera) join(ctx context.Context, i int, address string, transferPort int, others string) error {
	node := g.Nodes[i]
	if err := writeOptions(ctx, node, address, transferPort, others); err != nil {
		return err
	}
	if i > 0 {
		var state strings.Builder
		state.WriteString("# GALERA saved state\nversion: 2.1\nsafe_to_bootstrap: 0\n")
		for key, variable := range map[string]string{"uuid": "wsrep_cluster_state_uuid", "seqno": "wsrep_last_committed"} {
			value, err := status(ctx, g.Nodes[0], variable)
			if err != nil {
				return err
			}
			fmt.Fprintf(&state, "%s: %s\n", key, value)
		}
		dir, err := datadir(ctx, node)
		if err != nil {
			return err
		}
		if err := node.Stop(); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "grastate.dat"), []byte(state.String()), 0o600); err != nil {
			return err
		}
	}
	return node.Restart(ctx)
}

// writeOptions writes what the program of get.sh reads before it starts.
func writeOptions(ctx context.Context, node *mysqltest.Server, address string, transferPort int, others string) error {
	dir, err := datadir(ctx, node)
	if err != nil {
		return err
	}
	transfer := "127.0.0.1:" + strconv.Itoa(transferPort)
	provider := []string{
		"gmcast.listen_addr=tcp://" + address, "ist.recv_addr=" + transfer, "ist.recv_bind=" + transfer, "gcache.size=128M",
	}
	options := []string{
		"--binlog-format=ROW", "--innodb-autoinc-lock-mode=2",
		"--wsrep-cluster-name=mysqllock", "--wsrep-cluster-address=gcomm://" + others, "--wsrep-node-address=" + address,
		"--wsrep-provider-options=" + strings.Join(provider, ";"),
	}
	return os.WriteFile(filepath.Join(filepath.Dir(dir), "galera"), []byte(strings.Join(options, "\n")), 0o600)
}

func datadir(ctx context.Context, node *mysqltest.Server) (dir string, err error) {
	err = with(node, func(db *sql.DB) error { return db.QueryRowContext(ctx, `SELECT @@datadir`).Scan(&dir) })
	return filepath.Clean(dir), err
}

// Synced waits until every node is in step with all the others.
func (g *Galera) Synced(ctx context.Context) error {
	for _, node := range g.Nodes {
		if err := g.synced(ctx, node, len(g.Nodes)); err != nil {
			return err
		}
	}
	return nil
}

func (*Galera) synced(ctx context.Context, node *mysqltest.Server, size int) error {
	return wait.Until(ctx, "a node of the Galera cluster is in step with the others", func(ctx context.Context) (bool, error) {
		n, err := status(ctx, node, "wsrep_cluster_size")
		if err != nil {
			return false, err
		}
		state, err := status(ctx, node, "wsrep_local_state_comment")
		return n == strconv.Itoa(size) && state == "Synced", err
	})
}

// Isolate cuts a node off from the others, or, with false, connects it again. Cut off it refuses all statements, error
// 1047, once it has noticed that it is not part of a majority (5 s, as all timings are Galera's defaults).
func (*Galera) Isolate(ctx context.Context, node *mysqltest.Server, isolated bool) error {
	statement := `SET GLOBAL wsrep_provider_options = 'gmcast.isolate=0'`
	if isolated {
		statement = `SET GLOBAL wsrep_provider_options = 'gmcast.isolate=1'`
	}
	return execute(ctx, node, statement)
}

// Close ends all nodes and deletes everything of them.
func (g *Galera) Close() error { return closeAll(g.Nodes) }
