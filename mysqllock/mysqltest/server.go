package mysqltest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
)

// How long is waited when the caller's context sets no nearer deadline. A slow machine takes seconds, so these only
// bound a server that hangs.
const (
	startLimit = 2 * time.Minute
	stopLimit  = time.Minute
	killLimit  = 20 * time.Second
)

// Options says which server to start. The zero value is fine.
type Options struct {
	// Binary is the path, or the name in PATH, of the server program or of a wrapper script for it (see the package's
	// documentation). Default: $MYSQLLOCK_TEST_SERVER if set, else mariadbd, else mysqld, each from PATH or the
	// folders where distributions, Homebrew and MySQL's own packages put it.
	Binary string

	// Args are further server options, such as "--ssl-cert=/x/cert.pem". They come after the package's own, so they
	// win, and are also given to the run that makes the data directory. They must leave the administrator able to log
	// in over TCP without TLS: to demand TLS, REQUIRE it of an account instead of --require-secure-transport.
	// Default: none.
	Args []string
}

// Server is a running server, or one that was stopped or killed and can be restarted. Its methods may be called from
// several goroutines; those that start, stop and signal run one at a time.
type Server struct {
	config   *mysql.Config
	version  string
	mariadb  bool
	existing bool // the server of MYSQLLOCK_TEST_DSN: everything below is unset

	options Options
	program string
	dir     string
	reaper  *reaper

	mu       sync.Mutex
	proc     *process // nil when there is none
	logStart int64    // where the log of the process last started begins
	closed   bool
}

// Start starts a throwaway server of its own and returns when it answers SQL. Close ends it; if this program ends
// without Close, even by SIGKILL, the server ends and its directory is deleted all the same.
//
// It gives up when ctx ends, or after two minutes. The error wraps [ErrNoServer] if there is no program to start, and
// holds the end of the server's log if it did not come up. ctx is for the start only: its later end does nothing.
func Start(ctx context.Context, o Options) (*Server, error) {
	s, err := start(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("mysqltest: start: %w", err)
	}
	return s, nil
}

// Shared returns the server that MYSQLLOCK_TEST_DSN names, if that is set, else it does what [Start] does with zero
// Options. Use it where the test needs any server, and Start where it crashes, freezes or configures one: Kill, Stop,
// Restart, Pause and Resume return an error for an existing server, and its Close leaves it, and every database, as
// they are.
func Shared(ctx context.Context) (*Server, error) {
	dsn := os.Getenv(dsnVariable)
	if dsn == "" {
		return Start(ctx, Options{})
	}
	config, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, fmt.Errorf("mysqltest: %s: %w", dsnVariable, err)
	}
	config.DBName = ""
	s := &Server{config: config, existing: true}
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	if s.version, err = s.askVersion(ctx); err != nil {
		return nil, fmt.Errorf("mysqltest: %s: the server at %s: %w", dsnVariable, config.Addr, err)
	}
	s.mariadb = strings.Contains(s.version, "MariaDB")
	return s, nil
}

func start(ctx context.Context, o Options) (_ *Server, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("no answer within %v", startLimit))
	defer cancel()
	s := &Server{options: o, config: mysql.NewConfig()}
	if s.program, err = findProgram(o.Binary); err != nil {
		return nil, err
	}
	if s.mariadb, err = isMariaDB(ctx, s.program); err != nil {
		return nil, err
	}
	if s.dir, err = tempDir(); err != nil {
		return nil, err
	}
	if s.reaper, err = startReaper(s.dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	s.config.User, s.config.Passwd, s.config.Net = "mysqllock", rand.Text(), "tcp"
	if err := os.Mkdir(s.path("tmp"), 0o700); err != nil {
		return nil, err
	}
	if err := s.initialise(ctx); err != nil {
		return nil, err
	}
	// Between the choice of a port and the server's bind another program may take it.
	for try := 1; ; try++ {
		if s.config.Addr, err = freePort(); err != nil {
			return nil, err
		}
		if err = s.run(ctx); err == nil {
			return s, nil
		}
		if try == 5 || !errors.Is(err, errPortTaken) {
			return nil, err
		}
	}
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// asRoot: servers refuse to run as root unless told to. Another account could not enter a directory that is root's.
func asRoot() []string {
	if os.Geteuid() == 0 {
		return []string{"--user=root"}
	}
	return nil
}

// commonOptions are those of every run. "loose" ones may be unknown to a server: they are about size and speed only.
func (s *Server) commonOptions() []string {
	args := append([]string{"--no-defaults"}, asRoot()...)
	args = append(args,
		"--datadir="+s.path("data"), "--tmpdir="+s.path("tmp"),
		"--socket="+s.path("s.sock"), "--pid-file="+s.path("pid"),
		// The log is written to the kernel at each commit but not forced to the disk: a commit survives the server's
		// death by any signal, not a power cut.
		"--innodb-flush-log-at-trx-commit=2", "--sync-binlog=0",
		"--max-connections=1000",          // tests run at once
		"--loose-innodb-use-native-aio=0", // several servers at once would exhaust the kernel's slots
	)
	if s.mariadb {
		return append(args, "--loose-innodb-log-file-size=8M")
	}
	return append(args, "--loose-innodb-redo-log-capacity=8M", "--loose-mysqlx=OFF",
		"--secure-file-priv=NULL", // its default may be a folder that is not there, or not ours
	)
}

func (s *Server) launch(stdin *os.File, args []string) (*process, error) {
	log, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil {
		return nil, err
	}
	s.logStart = info.Size()
	return s.reaper.launch(stdin, log, append([]string{s.program}, args...))
}

var (
	errPortTaken = errors.New("its port is taken by another program")
	portTaken    = regexp.MustCompile(`(?i)address already in use|bind on TCP/IP port`)
)

// run starts the server on its port and waits until it answers.
func (s *Server) run(ctx context.Context) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	_, port, err := net.SplitHostPort(s.config.Addr)
	if err != nil {
		return err
	}
	args := append(s.commonOptions(), "--bind-address=127.0.0.1", "--port="+port, "--skip-name-resolve")
	if s.proc, err = s.launch(null, append(args, s.options.Args...)); err != nil {
		s.proc = nil
		return err
	}
	if err := s.answers(ctx); err != nil {
		err = errors.Join(s.withLog(err), s.end(s.proc))
		s.proc = nil // should end have failed: the reaper still knows it
		return err
	}
	return nil
}

// answers waits until the server executes SQL.
func (s *Server) answers(ctx context.Context) error {
	var last error
	err := poll(ctx, func() (bool, error) {
		if s.proc.exited() {
			if portTaken.MatchString(s.logText()) {
				return false, errPortTaken
			}
			return false, errors.Join(errors.New("the server ended while starting"), s.proc.failure())
		}
		// A server that hangs must not make us miss its end, so each attempt is short.
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		var version string
		if version, last = s.askVersion(attempt); s.version == "" {
			s.version = version // by Start alone: after it Version reads without the mutex
		}
		return last == nil, nil
	})
	if err != nil && ctx.Err() != nil {
		return errors.Join(err, last)
	}
	if err != nil {
		return err
	}
	// A script that runs the server as its child would be killed in its place, and the server would stay.
	if pid, err := os.ReadFile(s.path("pid")); err == nil && !s.proc.isProcess(strings.TrimSpace(string(pid))) {
		return fmt.Errorf("%s is a script that does not exec the server", s.program)
	}
	return nil
}

// end kills a process and waits for it.
func (s *Server) end(proc *process) error {
	if proc == nil {
		return nil
	}
	if err := proc.kill(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), killLimit, fmt.Errorf("process still there %v after SIGKILL", killLimit))
	defer cancel()
	if err := proc.wait(ctx); err != nil {
		return err
	}
	s.reaper.forget()
	return nil
}

// freePort returns an address whose port is free now, from below the ephemeral ranges (Linux: from 32768), so that no
// outgoing connection takes it while the server is down for a restart.
func freePort() (string, error) {
	const low, high = 20000, 32000
	var last error
	for range 100 {
		n, err := rand.Int(rand.Reader, big.NewInt(high-low))
		if err != nil {
			return "", err
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.FormatInt(low+n.Int64(), 10))
		l, err := net.Listen("tcp", addr)
		if err == nil {
			return addr, l.Close()
		}
		last = err
	}
	return "", fmt.Errorf("no free port on 127.0.0.1: %w", last)
}
