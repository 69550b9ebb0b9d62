// Package exampletest starts the examples as the processes that they are, on a real server, and reads what they print.
package exampletest

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// programVariable makes a test's executable the program that it tests, so that the program is under the race detector
// if the test is.
const programVariable = "EXAMPLE_IS_THE_PROGRAM"

// limit is how long anything that is waited for may take on a busy machine.
const limit = 60 * time.Second

var server struct {
	sync.Mutex
	*mysqltest.Server
}

// Main is for TestMain: it runs the tests, or is the program.
func Main(m *testing.M, program func()) {
	if os.Getenv(programVariable) != "" {
		program()
		os.Exit(0)
	}
	code := m.Run()
	if server.Server != nil {
		_ = server.Close() // a process of its own ends it otherwise
	}
	os.Exit(code)
}

// Database is an empty one on a server that the tests of one package share.
type Database struct {
	*sql.DB
	Config *mysql.Config
	Env    []string // MYSQL_USER and so on
}

// NewDatabase makes one.
func NewDatabase(t *testing.T) *Database {
	t.Helper()
	server.Lock()
	defer server.Unlock()
	if server.Server == nil {
		s, err := mysqltest.Shared(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		server.Server = s
	}
	name, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := &Database{Config: server.Config()}
	d.Config.DBName = name
	if d.DB, err = mysqllock.Open(d.Config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.Close() // nothing to lose
		if err := server.DropDatabase(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	d.Env = append(at(t, d.Config.Addr), "MYSQL_USER="+d.Config.User, "MYSQL_PASSWORD="+d.Config.Passwd, "MYSQL_DBNAME="+name)
	return d
}

// Behind is a proxy before the server, and the environment in which an example reaches the server through it.
func (d *Database) Behind(t *testing.T) (proxy *mysqltest.Proxy, env []string) {
	t.Helper()
	proxy, err := mysqltest.NewProxy(d.Config.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	return proxy, append(slices.Clone(d.Env), at(t, proxy.Addr())...)
}

// at is the environment's part that says where the server is.
func at(t *testing.T, address string) []string {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return []string{"MYSQL_HOST=" + host, "MYSQL_PORT=" + port}
}

// Process is a running example.
type Process struct {
	Name  string
	cmd   *exec.Cmd
	ended chan struct{}
	seen  func(*Process, string)

	mu      sync.Mutex
	output  bytes.Buffer
	changed chan struct{}
}

// Start starts the program. seen, unless nil, is called for each line of its output as it arrives, for one process's
// lines after the other. The process is killed when the test ends.
func Start(t *testing.T, name string, env []string, seen func(*Process, string), args ...string) *Process {
	t.Helper()
	return StartIn(t, t.TempDir(), name, env, seen, args...) // where no .env is
}

// StartIn is Start in another directory than an empty one.
func StartIn(t *testing.T, dir, name string, env []string, seen func(*Process, string), args ...string) *Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{Name: name, cmd: exec.CommandContext(t.Context(), self, args...), ended: make(chan struct{}), seen: seen, changed: make(chan struct{})}
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "MYSQL_") {
			p.cmd.Env = append(p.cmd.Env, variable)
		}
	}
	p.cmd.Env = append(append(p.cmd.Env, programVariable+"=1"), env...)
	p.cmd.Dir = dir
	reader, writer := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = writer, writer
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(reader); lines.Scan(); {
			p.add(lines.Text())
		}
	}()
	go func() {
		_ = p.cmd.Wait() // ExitCode tells
		_ = writer.Close()
		<-read
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("%s:\n%s", name, p.Output())
		}
	})
	return p
}

func (p *Process) add(line string) {
	if p.seen != nil {
		p.seen(p, line)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.output.WriteString(line + "\n")
	close(p.changed)
	p.changed = make(chan struct{})
}

// Output is what it has printed so far.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// Prints waits until the output has the text at least n times.
func (p *Process) Prints(t *testing.T, text string, n int) {
	t.Helper()
	timeout := time.After(limit)
	for {
		p.mu.Lock()
		found, changed := strings.Count(p.output.String(), text), p.changed
		p.mu.Unlock()
		if found >= n {
			return
		}
		select {
		case <-changed:
		case <-p.ended:
			if strings.Count(p.Output(), text) < n {
				t.Fatalf("%s ended without %q", p.Name, text)
			}
		case <-timeout:
			t.Fatalf("%s does not print %q", p.Name, text)
		}
	}
}

// Signal sends a signal.
func (p *Process) Signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// Kill ends it as a crash does.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
}

// Ends waits for its end, and returns the exit code; -1 if a signal ended it.
func (p *Process) Ends(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(limit):
		t.Fatalf("%s does not end", p.Name)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Leaders keeps track of who leads, as far as the processes' lines tell.
type Leaders struct {
	t            *testing.T
	began, ended string

	mu      sync.Mutex
	current map[string]bool
	changes []string
}

// NewLeaders knows by these texts when a process begins and ends to lead. Two at once fail the test.
func NewLeaders(t *testing.T, began, ended string) *Leaders {
	return &Leaders{t: t, began: began, ended: ended, current: map[string]bool{}}
}

// Seen is for Start.
func (l *Leaders) Seen(p *Process, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case strings.Contains(line, l.began):
		for other := range l.current {
			l.t.Errorf("%s and %s lead at once", other, p.Name)
		}
		l.current[p.Name] = true
		l.changes = append(l.changes, p.Name)
	case strings.Contains(line, l.ended):
		delete(l.current, p.Name)
	}
}

// Gone tells that a process was killed, or is cut off: its lines tell no more.
func (l *Leaders) Gone(p *Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.current, p.Name)
}

// Who waits until one of the processes leads, and returns it.
func (l *Leaders) Who(processes ...*Process) *Process {
	l.t.Helper()
	var leader *Process
	Eventually(l.t, "somebody leads", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, p := range processes {
			if l.current[p.Name] {
				leader = p
			}
		}
		return leader != nil
	})
	return leader
}

// Changes are the leaders so far, in order.
func (l *Leaders) Changes() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string{}, l.changes...)
}

// Eventually waits until the condition holds.
func Eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(limit); !condition(); {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("not in %v: %s", limit, what)
		}
	}
}

// FreeAddress is a loopback address that nobody listens on.
func FreeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	return listener.Addr().String()
}

// Others are the processes besides one.
func Others(all []*Process, one *Process) []*Process {
	var others []*Process
	for _, p := range all {
		if p != one {
			others = append(others, p)
		}
	}
	return others
}
