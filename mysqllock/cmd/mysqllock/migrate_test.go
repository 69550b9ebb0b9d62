package main

import (
	"context"
	"strings"
	"syscall"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

func TestMigratePrintsTheSQLWithoutAConnection(t *testing.T) {
	t.Parallel()
	if r := do(t, nil, "migrate", "-print"); r.code != 0 || r.stdout != mysqllock.Schema || r.stderr != "" {
		t.Errorf("%+v", r)
	}
}

func TestMigrateWaitsForAServerThatStarts(t *testing.T) {
	t.Parallel()
	own, err := mysqltest.Start(t.Context(), mysqltest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	})
	config := own.Config()
	config.DBName = "made_later"
	db := connect(t, config)
	if err := own.Stop(); err != nil {
		t.Fatal(err)
	}
	do(t, db.env, "migrate").is(t, exitFailed, "", "connection refused")

	p := start(t, db.env, nil, "migrate", "-wait", "10m")
	eventually(t, "it says what it waits for", func() bool { return strings.Contains(p.stderr.String(), "connection refused") })
	if err := own.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says that there is no database yet", func() bool { return strings.Contains(p.stderr.String(), "Unknown database") })
	admin := own.Config()
	admin.DBName = ""
	connect(t, admin).exec(t, "CREATE DATABASE made_later")
	if code := p.ends(t); code != 0 || p.stdout.String() != "the tables are there and current\n" {
		t.Errorf("exit code %d, %s", code, p.stdout.String())
	}
	if n := strings.Count(p.stderr.String(), "connection refused"); n != 1 {
		t.Errorf("%d lines of one kind:\n%s", n, p.stderr.String())
	}
	if strings.Contains(p.stderr.String(), config.Passwd) || strings.Contains(p.stderr.String(), "127.0.0.1") {
		t.Error(p.stderr.String())
	}
	do(t, db.env, "migrate").is(t, 0, "current", "")
	do(t, db.env, "check").is(t, 0, "elections will work here", "")
}

func TestMigrateEndsAtOnceIfWaitingIsOfNoUse(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	do(t, db.as(t, "SELECT, INSERT, UPDATE"), "migrate", "-wait", "10m").is(t, exitFailed, "", "Migrate also needs CREATE")
	db.exec(t, "CREATE TABLE election_fences (other INT)")
	do(t, db.env, "migrate", "-wait", "10m").is(t, exitFailed, "", "election_fences")
}

func TestMigrateGivesUpInTimeAndWhenItIsToldTo(t *testing.T) {
	t.Parallel()
	env := []string{"MYSQL_HOST=127.0.0.1", "MYSQL_PORT=" + closedPort(t), "MYSQL_USER=app", "MYSQL_PASSWORD=", "MYSQL_DBNAME=d"}
	do(t, env, "migrate", "-wait", "1500ms").is(t, exitFailed, "", "mysqllock: preflight: dial: ")
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		p := start(t, env, nil, "migrate", "-wait", "10m")
		eventually(t, "it waits", func() bool { return strings.Contains(p.stderr.String(), "waits for the database") })
		p.signal(t, signal)
		if code := p.ends(t); code != exitFailed || !strings.Contains(p.stderr.String(), "ended before the database was up") {
			t.Errorf("exit code %d: %s", code, p.stderr.String())
		}
	}
}

func TestMigrateByManyAtOnce(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	var all []*process
	for range 5 {
		all = append(all, start(t, db.env, nil, "migrate"))
	}
	for _, p := range all {
		if code := p.ends(t); code != 0 {
			t.Errorf("exit code %d: %s", code, p.stderr.String())
		}
	}
	if _, err := mysqllock.ListElections(context.Background(), db.DB); err != nil {
		t.Error(err)
	}
}
