//go:build unix

package mysqltest

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

func TestAStartedServerAnswersItsAdministratorOverLoopback(t *testing.T) {
	s := commonServer(t)
	if strings.Contains(s.Version(), "MariaDB") != s.MariaDB() {
		t.Errorf("MariaDB() is %v for %s", s.MariaDB(), s.Version())
	}
	host, _, err := net.SplitHostPort(s.Config().Addr)
	if err != nil || host != "127.0.0.1" {
		t.Errorf("it listens on %s (%v)", s.Config().Addr, err)
	}
	db := testDatabase(t, s)
	if n := count(t, db); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	mustExec(t, db, "CREATE USER 'other'@'127.0.0.1' IDENTIFIED BY 'x'")
	mustExec(t, db, "GRANT ALL PRIVILEGES ON *.* TO 'other'@'127.0.0.1' WITH GRANT OPTION")
	mustExec(t, db, "DROP USER 'other'@'127.0.0.1'")
}

func TestNobodyElseCanLogIn(t *testing.T) {
	for _, user := range []string{"root", "mysqllock", ""} {
		config := commonServer(t).Config()
		config.User, config.Passwd = user, ""
		var denied *mysql.MySQLError
		if err := open(t, config).PingContext(t.Context()); !errors.As(err, &denied) {
			t.Errorf("user %q without a password: %v, want access denied", user, err)
		}
	}
}

func TestTheConfigurationReturnedIsACopy(t *testing.T) {
	s := commonServer(t)
	s.Config().DBName = "changed"
	if s.Config().DBName != "" {
		t.Error("a caller changed the server's own configuration")
	}
}

func TestOnlyDatabasesOfItsOwnAreDropped(t *testing.T) {
	if err := commonServer(t).DropDatabase(t.Context(), "mysql"); err == nil {
		t.Error("dropped mysql")
	}
}

func TestTwoServersRunAtOnceAndCloseRemovesOneEntirely(t *testing.T) {
	t.Parallel()
	first := commonServer(t)
	second, err := Start(t.Context(), Options{Args: []string{"--lock-wait-timeout=7"}})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if first.Config().Addr == second.Config().Addr {
		t.Fatal("both have one address")
	}
	db := testDatabase(t, first)
	var timeout int
	if err := open(t, second.Config()).QueryRowContext(t.Context(), "SELECT @@lock_wait_timeout").Scan(&timeout); err != nil || timeout != 7 {
		t.Errorf("Options.Args gave lock_wait_timeout %d, %v; want 7", timeout, err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if left := processes(t, second.dir); len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
	if _, err := os.Stat(second.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory left: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := second.Restart(t.Context()); err == nil {
		t.Error("restarted after Close")
	}
	if n := count(t, db); n != 1 {
		t.Errorf("the other server has %d rows, want 1", n)
	}
}

func TestAnEndedContextEndsTheStart(t *testing.T) {
	tmp := watchedTempDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Start(ctx, Options{})
		done <- err
	}()
	within(t, 30*time.Second, "the server's program to run", func() bool {
		return strings.Contains(strings.Join(processes(t, tmp), "\n"), "--socket") // the help run before has none
	})
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Start went on")
	}
	if left := processes(t, tmp); len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
	if left := directories(tmp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestASharedServerIsTheExistingOneAndIsLeftAlone(t *testing.T) {
	existing := commonServer(t)
	config := existing.Config()
	config.DBName = "mysql"
	t.Setenv(dsnVariable, config.FormatDSN())
	s, err := Shared(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Config().Addr != existing.Config().Addr || s.Version() != existing.Version() || s.Config().DBName != "" {
		t.Errorf("got %s at %s", s.Version(), s.Config().FormatDSN())
	}
	db := testDatabase(t, s)
	for name, op := range map[string]func() error{
		"Kill": s.Kill, "Stop": s.Stop, "Pause": s.Pause, "Resume": s.Resume,
		"Restart": func() error { return s.Restart(t.Context()) },
	} {
		if err := op(); err == nil || !strings.Contains(err.Error(), dsnVariable) {
			t.Errorf("%s: %v, want a refusal that names %s", name, err, dsnVariable)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := count(t, db); n != 1 {
		t.Errorf("%d rows after Close, want 1", n)
	}
}

func TestASharedServerThatRefusesUsIsAnErrorThatNamesTheVariable(t *testing.T) {
	config := commonServer(t).Config()
	config.Passwd = "wrong"
	for _, dsn := range []string{"nonsense", config.FormatDSN()} {
		t.Setenv(dsnVariable, dsn)
		if _, err := Shared(t.Context()); err == nil || !strings.Contains(err.Error(), dsnVariable) {
			t.Errorf("%s: error %v", dsn, err)
		}
	}
}
