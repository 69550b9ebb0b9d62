package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// programVariable makes the test's executable the quickstart program itself, so
// that the program is under the race detector if the test is.
const programVariable = "QUICKSTART_IS_THE_PROGRAM"

const sentence = "at no moment did two candidates lead"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		main()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// program is a running quickstart with all that it starts.
type program struct {
	cmd    *exec.Cmd
	ended  chan struct{}
	family *os.File // at its end when the program and all its candidates are gone
	tmp    string   // where its server's directory is

	mu     sync.Mutex
	output bytes.Buffer
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(b)
}

func (p *program) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// run starts the program in a directory of its own, with env and without any
// other MYSQL_* variable.
func run(t *testing.T, env []string, files map[string]string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Not t.TempDir, whose path is too long for the server's socket.
	tmp, err := os.MkdirTemp("", "qs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })

	p := &program{cmd: exec.CommandContext(t.Context(), self), ended: make(chan struct{}), family: r, tmp: tmp}
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.WaitDelay = 10 * time.Second
	p.cmd.ExtraFiles = []*os.File{w} // its children inherit it
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "MYSQL_") {
			p.cmd.Env = append(p.cmd.Env, variable)
		}
	}
	p.cmd.Env = append(p.cmd.Env, programVariable+"=1", "TMPDIR="+tmp)
	p.cmd.Env = append(p.cmd.Env, env...)
	err = p.cmd.Start()
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // exitCode tells
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.ended
		if t.Failed() {
			t.Logf("output:\n%s", p.text())
		}
	})
	return p
}

func (p *program) exitCode(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(3 * time.Minute):
		t.Fatal("it goes on for more than three minutes")
		return 0
	}
}

// saysEventually waits for a text in its output.
func (p *program) saysEventually(t *testing.T, text string) {
	t.Helper()
	eventually(t, 2*time.Minute, "the output has "+text, func() bool {
		select {
		case <-p.ended:
			if !strings.Contains(p.text(), text) {
				t.Fatalf("it ended without saying %q", text)
			}
		default:
		}
		return strings.Contains(p.text(), text)
	})
}

func (p *program) says(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(p.text(), text) {
			t.Errorf("the output lacks %q", text)
		}
	}
}

// nothingIsLeft checks that every process of the program ends, and that its
// server's directory goes, which the server's end precedes.
func (p *program) nothingIsLeft(t *testing.T) {
	t.Helper()
	if err := p.family.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.family.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a process of it goes on (%v)", err)
	}
	eventually(t, 20*time.Second, "the server's directory is gone", func() bool {
		left, err := os.ReadDir(p.tmp)
		return err == nil && len(left) == 0
	})
}

func eventually(t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		<-tick.C
	}
}

func TestOnAThrowawayServerAllActsArePerformedAndOneLeadsAtATime(t *testing.T) {
	t.Parallel()
	p := run(t, nil, nil)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	p.says(t, sentence, "Act 1", "Act 2", "Act 3", "Act 4", "Act 5", "its commit is REFUSED", "committed are the entries: by ",
		"LEADS", "sees the leader", "handover after SIGTERM: 0.", "failover after kill -9: ", "signal: killed", "leadership ")
	if strings.Contains(p.text(), "\x1b") {
		t.Error("colours in an output that is no terminal")
	}
	// The acts need three leaders at least: charlie, say, alpha and bravo.
	if n := strings.Count(p.text(), "LEADS"); n < 3 {
		t.Errorf("%d terms", n)
	}
	p.nothingIsLeft(t)
}

// namedDatabase is a database of a user's own, and an account there that has
// the given privileges on its tables.
func namedDatabase(t *testing.T, privileges string) (db *sql.DB, environment map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	server, err := mysqltest.Shared(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	name, err := server.CreateDatabase(ctx)
	if err != nil {
		t.Fatal(err)
	}
	config := server.Config()
	config.DBName = name
	connector, err := mysql.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	db = sql.OpenDB(connector)
	account := "quickstart_" + name[len(name)-8:]
	environment = map[string]string{"MYSQL_USER": account, "MYSQL_PASSWORD": "se cret#1" + name, "MYSQL_DBNAME": name}
	t.Cleanup(func() {
		_, err := db.ExecContext(context.Background(), "DROP USER '"+account+"'@'%'")
		err = errors.Join(err, db.Close(), server.DropDatabase(context.Background(), name))
		if err != nil {
			t.Error(err)
		}
	})
	for _, statement := range []string{
		"CREATE USER '" + account + "'@'%' IDENTIFIED BY '" + environment["MYSQL_PASSWORD"] + "'",
		"GRANT " + privileges + " ON " + name + ".* TO '" + account + "'@'%'",
	} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	host, port, found := strings.Cut(config.Addr, ":")
	if !found {
		t.Fatalf("the server is at %s, no host and port", config.Addr)
	}
	environment["MYSQL_HOST"], environment["MYSQL_PORT"] = host, port
	return db, environment
}

func TestADatabaseNamedInDotEnvIsUsedAndItsServerLeftAlone(t *testing.T) {
	t.Parallel()
	db, environment := namedDatabase(t, "CREATE, SELECT, INSERT, UPDATE, DELETE")
	var file strings.Builder
	for name, value := range environment {
		fmt.Fprintf(&file, "%s='%s'\n", name, value)
	}
	p := run(t, nil, map[string]string{".env": file.String()})
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	p.says(t, sentence, ".env", "left out", "handover after SIGTERM", "failover after kill -9")
	if strings.Contains(p.text(), environment["MYSQL_PASSWORD"]) {
		t.Error("the output has the password")
	}
	for _, table := range []string{"election_records", "election_fences"} {
		var rows int
		if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&rows); err != nil || rows != 0 {
			t.Errorf("%d rows left in %s, %v", rows, table, err)
		}
	}
	p.nothingIsLeft(t)
}

func TestRowsThatMayNotBeDeletedStayAndAreNamed(t *testing.T) {
	t.Parallel()
	db, environment := namedDatabase(t, "CREATE, SELECT, INSERT, UPDATE")
	var env []string
	for name, value := range environment {
		env = append(env, name+"="+value)
	}
	p := run(t, env, nil)
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	var name string
	if err := db.QueryRowContext(t.Context(), "SELECT election_name FROM election_records").Scan(&name); err != nil {
		t.Fatal(err)
	}
	p.says(t, sentence, "the row of "+name+" in election_records stays")
}

func TestAnInterruptEndsCandidatesAndServer(t *testing.T) {
	t.Parallel()
	p := run(t, nil, nil)
	p.saysEventually(t, "LEADS")
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := p.exitCode(t); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	p.says(t, "interrupted", "stops leading", "throwaway server and its data are gone")
	p.nothingIsLeft(t)
}

func TestTheDeathOfTheStageManagerEndsCandidatesAndServer(t *testing.T) {
	t.Parallel()
	p := run(t, nil, nil)
	p.saysEventually(t, "LEADS")
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.ended
	p.nothingIsLeft(t)
}

func TestAMissingVariableIsNamed(t *testing.T) {
	t.Parallel()
	p := run(t, []string{"MYSQL_HOST=127.0.0.1", "MYSQL_USER=a"}, nil)
	if code := p.exitCode(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	p.says(t, "MYSQL_PASSWORD", "MYSQL_DBNAME", "unset")
}

func TestADotEnvThatIsNoneIsNotQuoted(t *testing.T) {
	t.Parallel()
	p := run(t, nil, map[string]string{".env": "MYSQL_PASSWORD='hunter2\nMYSQL?=hunter2\n"})
	if code := p.exitCode(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	p.says(t, ".env")
	if strings.Contains(p.text(), "hunter2") {
		t.Error("the output has the file's content")
	}
}
