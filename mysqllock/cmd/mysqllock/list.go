package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

const listHelp = `mysqllock list [-o wide|json] [-watch]

Lists all elections of the database, sorted by name. It needs SELECT on the two tables, locks nothing and is no candidate.

  STATE    led; asked: to step down; released; expired: the leader did not renew for longer than its lease, and is gone
  READY    whether the leader could do its work when it last renewed (mysqllock.WithReadiness)
  SINCE    how long ago the term began, by the leader's own clock
  RENEWED  how long ago the leader renewed, or released, by the server's clock
  TOKEN    the fencing token of the newest term

-watch reads once a second until it is told to end (ctrl-C, SIGTERM), which is no error. A terminal shows the newest
reading, and marks with * for ten seconds what is new or has changed in more than its times; elsewhere a table, or with
-o json an array in one line, is written at each such change.

A table fits the terminal: if that is too narrow, it has no TOKEN, and "…" is in the middle of long names. With
-o wide, and in a pipe, everything is there.

Names are shown as Go writes them in quotes: what a terminal would not show, or obey, is an escape sequence. Colours are
for terminals only, and not if NO_COLOR is set. Durations in JSON are seconds.

Examples:
  mysqllock list
  mysqllock list -watch -dsn /run/secrets/dsn
  mysqllock list -o json | jq -r '.[] | select(.expired) | .election'
`

func list(ctx context.Context, stdout, stderr *os.File, args []string) error {
	f := newFlags("list", listHelp)
	where := f.connection()
	form := f.String("o", "", "`form` of the output: wide, for more columns, or json; default: a table")
	watching := f.Bool("watch", false, "go on, and show what changes")
	if _, err := f.parse(args); err != nil {
		return err
	}
	if *form != "" && *form != "wide" && *form != "json" {
		return usageError{errors.New("list: -o is neither wide nor json")}
	}
	db, options, err := where.open()
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // nothing to lose
	read := func(ctx context.Context) ([]mysqllock.Election, error) {
		return mysqllock.ListElections(ctx, db, options...)
	}
	if *watching {
		return watch(ctx, stdout, stderr, *form, read)
	}
	elections, err := read(ctx)
	if err != nil {
		return err
	}
	if *form == "json" {
		text, err := asJSON(elections, "  ")
		if err != nil {
			return err
		}
		return write(stdout, text)
	}
	table := rows(elections, *form == "wide", nil)
	if columns, _ := sizeOf(stdout); *form == "" {
		table = fit(table, 0, columns)
	}
	lines := align(table, isColoured(stdout))
	return write(stdout, strings.Join(lines, "\n")+"\n")
}

// rows are the cells of the table. Elections that are marked, if anything is, have a * before their names.
func rows(elections []mysqllock.Election, wide bool, marked map[string]bool) [][]cell {
	header := []string{"ELECTION", "LEADER", "STATE", "READY", "SINCE", "RENEWED", "TOKEN"}
	if wide {
		header = append(header, "LEASE", "CHANGES", "TERM BEGAN (UTC)", "LAST WRITTEN (UTC)")
	}
	all := [][]cell{nil}
	for _, title := range header {
		all[0] = append(all[0], cell{title, bold})
	}
	for _, e := range elections {
		leader, ready, since := "-", cell{"-", plain}, "-"
		if e.Holder != "" {
			leader = printable(e.Holder)
			ready = cell{"yes", plain}
		}
		if e.Holder != "" && !e.Ready {
			ready = cell{"no", yellow}
		}
		if e.Holder != "" && !e.AcquireTime.IsZero() {
			since = short(e.LastUpdate.Add(e.Age).Sub(e.AcquireTime))
		}
		state, style := stateOf(e)
		row := []cell{
			{printable(e.Name), plain},
			{leader, plain},
			{state, style},
			ready,
			{since, plain},
			{short(e.Age) + " ago", plain},
			{fmt.Sprint(e.FencingToken), plain},
		}
		if wide {
			row = append(row, cell{short(e.LeaseDuration), plain}, cell{fmt.Sprint(e.LeaderTransitions), plain},
				cell{clock(e.AcquireTime), plain}, cell{clock(e.LastUpdate), plain})
		}
		all = append(all, row)
	}
	if marked == nil {
		return all
	}
	for i := range all {
		mark := cell{" ", plain}
		if i > 0 && marked[elections[i-1].Name] {
			mark = cell{"*", yellow}
		}
		all[i] = append([]cell{mark}, all[i]...)
	}
	return all
}

func stateOf(e mysqllock.Election) (state string, style style) {
	switch {
	case e.Holder == "":
		return "released", dim
	case e.Expired:
		return "expired", red
	case e.StepDownRequested:
		return "asked", yellow
	}
	return "led", plain
}

// short is a duration in its two largest units, such as "3d 4h" or "15s".
func short(d time.Duration) string {
	seconds := int64(max(d, 0) / time.Second)
	days, hours, minutes := seconds/86400, seconds/3600%24, seconds/60%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd %dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh %dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm %ds", minutes, seconds%60)
	}
	return fmt.Sprintf("%ds", seconds)
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.DateTime)
}
