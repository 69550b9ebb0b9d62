package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestCheckSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	bad := do(t, db.env, "check")
	bad.is(t, exitRefused, "remedy: run mysqllock.Migrate or apply mysqllock.Schema", "findings are errors: elections would fail")
	if strings.Contains(bad.stdout, "elections will work here") {
		t.Error(bad.stdout)
	}
	asJSON := do(t, db.env, "check", "-o", "json")
	asJSON.is(t, exitRefused, `"severity": "error"`, "elections would fail")
	var findings []struct{ Severity, Subject, Problem, Remedy string }
	if err := json.Unmarshal([]byte(asJSON.stdout), &findings); err != nil || len(findings) < 2 || findings[0].Remedy == "" {
		t.Errorf("%v: %s", err, asJSON.stdout)
	}

	do(t, db.env, "migrate").is(t, 0, "current", "")
	do(t, db.env, "check").is(t, 0, "ok       elections will work here\n", "")
	do(t, db.env, "check").is(t, 0, "advice: nothing is to be done\n", "") // of the engine, which is no problem
	// Warnings, which the administrator's account gives, are no errors.
	do(t, db.env, "check", "-o", "json").is(t, 0, `"severity": "warning"`, "")
	do(t, db.as(t, "SELECT"), "check").is(t, exitRefused, "error    grants: ", "findings are errors")
	timings := do(t, db.env, "check", "-lease-duration", "1s")
	timings.is(t, exitFailed, "", "would work")
}
