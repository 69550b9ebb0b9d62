package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/exampletest"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// lead makes an election that is held.
func lead(t *testing.T, db *exampletest.Database, election, identity string, seconds int) *mysqllock.Lock {
	t.Helper()
	lock, err := mysqllock.New(db.DB, election, resourcelock.ResourceLockConfig{Identity: identity})
	if err != nil {
		t.Fatal(err)
	}
	now := metav1.NewTime(time.Now())
	if err := lock.Create(t.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: identity, LeaseDurationSeconds: seconds, AcquireTime: now, RenewTime: now}); err != nil {
		t.Fatal(err)
	}
	return lock
}

func TestThePageAndTheJSONShowAllElections(t *testing.T) {
	db := exampletest.NewDatabase(t)
	address := exampletest.FreeAddress(t)
	p := exampletest.Start(t, "status", db.Env, nil, "-listen="+address)
	get := func(path string) (int, string) {
		response, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, ""
		}
		defer response.Body.Close()
		if policy := response.Header.Get("Content-Security-Policy"); path == "/" && !strings.Contains(policy, "default-src 'none'") {
			t.Errorf("the page's policy is %q", policy)
		}
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Error(err)
		}
		return response.StatusCode, string(text)
	}
	// Without tables it says so.
	exampletest.Eventually(t, "an error", func() bool {
		code, text := get("/")
		return code == http.StatusServiceUnavailable && strings.Contains(text, "run mysqllock.Migrate")
	})
	if err := mysqllock.Migrate(t.Context(), db.DB); err != nil {
		t.Fatal(err)
	}
	if code, text := get("/"); code != http.StatusOK || !strings.Contains(text, "No candidate has campaigned here yet") {
		t.Errorf("%d %s", code, text)
	}

	led := lead(t, db, "shop/orders", "worker-1", 60)
	lead(t, db, `<script>alert("x")</script>`, `"><img src=x>`, 1)
	released := lead(t, db, "shop/mail", "worker-2", 60)
	if err := released.Update(t.Context(), resourcelock.LeaderElectionRecord{LeaseDurationSeconds: 1}); err != nil {
		t.Fatal(err)
	}
	exampletest.Eventually(t, "one expires", func() bool {
		_, text := get("/")
		return strings.Contains(text, `expired">expired`)
	})
	_, text := get("/")
	for _, want := range []string{"shop/orders", "worker-1", `led">led`, `released">released`, "3 in this database", "&lt;script&gt;", `name="viewport"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	for _, bad := range []string{"<script", "<img", "http://", "https://"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page has %s", bad)
		}
	}

	if _, err := db.ExecContext(t.Context(), `UPDATE election_records SET ready = 0 WHERE election_name = 'shop/orders'`); err != nil {
		t.Fatal(err)
	}
	if _, text := get("/"); !strings.Contains(text, "led, not ready") {
		t.Error("a leader that is not ready isn't shown")
	}
	if err := mysqllock.RequestStepDown(t.Context(), db.DB, "shop/orders"); err != nil {
		t.Fatal(err)
	}
	if _, text := get("/"); !strings.Contains(text, "stepping down") {
		t.Error("a request to step down isn't shown")
	}
	if _, err := db.ExecContext(t.Context(), `UPDATE election_records SET ready = 1, step_down_uid = ''`); err != nil {
		t.Fatal(err)
	}

	_, text = get("/elections.json")
	var all []entry
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatal(err)
	}
	token, _ := led.FencingToken()
	found := false
	for _, e := range all {
		if e.Election == "shop/orders" {
			found = true
			if e.Leader != "worker-1" || e.Expired || !e.Ready || e.SteppingDown || e.Lease != 60 || e.FencingToken != token || e.Age < 0 || e.Age > 60 {
				t.Errorf("%+v", e)
			}
		}
	}
	if len(all) != 3 || !found {
		t.Errorf("%d elections: %s", len(all), text)
	}
	p.Signal(t, syscall.SIGTERM)
	if code := p.Ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestDurationsAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 15*time.Second + time.Millisecond: "15s", time.Minute: "1m 0s", 3*time.Hour + 59*time.Second: "3h 0m",
		26 * time.Hour: "1d 2h", 800 * 24 * time.Hour: "800d 0h",
	} {
		if got := short(d); got != want {
			t.Errorf("%v is shown as %q, not %q", d, got, want)
		}
	}
}
