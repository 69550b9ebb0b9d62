package mysqltest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	serverVariable = "MYSQLLOCK_TEST_SERVER"
	dsnVariable    = "MYSQLLOCK_TEST_DSN"
)

// ErrNoServer is returned, wrapped, when there is no server program to start. Its text says what to do about it.
var ErrNoServer = errors.New(`no MariaDB or MySQL server program found. Do one of these:
  Debian, Ubuntu:  apt-get install mariadb-server     (or mysql-server)
  Fedora, RHEL:    dnf install mariadb-server         (or mysql-server)
  macOS:           brew install mariadb               (or mysql)
  elsewhere:       set ` + serverVariable + ` to the path of mariadbd or mysqld
  no local server: set ` + dsnVariable + ` to an existing one, for example "root:secret@tcp(127.0.0.1:3306)/"
                   (tests that crash or freeze the server need a program nevertheless)`)

// usualPlaces are searched after PATH: servers live in sbin, which few users' PATH holds, and versioned Homebrew
// formulae are not linked into its bin.
var usualPlaces = []string{
	"/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/usr/local/libexec", "/usr/bin", "/usr/local/bin",
	"/usr/local/mysql/bin",
	"/opt/homebrew/bin", "/opt/homebrew/opt/mariadb*/bin", "/opt/homebrew/opt/mysql*/bin",
	"/usr/local/opt/mariadb*/bin", "/usr/local/opt/mysql*/bin",
	"/home/linuxbrew/.linuxbrew/bin",
}

// findProgram returns the path of the server program: binary, else $MYSQLLOCK_TEST_SERVER, else the first one found.
func findProgram(binary string) (string, error) {
	origin := "Options.Binary"
	if binary == "" {
		binary, origin = os.Getenv(serverVariable), serverVariable
	}
	if binary != "" {
		path, err := exec.LookPath(binary)
		if err != nil {
			return "", fmt.Errorf("%s: %w: %w", origin, err, ErrNoServer)
		}
		return filepath.Abs(path)
	}
	for _, name := range []string{"mariadbd", "mysqld"} {
		if path, err := exec.LookPath(name); err == nil {
			return filepath.Abs(path)
		}
		for _, place := range usualPlaces {
			found, _ := filepath.Glob(filepath.Join(place, name)) // the patterns are constants: no error
			for _, candidate := range found {
				if path, err := exec.LookPath(candidate); err == nil {
					return path, nil
				}
			}
		}
	}
	return "", ErrNoServer
}

var versionOutput = regexp.MustCompile(`Ver \d+\.\d+`)

// isMariaDB asks the program which family it is of: a name says little, as MariaDB installs a mysqld too.
func isMariaDB(ctx context.Context, program string) (bool, error) {
	out, err := ask(ctx, program, "--no-defaults", "--version")
	if err != nil {
		return false, fmt.Errorf("%s --version: %w: %s", program, err, lastLines(out, 5))
	}
	if !versionOutput.MatchString(out) {
		return false, fmt.Errorf("%s is neither mariadbd nor mysqld: --version printed %q", program, lastLines(out, 5))
	}
	return strings.Contains(out, "MariaDB"), nil
}

// ask runs the program for its output only, such as --version.
func ask(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second // a script's child that holds the pipe must not hold us
	out, err := cmd.CombinedOutput()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // not "signal: killed", which is how the context does it
	}
	return string(out), err
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
