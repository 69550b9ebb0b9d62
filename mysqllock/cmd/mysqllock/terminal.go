package main

import "os"

// isTerminal reports whether a person looks at f, on something that understands escape sequences.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// isColoured follows https://no-color.org.
func isColoured(f *os.File) bool { return isTerminal(f) && os.Getenv("NO_COLOR") == "" }
