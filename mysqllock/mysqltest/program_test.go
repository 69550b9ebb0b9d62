//go:build unix

package mysqltest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "server")
	// A child that a parallel test forks meanwhile would hold the file open for writing, and it could not be executed.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWithoutAServerProgramTheErrorSaysWhatToInstall(t *testing.T) {
	places := usualPlaces
	usualPlaces = nil
	t.Cleanup(func() { usualPlaces = places })
	t.Setenv("PATH", t.TempDir())
	t.Setenv(serverVariable, "")
	_, err := Start(t.Context(), Options{})
	if !errors.Is(err, ErrNoServer) {
		t.Fatalf("error %v, want ErrNoServer", err)
	}
	for _, remedy := range []string{"apt-get install", "dnf install", "brew install", serverVariable, dsnVariable} {
		if !strings.Contains(err.Error(), remedy) {
			t.Errorf("the error does not name %s", remedy)
		}
	}
}

func TestAProgramNamedThatIsNotThereIsNamedInTheError(t *testing.T) {
	t.Setenv(serverVariable, "/nowhere/mariadbd")
	_, err := Start(t.Context(), Options{})
	if !errors.Is(err, ErrNoServer) || !strings.Contains(err.Error(), "/nowhere/mariadbd") {
		t.Errorf("error %v", err)
	}
}

func TestAServerInPathIsFound(t *testing.T) {
	places := usualPlaces
	usualPlaces = nil
	t.Cleanup(func() { usualPlaces = places })
	path := script(t, "")
	named := filepath.Join(filepath.Dir(path), "mysqld")
	if err := os.Rename(path, named); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Dir(named))
	t.Setenv(serverVariable, "")
	if found, err := findProgram(""); found != named || err != nil {
		t.Errorf("found %q, %v; want %q", found, err, named)
	}
	usualPlaces = []string{filepath.Dir(filepath.Dir(named)) + "/*"}
	t.Setenv("PATH", "/nowhere")
	if found, err := findProgram(""); found != named || err != nil {
		t.Errorf("in the usual places found %q, %v; want %q", found, err, named)
	}
}

func TestAProgramThatIsNoServerIsRefused(t *testing.T) {
	_, err := Start(t.Context(), Options{Binary: script(t, "echo hello")})
	if err == nil || !strings.Contains(err.Error(), "neither mariadbd nor mysqld") || !strings.Contains(err.Error(), "hello") {
		t.Errorf("error %v, want one with what it printed", err)
	}
}

func TestAServerThatFailsIsReportedWithTheEndOfItsLog(t *testing.T) {
	t.Parallel()
	binary := script(t, `case "$*" in *--version*) echo "mysqld  Ver 9.9.9";; *) echo "the disk is full"; exit 3;; esac`)
	for want, o := range map[string]Options{
		"the disk is full": {Binary: binary},
		"exit status 3":    {Binary: binary},
		"no-such-option":   {Args: []string{"--no-such-option=1"}},
	} {
		if _, err := Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that says %q", err, want)
		}
	}
}

func TestAMariaDBWithoutItsScriptsSaysWhereItLooked(t *testing.T) {
	_, err := readScript([]string{"/nowhere/a", "/nowhere/b"}, "system_tables.sql")
	if err == nil || !strings.Contains(err.Error(), "/nowhere/a, /nowhere/b") {
		t.Errorf("error %v", err)
	}
}

func TestShareFoldersAreReadFromTheServersHelp(t *testing.T) {
	help := "basedir            /opt/m\ncharacter-sets-dir /opt/m/cs/charsets/\nlc-messages-dir    share/x\nlc-messages        en\n"
	dirs := strings.Join(shareDirs(help), " ")
	if !strings.HasPrefix(dirs, "/opt/m/share/x /opt/m/cs/charsets ") {
		t.Errorf("got %s", dirs)
	}
}
