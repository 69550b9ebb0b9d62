//go:build unix

package mysqltest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// process is a child in a process group of its own, so that Ctrl-C in a terminal reaches the test and not the server,
// which the test may still need to clean up.
//
// It is reaped here and nowhere else, by calls under the owner's mutex, and is signalled only until then: a child that
// is not reaped keeps its pid, so the pid signalled is always this process's, never a re-used one. os.Process is not
// used beyond the start, as its Wait needs a goroutine and says nothing of a stopped child.
type process struct {
	pid    int
	reaped bool
	status syscall.WaitStatus
}

func startProcess(files []*os.File, argv ...string) (*process, error) {
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir: "/", Files: files, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return nil, err
	}
	proc := &process{pid: p.Pid}
	return proc, p.Release()
}

// check reaps the process if it has ended, and reports whether it has; stopped, whether it has been stopped since.
func (p *process) check() (exited, stopped bool) {
	if p.reaped {
		return true, false
	}
	var status syscall.WaitStatus
	for {
		pid, err := syscall.Wait4(p.pid, &status, syscall.WNOHANG|syscall.WUNTRACED, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil: // not our child any more: somebody else in this program waits for any child
			p.reaped = true
			return true, false
		case pid == 0:
			return false, false
		case status.Stopped():
			return false, true
		}
		p.reaped, p.status = true, status
		return true, false
	}
}

func (p *process) exited() bool {
	exited, _ := p.check()
	return exited
}

// wait waits until the process has ended.
func (p *process) wait(ctx context.Context) error {
	return poll(ctx, func() (bool, error) { return p.exited(), nil })
}

// failure says how the process ended, nil for exit status 0.
func (p *process) failure() error {
	switch {
	case p.status.Signaled():
		return fmt.Errorf("the server was ended by signal: %v", p.status.Signal())
	case p.status.ExitStatus() != 0:
		return fmt.Errorf("the server ended with exit status %d", p.status.ExitStatus())
	}
	return nil
}

// signal sends to the whole group; to a process that has ended it does nothing.
func (p *process) signal(sig syscall.Signal) error {
	if p.reaped {
		return nil
	}
	if err := syscall.Kill(-p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) && !p.exited() {
		return fmt.Errorf("send %v to process group %d: %w", sig, p.pid, err)
	}
	return nil
}

func (p *process) kill() error      { return p.signal(syscall.SIGKILL) }
func (p *process) terminate() error { return p.signal(syscall.SIGTERM) }
func (p *process) resume() error    { return p.signal(syscall.SIGCONT) }

// pause returns when every thread of the process has stopped; the signal alone is not awaited by kill(2).
func (p *process) pause(ctx context.Context) error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		exited, stopped := p.check()
		if exited {
			return false, errors.New("the server has ended")
		}
		return stopped, nil
	})
}

// isProcess reports whether text, the content of a pid file, names this process.
func (p *process) isProcess(text string) bool { return text == strconv.Itoa(p.pid) }
