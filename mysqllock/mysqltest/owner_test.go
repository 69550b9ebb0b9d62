//go:build unix

package mysqltest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ownerVariable makes this test program an owner: it starts a server, says so, and waits to be killed.
const ownerVariable = "MYSQLLOCK_TEST_OWNER"

func owner() {
	if _, err := Start(context.Background(), Options{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	select {}
}

func TestAKilledOwnerLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		ready bool
		kill  func(pid int) error
	}{
		{"SIGKILL while the server runs", true, func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }},
		{"SIGKILL during initialisation", false, func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }},
		{"Ctrl-C during initialisation", false, func(pid int) error { return syscall.Kill(-pid, syscall.SIGINT) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tmp, err := os.MkdirTemp("", "mlt-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(tmp) })
			program, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program)
			cmd.Env = append(os.Environ(), ownerVariable+"=1", "TMPDIR="+tmp)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if test.ready {
				if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
					t.Errorf("the owner said %q, %v", line, err)
				}
			}
			within(t, 30*time.Second, "the server's process", func() bool {
				return strings.Contains(strings.Join(processes(t, tmp), "\n"), "--socket") // the help run before has none
			})
			if err := test.kill(cmd.Process.Pid); err != nil {
				t.Error(err)
			}
			_ = cmd.Wait()
			within(t, 20*time.Second, "the end of all processes", func() bool { return len(processes(t, tmp)) == 0 })
			within(t, 20*time.Second, "the directory's removal", func() bool {
				return len(directories(tmp)) == 0
			})
		})
	}
}

func TestAWrapperThatDoesNotExecIsRefusedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	program, err := findProgram("")
	if err != nil {
		t.Fatal(err)
	}
	binary := script(t, "echo \"$@\" >>\"$0.args\"; '"+program+"' \"$@\"\nexit $?\n")
	_, err = Start(t.Context(), Options{Binary: binary})
	if err == nil || !strings.Contains(err.Error(), "does not exec") {
		t.Errorf("error %v", err)
	}
	args, err := os.ReadFile(binary + ".args")
	dir := regexp.MustCompile(`--pid-file=(\S+)/pid`).FindStringSubmatch(string(args))
	if dir == nil {
		t.Fatalf("options %q, %v", args, err)
	}
	within(t, 20*time.Second, "the end of all processes", func() bool { return len(processes(t, dir[1])) == 0 })
	if _, err := os.Stat(dir[1]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory left: %v", err)
	}
}

// watchedTempDir is the TMPDIR of this test, to see what is left in it. t.TempDir's path would be too long for a socket.
func watchedTempDir(t *testing.T) string {
	t.Helper()
	tmp, err := os.MkdirTemp("", "mlt-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	t.Setenv("TMPDIR", tmp)
	return tmp
}

// directories are the servers' below a temporary directory.
func directories(tmp string) []string {
	found, _ := filepath.Glob(filepath.Join(tmp, "mysqllock-*"))
	return found
}

// processes returns those whose command line names dir: server, reaper, and what they run. Zombies are not counted:
// whether somebody reaps an orphan is the machine's affair.
func processes(t *testing.T, dir string) (found []string) {
	t.Helper()
	out, err := exec.Command("ps", "-axo", "pid=,stat=,args=").Output()
	if err != nil {
		t.Errorf("ps: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) > 2 && !strings.HasPrefix(fields[1], "Z") && strings.Contains(line, dir) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

func within(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := poll(ctx, func() (bool, error) { return cond(), nil }); err != nil {
		t.Errorf("waited in vain for %s: %v", what, err)
	}
}
