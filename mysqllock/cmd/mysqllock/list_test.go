package main

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// hostile are names that a candidate may have.
var hostile = []string{"選挙/注文", "🚀", "a\u202egnp", "zero\u200b\u200bwidth", `"><script>`, "e\u0301le\u0301ction", "한국어/선거"}

var (
	stateWord  = regexp.MustCompile(` (led|expired|released|asked) `)
	fewSeconds = regexp.MustCompile(` \ds`) // on a busy machine
)

func TestListShowsEachStateSortedAndAligned(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	empty := do(t, db.env, "list")
	empty.is(t, 0, "ELECTION  LEADER  STATE  READY  SINCE  RENEWED  TOKEN\n", "")

	token, _ := db.lead(t, "shop/orders", "worker-1", 3600).FencingToken()
	db.exec(t, "UPDATE election_records SET acquire_time = acquire_time - INTERVAL 3 HOUR, ready = 0 WHERE election_name = 'shop/orders'")
	db.lead(t, "shop/crashed", "worker-2", 15)
	db.silent(t, "shop/crashed", 3*86400)
	db.release(t, db.lead(t, "shop/mail", "worker-3", 15))
	db.lead(t, "shop/asked", "worker-4", 3600)
	db.exec(t, "UPDATE election_records SET step_down_uid = leader_uid WHERE election_name = 'shop/asked'")
	for _, name := range hostile {
		db.lead(t, name, name, 3600)
	}

	r := do(t, db.env, "list")
	r.is(t, 0, "ELECTION", "")
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	if len(lines) != 1+4+len(hostile) {
		t.Fatalf("%d lines:\n%s", len(lines), r.stdout)
	}
	fields := map[string][]string{}
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		fields[f[0]] = f
		if column := columnOf(line, stateWord.FindString(line)); column != columnOf(lines[0], " STATE ") {
			t.Errorf("not aligned:\n%s\n%s", lines[0], line)
		}
	}
	for name, want := range map[string]string{
		"shop/orders":  "worker-1 led no 3h 0m 0s ago " + strconv.FormatInt(token, 10),
		"shop/crashed": "worker-2 expired yes 0s 3d 0h ago",
		"shop/mail":    "- released - - 0s ago",
		"shop/asked":   "worker-4 asked yes",
	} {
		got := strings.Join(fields[name][1:], " ")
		got = fewSeconds.ReplaceAllString(got, " 0s")
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, not %q", name, got, want)
		}
	}
	var last string
	for _, e := range listed(t, db.env) {
		if e.Election < last {
			t.Errorf("%q comes after %q", e.Election, last)
		}
		last = e.Election
	}
	for _, bad := range []string{"\x1b", "\u202e", "\u200b"} {
		if strings.Contains(r.stdout, bad) {
			t.Errorf("%q on a pipe:\n%s", bad, r.stdout)
		}
	}

	wideHeader := strings.Join(strings.Fields("ELECTION LEADER STATE READY SINCE RENEWED TOKEN LEASE CHANGES TERM BEGAN (UTC) LAST WRITTEN (UTC)"), " ")
	wide := do(t, db.env, "list", "-o", "wide")
	wide.is(t, 0, "1h 0m", "")
	if header, _, _ := strings.Cut(wide.stdout, "\n"); strings.Join(strings.Fields(header), " ") != wideHeader {
		t.Errorf("the header is %s", header)
	}
}

// listed is the JSON of all elections.
func listed(t *testing.T, env []string) []entry {
	t.Helper()
	r := do(t, env, "list", "-o", "json")
	var all []entry
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil || r.code != 0 || r.stderr != "" {
		t.Fatalf("%v %+v", err, r)
	}
	return all
}
