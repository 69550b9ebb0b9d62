package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"
)

// event is one thing that happened: a line of JSON from a candidate, or
// something that the stage manager did or saw.
type event struct {
	Time      int64  `json:"time"` // nanoseconds since 1970: all processes share one clock
	Candidate string `json:"candidate"`
	What      string `json:"event"`
	Detail    string `json:"detail,omitempty"` // with seesLeader the leader, with commitRefused the error

	// Of the stage manager's own events only.
	text    string // what a person needs to know besides
	failure error  // with processEnded: nil for exit status 0
}

const (
	startedLeading = "started leading"
	stoppedLeading = "stopped leading"
	seesLeader     = "sees the leader"
	inTransaction  = "has begun a transaction, and works on"
	committed      = "its commit succeeds"
	commitRefused  = "its commit is REFUSED"

	paused         = "is paused in the middle of its transaction (SIGSTOP)"
	processStarted = "process started"
	processEnded   = "process ended"
	notUnderstood  = "says"
	replacementDue = "replacement due" // never on the timeline
	note           = "note"            // about the stage manager itself or the server
)

// reporter is how a candidate tells its events.
func reporter(out io.Writer, candidate string) func(what, detail string) {
	return func(what, detail string) {
		line, err := json.Marshal(event{Time: time.Now().UnixNano(), Candidate: candidate, What: what, Detail: detail})
		if err == nil {
			_, err = out.Write(append(line, '\n')) // one write, so that lines of two goroutines don't mix
		}
		if err != nil {
			// Unheard, it might lead while the timeline says that it doesn't.
			fmt.Fprintln(os.Stderr, "quickstart:", err)
			os.Exit(1)
		}
	}
}

// timeline prints events for a person and keeps them for the check at the end.
type timeline struct {
	out     io.Writer
	colours bool
	began   int64
	events  []event
	order   map[string]int // of the candidates, for their colours
}

func newTimeline(out *os.File) *timeline {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &timeline{
		out:     out,
		colours: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
		began:   time.Now().UnixNano(),
		order:   map[string]int{},
	}
}

// palette are ANSI colours that can be read on black and on white.
var palette = []string{"36", "35", "33", "32", "34", "31"}

func (t *timeline) add(e event) {
	t.events = append(t.events, e)
	who, words := e.Candidate, e.What
	switch e.What {
	case note:
		who, words = "", e.text
	case seesLeader:
		words += " " + e.Detail
	case commitRefused:
		words = t.paint("1", words) + ": " + e.Detail
	case startedLeading:
		words = t.paint("1", "LEADS")
	case stoppedLeading:
		words = t.paint("1", "stops leading")
	}
	if e.text != "" && e.What != note {
		words += ": " + e.text
	}
	column := fmt.Sprintf("%-10s", who)
	if who != "" {
		if _, known := t.order[who]; !known {
			t.order[who] = len(t.order)
		}
		column = t.paint(palette[t.order[who]%len(palette)], column)
	}
	fmt.Fprintf(t.out, "%8.3f  %s %s\n", seconds(e.Time-t.began), column, words)
}

func (t *timeline) heading(text string) {
	fmt.Fprintf(t.out, "\n%s\n", t.paint("1", text))
}

func (t *timeline) paint(colour, text string) string {
	if !t.colours {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func seconds(nanoseconds int64) float64 { return time.Duration(nanoseconds).Seconds() }

// term is the time for which one candidate led.
type term struct {
	candidate string
	from, to  int64
}

// terms finds who led when: from "started leading" until "stopped leading" or,
// if it never said so, until its process was seen dead. A process that is paused
// can't do anything, nor stop believing that it leads: what it tries when it
// wakes up is what fencing is for, and act 5 looks at.
func terms(events []event) []term {
	var all []term
	current := map[string]int{} // index in all
	for _, e := range events {
		i, leading := current[e.Candidate]
		switch {
		case e.What == startedLeading && !leading:
			current[e.Candidate] = len(all)
			all = append(all, term{e.Candidate, e.Time, math.MaxInt64})
		case (e.What == stoppedLeading || e.What == paused || e.What == processEnded) && leading:
			all[i].to = e.Time
			delete(current, e.Candidate)
		}
	}
	return all
}

// check returns an error that says who led beside whom, and when, if ever two
// candidates led at one moment.
func (t *timeline) check() error {
	all := terms(t.events)
	if len(all) == 0 {
		return fmt.Errorf("nobody ever led, so that there is nothing to check")
	}
	var found []string
	for i, a := range all {
		for _, b := range all[:i] {
			from, to := max(a.from, b.from), min(a.to, b.to)
			if from >= to || a.candidate == b.candidate {
				continue
			}
			until := "the end"
			if to != math.MaxInt64 {
				until = fmt.Sprintf("%.3f s", seconds(to-t.began))
			}
			found = append(found, fmt.Sprintf("%s and %s from %.3f s to %s", b.candidate, a.candidate, seconds(from-t.began), until))
		}
	}
	if found != nil {
		return fmt.Errorf("two candidates led at one moment: %s", strings.Join(found, "; "))
	}
	return nil
}
