package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
)

// candidate is a running program of one version. Its identity is the version's name.
type candidate struct {
	name    string
	command *exec.Cmd
	led     chan struct{} // closed when it says that it leads
	lost    chan struct{} // closed when it says that it no longer does
	ended   chan struct{}

	mu  sync.Mutex
	log bytes.Buffer
}

func start(ctx context.Context, v version, config *mysql.Config) (*candidate, error) {
	c := &candidate{
		name: v.name, led: make(chan struct{}), lost: make(chan struct{}), ended: make(chan struct{}),
		command: exec.CommandContext(ctx, v.program, "-id", v.name, "-lease-lock-name", election,
			"-lease-duration", lease.String(), "-renew-deadline", deadline.String(), "-retry-period", retry.String()),
	}
	c.command.Env = environment(config)
	stderr, err := c.command.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.command.Start(); err != nil {
		return nil, err
	}
	go c.listen(stderr)
	return c, nil
}

func (c *candidate) listen(stderr io.Reader) {
	defer close(c.ended)
	led, lost := sync.OnceFunc(func() { close(c.led) }), sync.OnceFunc(func() { close(c.lost) })
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		c.mu.Lock()
		fmt.Fprintln(&c.log, lines.Text())
		c.mu.Unlock()
		switch {
		case strings.Contains(lines.Text(), `"Controller loop..."`):
			led()
		case strings.Contains(lines.Text(), `"Leader lost"`):
			lost()
		}
	}
	_ = c.command.Wait() // by a signal, mostly
}

// failed is an error with all that the candidate logged.
func (c *candidate) failed(what string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("the candidate of the %s version %s; its log:\n%s", c.name, what, c.log.String())
}

// await waits until c leads, which it may not before its predecessor has been sent a signal.
func (c *candidate) await(ctx context.Context, predecessor *candidate) error {
	select {
	case <-c.led:
		return nil
	case <-c.ended:
		return c.failed("ended before it led")
	case <-time.After(limit):
		err := c.failed("does not lead")
		if predecessor != nil {
			err = errors.Join(err, predecessor.failed("led before"))
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// holds checks that c goes on leading for so long, and that the other one does not lead beside it.
func (c *candidate) holds(ctx context.Context, standby *candidate, long time.Duration) error {
	select {
	case <-c.lost:
		return errors.Join(c.failed("lost the lease, which nothing disturbed"), standby.failed("stood by"))
	case <-c.ended:
		return errors.Join(c.failed("ended, which nothing disturbed"), standby.failed("stood by"))
	case <-standby.led:
		return errors.Join(c.failed("leads"), standby.failed("leads beside it"))
	case <-standby.ended:
		return standby.failed("ended")
	case <-time.After(long):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end sends a signal and waits for the end.
func (c *candidate) end(s syscall.Signal) error {
	if err := c.command.Process.Signal(s); err != nil {
		return errors.Join(c.failed("could not be sent a signal"), err)
	}
	select {
	case <-c.ended:
		return nil
	case <-time.After(limit):
		return c.failed("does not end by the signal")
	}
}

func (c *candidate) kill() {
	_ = c.command.Process.Kill() // it may have ended
	<-c.ended
}
