package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// candidate is a process of this program in its other mode, as the stage
// manager knows it. All fields but cmd are the stage manager's goroutine's.
type candidate struct {
	name   string
	cmd    *exec.Cmd
	told   bool   // to end
	killed bool   // and with no chance to do so in an orderly way
	leads  bool   // said that it leads, and not yet that it stopped
	sees   string // the leader that it reported last
	ended  bool
}

var names = []string{"alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett"}

func (s *stage) candidate(name string) *candidate {
	for _, c := range s.candidates {
		if c.name == name {
			return c
		}
	}
	panic("quickstart: an event of " + name + ", which was never started")
}

// start starts one more candidate, under a name that none had before.
func (s *stage) start(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("number-%d", len(s.candidates)+1)
	if len(s.candidates) < len(names) {
		name = names[len(s.candidates)]
	}
	args := []string{"candidate", "-id", name, "-election", s.election}
	if s.verbose {
		args = append(args, "-v")
	}
	cmd := exec.Command(program, args...) //nolint:noctx // a context would kill it, but it is to end in an orderly way
	cmd.Env = s.env
	if _, err := cmd.StdinPipe(); err != nil { // see endWithStage
		return err
	}
	cmd.Stdout = &lines{each: func(line []byte) { s.hear(name, line) }}
	var last string // of what it said on stderr, usually why it ends
	stderr := &lines{each: func(line []byte) { last = strings.TrimPrefix(string(line), "quickstart: ") }}
	cmd.Stderr = stderr
	if s.verbose {
		cmd.Stderr = io.MultiWriter(stderr, os.Stderr)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	c := &candidate{name: name, cmd: cmd}
	s.candidates = append(s.candidates, c)
	s.add(event{Time: time.Now().UnixNano(), Candidate: name, What: processStarted, text: fmt.Sprintf("pid %d", cmd.Process.Pid)})
	go func() {
		err := cmd.Wait()
		e := event{Time: time.Now().UnixNano(), Candidate: name, What: processEnded, text: cmd.ProcessState.String(), failure: err}
		if err != nil && last != "" {
			e.text += ", " + last
		}
		s.send(e)
	}()
	return nil
}

// hear takes a line of a candidate's stdout.
func (s *stage) hear(name string, line []byte) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil || e.Candidate != name {
		// A report that can't be understood may be one of leadership.
		e = event{Time: time.Now().UnixNano(), Candidate: name, What: notUnderstood, text: string(line)}
	}
	s.send(e)
}

// lines is a writer that hands on whole lines.
type lines struct {
	each func([]byte)
	rest []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		l.each(line)
		l.rest = rest
	}
}

// stageVariable tells a candidate that its stdin is a pipe from the stage.
const stageVariable = "QUICKSTART_STAGE"

// endWithStage ends a candidate when its stage manager is gone, however that
// ended: then the pipe, which nobody ever writes to, ends.
func endWithStage() {
	if os.Getenv(stageVariable) == "" {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		fmt.Fprintln(os.Stderr, "quickstart: the stage manager is gone")
		os.Exit(1)
	}()
}
