package main

import (
	"net/http"
	"syscall"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

var timings = []string{"-lease-duration=2s", "-renew-deadline=1s", "-retry-period=200ms"}

func TestLeadershipGoesFromOneToTheOther(t *testing.T) {
	db := exampletest.NewDatabase(t)
	leaders := exampletest.NewLeaders(t, "Controller loop...", "Leader lost")
	start := func(id string) *exampletest.Process {
		return exampletest.Start(t, id, db.Env, leaders.Seen, append(timings, "-id="+id)...)
	}
	first := start("1")
	leaders.Who(first)
	second := start("2")
	second.Prints(t, `"New leader elected" identity="1"`, 1)

	first.Signal(t, syscall.SIGTERM)
	if code := first.Ends(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	leaders.Who(second)
	third := start("3")
	third.Prints(t, `"New leader elected" identity="2"`, 1)
	leaders.Gone(second)
	second.Kill()
	leaders.Who(third)
}

func TestALeaderThatLostItsRowExits(t *testing.T) {
	db := exampletest.NewDatabase(t)
	address := exampletest.FreeAddress(t)
	leader := exampletest.Start(t, "1", db.Env, nil, append(timings, "-id=1", "-healthz-address="+address)...)
	leader.Prints(t, "Controller loop...", 1)
	exampletest.Eventually(t, "/healthz is served", func() bool {
		response, err := http.Get("http://" + address + "/healthz")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	if _, err := db.ExecContext(t.Context(), `UPDATE election_records SET leader_name = 'other', leader_uid = 'x', version = version + 1`); err != nil {
		t.Fatal(err)
	}
	if code := leader.Ends(t); code != 1 {
		t.Errorf("exit code %d", code)
	}
	leader.Prints(t, "leadership was lost", 1)
}

func TestWithoutADatabaseItSaysWhatIsMissing(t *testing.T) {
	p := exampletest.Start(t, "1", nil, nil)
	if code := p.Ends(t); code != 1 {
		t.Errorf("exit code %d", code)
	}
	p.Prints(t, "MYSQL_USER", 1)
}
