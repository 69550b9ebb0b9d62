package main

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// leaseServer is an API server that has nothing but Leases, and no idea of conflicts.
type leaseServer struct {
	mu     sync.Mutex
	leases map[string]*coordinationv1.Lease
	made   []string
}

func (s *leaseServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const folder = "/apis/coordination.k8s.io/v1/namespaces/team-a/leases"
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, folder), "/")
	var answer any
	switch {
	case r.URL.Path == "/version" && !strings.Contains(r.Header.Get("Accept"), "json"): // as the real one
		w.WriteHeader(http.StatusNotAcceptable)
		return
	case r.URL.Path == "/version":
		answer = map[string]string{"gitVersion": "v1.2.3"}
	case !strings.HasPrefix(r.URL.Path, folder):
		http.NotFound(w, r)
		return
	case r.Method == http.MethodPost || r.Method == http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err) // the client broke off
		}
		lease := &coordinationv1.Lease{}
		if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, lease); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if r.Method == http.MethodPost {
			s.made = append(s.made, lease.Name)
		}
		s.leases[lease.Name] = lease
		answer = lease
	case r.Method == http.MethodGet:
		answer = s.leases[name]
	case r.Method == http.MethodDelete:
		delete(s.leases, name)
		answer = map[string]string{"kind": "Status", "apiVersion": "v1", "status": "Success"}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the client sees what is missing
}

func kubeconfig(t *testing.T, url string) string {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: url}
	config.Contexts["c"] = &clientcmdapi.Context{Cluster: "c"}
	config.CurrentContext = "c"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// The user's API server and database are as they were.
func TestLeaseLeavesNothingBehind(t *testing.T) {
	database, err := mysqltest.Start(t.Context(), mysqltest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = database.Close() })
	config := database.Config()
	if config.DBName, err = database.CreateDatabase(t.Context()); err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(config.Addr)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"MYSQL_USER": config.User, "MYSQL_PASSWORD": config.Passwd, "MYSQL_HOST": host, "MYSQL_PORT": port, "MYSQL_DBNAME": config.DBName} {
		t.Setenv(name, value)
	}
	leases := &leaseServer{leases: map[string]*coordinationv1.Lease{}}
	api := httptest.NewServer(leases)
	t.Cleanup(api.Close)

	b := bench{rounds: 1, slice: 20 * time.Millisecond, trials: 1, folder: t.TempDir()}
	b.lease = leaseOptions{kubeconfig: kubeconfig(t, api.URL), namespace: "team-a", apiServer: processes{os.Getpid()}}
	if err := b.run(t.Context(), []string{"lease"}); err != nil {
		t.Fatal(err)
	}
	if n := len(leases.made); n != 2*(1+8+32) {
		t.Errorf("%d Leases were made", n)
	}
	for _, name := range leases.made {
		if !strings.HasPrefix(name, leasePrefix) {
			t.Errorf("a Lease %q", name)
		}
	}
	if len(leases.leases) > 0 {
		t.Errorf("Leases that are left: %q", slices.Collect(maps.Keys(leases.leases)))
	}
	db, err := mysqllock.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	for _, table := range []string{"election_records", "election_fences"} {
		var rows int
		if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM `+table).Scan(&rows); err != nil || rows > 0 {
			t.Errorf("%d rows are left in %s (%v)", rows, table, err)
		}
	}
	text, err := os.ReadFile(filepath.Join(b.folder, resultsFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"## Beside a Lease: ", "Kubernetes v1.2.3 on this machine", "| 32 | LeaseLock | "} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in the results:\n%s", want, text)
		}
	}
}

func TestLeaseSaysWhatIsWrongWithTheKubeconfig(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no YAML: {"), 0o600); err != nil {
		t.Fatal(err)
	}
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for file, want := range map[string]string{
		"":                                       "by -kubeconfig FILE",
		filepath.Join(t.TempDir(), "no-file"):    "no such file",
		text:                                     "yaml",
		kubeconfig(t, closed.URL):                "refused",
		kubeconfig(t, "https://nowhere.invalid"): "nowhere.invalid",
	} {
		b := bench{rounds: 1, slice: time.Second, trials: 1, lease: leaseOptions{kubeconfig: file}}
		err := b.run(context.Background(), []string{"lease"})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "-kubeconfig "+file) {
			t.Errorf("%q: %v; want %q", file, err, want)
		}
	}
}

func TestFlagsMayFollowTheParts(t *testing.T) {
	flags := flag.CommandLine
	t.Cleanup(func() { flag.CommandLine = flags })
	flag.CommandLine = flag.NewFlagSet("bench", flag.PanicOnError)
	rounds := flag.Int("rounds", 5, "")
	file := flag.String("kubeconfig", "", "")
	var pids processes
	flag.Var(&pids, "pids", "")
	chosen := parse([]string{"-rounds", "3", "lease", "-kubeconfig", "FILE", "parts", "-pids", "1"})
	if !slices.Equal(chosen, []string{"lease", "parts"}) || *rounds != 3 || *file != "FILE" || !slices.Equal(pids, processes{1}) {
		t.Errorf("%q, %d rounds, file %q, processes %v", chosen, *rounds, *file, pids)
	}
	for _, text := range []string{"", "x", "0", "1,", "999999999"} {
		if err := pids.Set(text); err == nil {
			t.Errorf("no error for the processes %q", text)
		}
	}
}
