package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

const (
	watchInterval = time.Second
	// markFor is how long a change stays marked.
	markFor = 10 * time.Second
)

// watcher shows one reading of the elections after the other.
type watcher struct {
	stdout, stderr *os.File
	form           string

	shown   map[string]glance // as in the last reading; nil before the first
	changed map[string]time.Time
	drawn   []string // the lines of the last reading
	read    time.Time
	failing bool
}

// glance is what of an election is worth a mark when it changes.
type glance struct {
	leader, state string
	ready         bool
	token         int64
}

// watch reads until ctx ends. Only a first reading that fails ends it.
func watch(ctx context.Context, stdout, stderr *os.File, form string, read func(context.Context) ([]mysqllock.Election, error)) error {
	w := &watcher{stdout: stdout, stderr: stderr, form: form, changed: map[string]time.Time{}}
	onScreen := form != "json" && isTerminal(stdout)
	show := w.append
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		elections, err := read(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && w.shown == nil {
			return err
		}
		if onScreen && w.shown == nil {
			if err := write(stdout, openScreen); err != nil {
				return err
			}
			defer func() { _ = write(stdout, closeScreen) }() // the terminal may be gone
			show = w.draw
		}
		if err := show(elections, err); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// note finds out what has changed since the last reading.
func (w *watcher) note(elections []mysqllock.Election) (anything bool) {
	now := make(map[string]glance, len(elections))
	for _, e := range elections {
		state, _ := stateOf(e)
		now[e.Name] = glance{e.Holder, state, e.Ready, e.FencingToken}
		if before, known := w.shown[e.Name]; w.shown != nil && (!known || before != now[e.Name]) {
			w.changed[e.Name] = time.Now()
			anything = true
		}
	}
	anything = anything || w.shown == nil
	for name := range w.shown {
		if _, there := now[name]; !there {
			delete(w.changed, name)
			anything = true
		}
	}
	w.shown = now
	w.read = time.Now()
	return anything
}

func (w *watcher) table(elections []mysqllock.Election, markFor time.Duration) []string {
	marked := map[string]bool{}
	for name, when := range w.changed {
		marked[name] = w.read.Sub(when) < markFor
	}
	table := rows(elections, w.form == "wide", marked)
	if columns, _ := sizeOf(w.stdout); w.form == "" {
		table = fit(table, 1, columns)
	}
	return align(table, isColoured(w.stdout))
}

// append writes a reading that has changed to what is no terminal.
func (w *watcher) append(elections []mysqllock.Election, err error) error {
	if err != nil {
		if !w.failing {
			fmt.Fprintln(w.stderr, err)
		}
		w.failing = true
		return nil
	}
	first := w.shown == nil
	if again := w.failing; !w.note(elections) && !again {
		return nil
	}
	w.failing = false
	if w.form == "json" {
		text, err := asJSON(elections, "")
		if err != nil {
			return err
		}
		return write(w.stdout, text)
	}
	text := strings.Join(w.table(elections, watchInterval/2), "\n") + "\n"
	if !first {
		text = "\n" + text
	}
	return write(w.stdout, text)
}

const (
	// openScreen saves what the terminal shows, and hides the cursor. Without wrapping, a line that is too long is cut.
	openScreen  = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
	closeScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// draw puts a reading where the last one was. Each line goes to its own row of the terminal; the last row says how many
// have none. Where the number of rows isn't known, the terminal takes the last one for all that are beyond it: nothing
// scrolls.
func (w *watcher) draw(elections []mysqllock.Election, err error) error {
	if err == nil {
		w.note(elections)
		w.drawn = w.table(elections, markFor)
	}
	lines := append([]string{fmt.Sprintf("%s  %d elections; ctrl-C ends it", clock(w.read), len(w.shown)), ""}, w.drawn...)
	if err != nil {
		lines[1] = cell{fmt.Sprintf("not read for %s: %v", short(time.Since(w.read)), err), red}.paint(isColoured(w.stdout))
	}
	if _, height := sizeOf(w.stdout); height > 3 && len(lines) > height {
		more := fmt.Sprintf("and %d more, for which this terminal has no rows", len(lines)-height+1)
		lines = append(lines[:height-1], cell{more, dim}.paint(isColoured(w.stdout)))
	}
	var text strings.Builder
	for i, line := range lines {
		fmt.Fprintf(&text, "\x1b[%d;1H%s\x1b[K", i+1, line)
	}
	text.WriteString("\x1b[J")
	return write(w.stdout, text.String())
}
