// Package child starts this program once more, as a process that a long run can kill, pause and give orders. The two
// talk by lines: what the child is told comes to its stdin as JSON, the orders first; what it says goes to stdout.
package child

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// Process is a child as its parent sees it.
type Process struct {
	command *exec.Cmd
	stdin   io.WriteCloser
	ended   chan struct{}
	err     error // once it has ended
}

// longest is the longest line that a child may say, in bytes.
const longest = 1 << 20

// Start starts a child with that argument and gives it its orders. Until the child ends, heard is called with each line
// that it says. The end of ctx kills it. Variables are added to this process's environment.
func Start(ctx context.Context, argument string, orders any, heard func(line []byte) error, variables ...string) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &Process{command: exec.CommandContext(ctx, self, argument), ended: make(chan struct{})}
	p.command.Env = append(os.Environ(), variables...)
	p.command.Stderr = os.Stderr
	if p.stdin, err = p.command.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		lines := bufio.NewScanner(stdout)
		lines.Buffer(nil, longest)
		var failed error
		for failed == nil && lines.Scan() {
			failed = heard(lines.Bytes())
		}
		failed = errors.Join(failed, lines.Err())
		_, _ = io.Copy(io.Discard, stdout) // a child that nobody hears must not wait for that
		p.err = errors.Join(failed, p.command.Wait())
	}()
	if err := p.Tell(orders); err != nil {
		_ = p.Signal(syscall.SIGKILL) // it may have ended
		return nil, errors.Join(err, p.Wait())
	}
	return p, nil
}

// Tell gives the child an order, as one line.
func (p *Process) Tell(order any) error { return json.NewEncoder(p.stdin).Encode(order) }

// HangUp ends what the child is told.
func (p *Process) HangUp() error { return p.stdin.Close() }

// Signal sends a signal, which fails if the child has ended.
func (p *Process) Signal(s syscall.Signal) error { return p.command.Process.Signal(s) }

// PID is the child's number.
func (p *Process) PID() int { return p.command.Process.Pid }

// Ended is closed once the child has ended and all that it said was heard.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits for the end, and returns why heard failed or how the child ended.
func (p *Process) Wait() error {
	<-p.ended
	return p.err
}
