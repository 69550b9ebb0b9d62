package mysqltest

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// control runs op under the mutex, for a server that is ours and not closed.
func (s *Server) control(name string, op func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	switch {
	case s.existing:
		err = fmt.Errorf("it is the existing server of %s, which is not ours to control: use Start", dsnVariable)
	case s.closed:
		err = errors.New("it is closed")
	default:
		err = op()
	}
	if err != nil {
		return fmt.Errorf("mysqltest: %s the server: %w", name, err)
	}
	return nil
}

// running reports whether there is a process; one that ended by itself is forgotten.
func (s *Server) running() bool {
	if s.proc != nil && s.proc.exited() {
		s.reaper.forget()
		s.proc = nil
	}
	return s.proc != nil
}

// Kill ends the server by SIGKILL, as a crash does, and returns when it is gone. Its data stays: what was committed is
// there after Restart. A server that is not running is no error.
func (s *Server) Kill() error { return s.control("kill", s.kill) }

func (s *Server) kill() error {
	if !s.running() {
		return nil
	}
	if err := s.end(s.proc); err != nil {
		return err
	}
	s.proc = nil
	return nil
}

// Stop ends the server in an orderly way and returns when it is gone; its data stays. After a minute it is killed and
// an error returned. A server that is not running is no error.
func (s *Server) Stop() error { return s.control("stop", s.stop) }

func (s *Server) stop() error {
	if !s.running() {
		return nil
	}
	// A paused server would not see the signal until it is resumed.
	if err := errors.Join(s.proc.terminate(), s.proc.resume()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), stopLimit, fmt.Errorf("still running after %v, killed", stopLimit))
	defer cancel()
	if err := s.proc.wait(ctx); err != nil {
		return errors.Join(s.withLog(err), s.kill())
	}
	s.reaper.forget()
	s.proc = nil
	return nil
}

// Restart starts the server again on the same port and data, and returns when it answers SQL; a running one it stops
// first. It gives up when ctx ends, or after two minutes; the server is then not running.
func (s *Server) Restart(ctx context.Context) error {
	return s.control("restart", func() error {
		if err := s.stop(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("no answer within %v", startLimit))
		defer cancel()
		return s.run(ctx)
	})
}

// Pause freezes the server by SIGSTOP and returns when it stands still: connections stay open, and new ones are even
// accepted by the kernel, but nothing is answered until Resume. Kill, Stop, Restart and Close work on a paused server.
func (s *Server) Pause() error {
	return s.control("pause", func() error {
		if !s.running() {
			return errors.New("it is not running")
		}
		ctx, cancel := context.WithTimeoutCause(context.Background(), killLimit, fmt.Errorf("not stopped within %v", killLimit))
		defer cancel()
		return s.proc.pause(ctx)
	})
}

// Resume lets a paused server go on; to one that is not paused it does nothing.
func (s *Server) Resume() error {
	return s.control("resume", func() error {
		if !s.running() {
			return errors.New("it is not running")
		}
		return s.proc.resume()
	})
}

// Close kills the server and deletes everything of it. An existing server (see [Shared]) it leaves alone. Further calls
// do nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.existing || s.closed {
		return nil
	}
	s.closed = true
	err := s.kill() // nothing that an orderly shutdown would save is kept
	err = errors.Join(err, os.RemoveAll(s.dir))
	s.reaper.close()
	if err != nil {
		return fmt.Errorf("mysqltest: close the server: %w", err)
	}
	return nil
}
