package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func TestOneWorksAndHandsOver(t *testing.T) {
	db := exampletest.NewDatabase(t)
	leaders := exampletest.NewLeaders(t, " works", " has stopped")
	first := exampletest.Start(t, "first", db.Env, leaders.Seen)
	leaders.Who(first)
	second := exampletest.Start(t, "second", db.Env, leaders.Seen)
	exampletest.Eventually(t, "the second one waits", func() bool {
		var sessions int
		err := db.QueryRowContext(t.Context(), `SELECT COUNT(DISTINCT id) FROM information_schema.processlist WHERE db = ?`, db.Config.DBName).Scan(&sessions)
		return err == nil && sessions >= 3
	})
	first.Signal(t, syscall.SIGTERM)
	if code := first.Ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	// A new candidate need not wait for the second one's next poll.
	third := exampletest.Start(t, "third", db.Env, leaders.Seen)
	leader := leaders.Who(second, third)
	leader.Signal(t, syscall.SIGTERM)
	leader.Prints(t, " has stopped", 1)
	if code := leader.Ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestTheFileOfTheCurrentDirectoryIsRead(t *testing.T) {
	db := exampletest.NewDatabase(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".env"), []byte(strings.Join(db.Env, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := exampletest.StartIn(t, dir, "candidate", nil, nil)
	p.Prints(t, " works", 1)

	if err := os.WriteFile(filepath.Join(dir, ".env"), []byte("MYSQL_PASSWORD='secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p = exampletest.StartIn(t, dir, "bad file", nil, nil)
	if code := p.Ends(t); code != 1 {
		t.Errorf("exit code %d", code)
	}
	p.Prints(t, "the file .env has other lines", 1)
	if strings.Contains(p.Output(), "secret") {
		t.Error("the password is in the output")
	}
}

// The file to copy names variables that are read.
func TestTheExampleFileIsComplete(t *testing.T) {
	text, err := os.ReadFile(".env.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"MYSQL_USER=", "MYSQL_PASSWORD=", "MYSQL_HOST=", "MYSQL_DBNAME=", "MYSQL_PORT=", "MYSQL_TLS="} {
		if !strings.Contains(string(text), name) {
			t.Errorf(".env.example lacks %s", name)
		}
	}
}
