package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// flags are those of one command.
type flags struct {
	*flag.FlagSet
	help string
}

// helpError is that -h was asked for.
type helpError struct{ text string }

func (helpError) Error() string { return "help was asked for" }

func newFlags(name, help string) *flags {
	f := &flags{flag.NewFlagSet(name, flag.ContinueOnError), help}
	f.SetOutput(io.Discard) // report prints the error
	return f
}

// parse returns the arguments that are no flags, of which there must be as many as want names. Flags may come before and
// after them.
func (f *flags) parse(args []string, want ...string) ([]string, error) {
	var found []string
	for {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, helpError{f.page()}
		} else if err != nil {
			return nil, usageError{fmt.Errorf("%s: %w; mysqllock %s -h describes it", f.Name(), err, f.Name())}
		}
		if f.NArg() == 0 {
			break
		}
		found = append(found, f.Arg(0))
		args = f.Args()[1:]
	}
	if len(found) != len(want) {
		takes := "no argument"
		if len(want) > 0 {
			takes = "one argument, " + strings.Join(want, " ")
		}
		return nil, usageError{fmt.Errorf("%s takes %s, and has %d; mysqllock %s -h describes it", f.Name(), takes, len(found), f.Name())}
	}
	return found, nil
}

// page is the whole help of the command.
func (f *flags) page() string {
	var text strings.Builder
	text.WriteString(f.help + "\nFlags:\n")
	f.SetOutput(&text)
	f.PrintDefaults()
	text.WriteString(exitCodes)
	return text.String()
}
