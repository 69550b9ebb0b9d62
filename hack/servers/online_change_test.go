//go:build clusters

package servers

import (
	"crypto/rand"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// pt-online-schema-change copies a table, has triggers carry over what is written meanwhile, and puts the copy in the
// table's place. Candidates hand over all the while.
func TestElectionsGoOnWhileTheirTablesAreChangedOnline(t *testing.T) {
	server, err := mysqltest.Start(t.Context(), mysqltest.Options{})
	closeAfter(t, server, err)
	admin := openOn(t, server, "")
	t.Log(server.Version())
	exec(t, admin, "CREATE DATABASE "+database)
	config := server.Config()
	config.DBName = database
	db := openConfig(t, config)
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	password := rand.Text()
	exec(t, admin, `CREATE USER changer@'127.0.0.1' IDENTIFIED BY '`+password+`'`)
	exec(t, admin, "GRANT ALL ON *.* TO changer@'127.0.0.1'")
	config.User, config.Passwd = "changer", password
	if err := openConfig(t, config).PingContext(t.Context()); err != nil { // so that MySQL knows the password of it
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(config.Addr, ":")
	login := filepath.Join(t.TempDir(), "login.cnf")
	if err := os.WriteFile(login, []byte("[client]\nuser=changer\npassword="+password+"\nhost="+host+"\nport="+port+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	candidates := []*runner{run(t, db, "live", "a"), run(t, db, "live", "b"), run(t, db, "live", "c")}
	largest, terms := int64(0), 0
	version := func() int64 {
		return number(t, db, `SELECT version FROM election_records WHERE election_name = 'live'`)
	}
	// handOver has a leader renew its lease, and ends it; another takes its place.
	handOver := func() {
		var leaders []*runner
		since := time.Now()
		eventually(t, "a candidate leads", func() bool {
			leaders = nil
			for _, c := range candidates {
				if c.leads() {
					leaders = append(leaders, c)
				}
			}
			return len(leaders) > 0
		})
		// After a release it takes a retry, or two.
		if took := time.Since(since); took > timings.LeaseDuration/2 {
			t.Errorf("nobody led for %v", took)
		}
		if len(leaders) > 1 {
			t.Errorf("%d lead at once", len(leaders))
		}
		if next := token(t, leaders[0].Lock); next <= largest {
			t.Errorf("token %d after %d", next, largest)
		} else {
			largest = next
		}
		terms++
		led := version()
		eventually(t, "the leader renews", func() bool { return version() > led })
		for _, c := range candidates {
			if c.ended.Load() > 0 {
				t.Errorf("%s lost its lease", c.Identity())
			}
		}
		leaders[0].stop()
		for i, c := range candidates {
			if c == leaders[0] {
				candidates[i] = run(t, db, "live", c.Identity())
			}
		}
	}
	handOver()
	for _, table := range []string{"election_records", "election_fences"} {
		before := terms
		// All is copied at once; then the triggers stay for as long as it sleeps.
		tool := osexec.CommandContext(t.Context(), "pt-online-schema-change", "--execute", "--alter", "ENGINE=InnoDB", "--recursion-method", "none",
			"--no-version-check", "--sleep", "5", "F="+login+",D="+database+",t="+table)
		done := make(chan error, 1)
		var output strings.Builder
		tool.Stdout, tool.Stderr = &output, &output
		go func() { done <- tool.Run() }()
		for len(done) == 0 {
			handOver()
		}
		if err := <-done; err != nil {
			t.Fatalf("pt-online-schema-change on %s: %v\n%s", table, err, output.String())
		}
		t.Logf("%d terms while %s was changed", terms-before, table)
		if terms-before < 3 {
			t.Errorf("%d terms only", terms-before)
		}
	}
}
