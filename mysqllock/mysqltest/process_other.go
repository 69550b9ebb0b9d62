//go:build !unix

package mysqltest

import (
	"context"
	"fmt"
	"os"
	"runtime"
)

// Without process groups, SIGSTOP and a POSIX shell there is no throwaway server; Shared with an existing one works.

type process struct{}

func (*process) check() (exited, stopped bool) { return true, false }
func (*process) exited() bool                  { return true }
func (*process) wait(context.Context) error    { return nil }
func (*process) failure() error                { return nil }
func (*process) kill() error                   { return nil }
func (*process) terminate() error              { return nil }
func (*process) resume() error                 { return nil }
func (*process) pause(context.Context) error   { return nil }
func (*process) isProcess(string) bool         { return true }

type reaper struct{}

func startReaper(string) (*reaper, error) {
	return nil, fmt.Errorf("a throwaway server cannot be started on %s, set %s: %w", runtime.GOOS, dsnVariable, ErrNoServer)
}

func (*reaper) launch(_, _ *os.File, _ []string) (*process, error) { return &process{}, nil }
func (*reaper) forget()                                            {}
func (*reaper) close()                                             {}
