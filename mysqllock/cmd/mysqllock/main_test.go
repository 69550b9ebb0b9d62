package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
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
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// programVariable makes the test's executable the command, so that the command is under the race detector if the test is.
const programVariable = "MYSQLLOCK_TEST_IS_THE_COMMAND"

// limit is how long anything that is waited for may take on a busy machine.
const limit = 60 * time.Second

// server is the one that the tests share; each has a database of its own there.
var server *mysqltest.Server

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		main()
	}
	var err error
	if server, err = mysqltest.Shared(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.Cleanup(func(code int) {
		if err := server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// database is one of a test's own.
type database struct {
	*sql.DB
	config *mysql.Config
	env    []string // MYSQL_USER and so on
}

// newDatabase makes an empty one.
func newDatabase(t *testing.T) *database {
	t.Helper()
	name, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.DropDatabase(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	config := server.Config()
	config.DBName = name
	return connect(t, config)
}

// newTables makes one with tables.
func newTables(t *testing.T) *database {
	t.Helper()
	db := newDatabase(t)
	if err := mysqllock.Migrate(t.Context(), db.DB); err != nil {
		t.Fatal(err)
	}
	return db
}

func connect(t *testing.T, config *mysql.Config) *database {
	t.Helper()
	db, err := mysqllock.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	host, port, err := net.SplitHostPort(config.Addr)
	if err != nil {
		t.Fatal(err)
	}
	return &database{db, config, []string{
		"MYSQL_HOST=" + host, "MYSQL_PORT=" + port, "MYSQL_USER=" + config.User, "MYSQL_PASSWORD=" + config.Passwd, "MYSQL_DBNAME=" + config.DBName,
	}}
}

// exec runs a statement that must succeed.
func (d *database) exec(t *testing.T, statement string, args ...any) {
	t.Helper()
	if _, err := d.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// as is the environment of another account, with these grants on the database alone.
func (d *database) as(t *testing.T, grants string) []string {
	t.Helper()
	name, password := "t_"+strings.ToLower(rand.Text()[:16]), rand.Text()
	d.exec(t, "CREATE USER "+name+"@'%' IDENTIFIED BY '"+password+"'")
	t.Cleanup(func() {
		if _, err := d.ExecContext(context.Background(), "DROP USER "+name+"@'%'"); err != nil {
			t.Error(err)
		}
	})
	d.exec(t, "GRANT "+grants+" ON `"+d.config.DBName+"`.* TO "+name+"@'%'")
	return append(slices.Clone(d.env), "MYSQL_USER="+name, "MYSQL_PASSWORD="+password)
}

// lead makes an election that somebody holds.
func (d *database) lead(t *testing.T, election, identity string, lease int) *mysqllock.Lock {
	t.Helper()
	lock, err := mysqllock.New(d.DB, election, resourcelock.ResourceLockConfig{Identity: identity})
	if err != nil {
		t.Fatal(err)
	}
	now := metav1.NewTime(time.Now())
	if err := lock.Create(t.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: identity, LeaseDurationSeconds: lease, AcquireTime: now, RenewTime: now}); err != nil {
		t.Fatal(err)
	}
	return lock
}

// release makes one that nobody holds.
func (d *database) release(t *testing.T, lock *mysqllock.Lock) {
	t.Helper()
	if err := lock.Update(t.Context(), resourcelock.LeaderElectionRecord{LeaseDurationSeconds: 1}); err != nil {
		t.Fatal(err)
	}
}

// silent lets an election's last renewal be that long ago.
func (d *database) silent(t *testing.T, election string, seconds int) {
	t.Helper()
	d.exec(t, "UPDATE election_records SET last_update = UTC_TIMESTAMP(6) - INTERVAL ? SECOND WHERE election_name = ?", seconds, election)
}

// output is what a process has written so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// process is the command, running.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr output
}

// start starts the command with pipes, or with this terminal.
func start(t *testing.T, env []string, terminal *os.File, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.CommandContext(t.Context(), self, args...)}
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "MYSQL_") && !strings.HasPrefix(variable, "NO_COLOR=") && !strings.HasPrefix(variable, "TERM=") {
			p.cmd.Env = append(p.cmd.Env, variable)
		}
	}
	p.cmd.Env = append(append(p.cmd.Env, programVariable+"=1", "TERM=xterm"), env...)
	p.cmd.Dir = t.TempDir()
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if terminal != nil {
		p.cmd.Stdout = terminal
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// ends waits for the process's end, and returns its exit code; -1 if a signal ended it.
func (p *process) ends(t *testing.T) int {
	t.Helper()
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// result is what is left of a process that has ended.
type result struct {
	code           int
	stdout, stderr string
}

func do(t *testing.T, env []string, args ...string) result {
	t.Helper()
	p := start(t, env, nil, args...)
	code := p.ends(t)
	return result{code, p.stdout.String(), p.stderr.String()}
}

// is checks the exit code, and that stdout and stderr have these texts; an empty one means that there is nothing at all.
func (r result) is(t *testing.T, code int, stdout, stderr string) {
	t.Helper()
	has := func(text, part string) bool { return strings.Contains(text, part) && (part != "" || text == "") }
	if r.code != code || !has(r.stdout, stdout) || !has(r.stderr, stderr) {
		t.Errorf("exit code %d, want %d\nstdout, which should have %q:\n%s\nstderr, which should have %q:\n%s", r.code, code, stdout, r.stdout, stderr, r.stderr)
	}
}

// eventually waits until condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		<-tick.C
	}
}

// closedPort is a loopback port that nobody listens on.
func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// writeFile writes a file of the test's own, and returns its path.
func writeFile(t *testing.T, text string) string {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "dsn")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if _, err := io.WriteString(file, text); err != nil {
		t.Fatal(err)
	}
	return file.Name()
}
