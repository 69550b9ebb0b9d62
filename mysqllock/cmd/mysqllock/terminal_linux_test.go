package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// newTerminal opens a pseudo terminal: the side of a program, and what the program has written to it.
func newTerminal(t *testing.T) (terminal *os.File, screen *output) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	control := func(request uintptr, value *int32) {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 {
			t.Fatal(errno)
		}
	}
	var locked, number int32
	control(syscall.TIOCSPTLCK, &locked)
	control(syscall.TIOCGPTN, &number)
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	screen = &output{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(screen, master) // until the last program has closed its side
	}()
	t.Cleanup(func() {
		_ = terminal.Close()
		<-done
		_ = master.Close()
	})
	return terminal, screen
}

var colour = regexp.MustCompile(`\x1b\[\d*m`)

func TestColoursAreForTerminalsOnly(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	db.lead(t, "e", "worker-1", 15)
	db.silent(t, "e", 3600)
	for _, c := range []struct {
		variable string
		coloured bool
	}{{"", true}, {"NO_COLOR=", true}, {"NO_COLOR=1", false}, {"TERM=dumb", false}} {
		terminal, screen := newTerminal(t)
		p := start(t, append(db.env, c.variable), terminal, "list")
		if code := p.ends(t); code != 0 {
			t.Fatalf("exit code %d: %s", code, p.stderr.String())
		}
		eventually(t, "the terminal has all", func() bool { return strings.Count(screen.String(), "\n") == 2 })
		if got := strings.Contains(screen.String(), "\x1b[31mexpired\x1b[0m"); got != c.coloured {
			t.Errorf("with %q: %q", c.variable, screen.String())
		}
		if plain := colour.ReplaceAllString(screen.String(), ""); strings.Contains(plain, "\x1b") || !strings.Contains(plain, "worker-1  expired") {
			t.Errorf("%q", plain)
		}
	}
}

// resize tells a terminal how large it is.
func resize(t *testing.T, terminal *os.File, columns, rows uint16) {
	t.Helper()
	size := struct{ rows, columns, x, y uint16 }{rows: rows, columns: columns}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, terminal.Fd(), syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&size))); errno != 0 {
		t.Fatal(errno)
	}
}

func TestListFitsATerminalOfEightyColumns(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	for i := range 30 {
		db.lead(t, fmt.Sprintf("prod-eu/team-a/a-controller-with-a-long-name-%02d", i), "worker-7d4b9_0242ac110002_1_4QKBXOLM", 3600)
	}
	terminal, screen := newTerminal(t)
	resize(t, terminal, 80, 24)
	if code := start(t, db.env, terminal, "list").ends(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	eventually(t, "the terminal has all", func() bool { return strings.Count(screen.String(), "\n") == 31 })
	for line := range strings.Lines(colour.ReplaceAllString(screen.String(), "")) {
		if n := width(strings.TrimRight(line, "\r\n")); n > 80 || n < 60 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	watch := start(t, db.env, terminal, "list", "-watch")
	var last []string
	eventually(t, "the screen has its last row", func() bool {
		all := frames(screen.String())
		if len(all) > 0 {
			last = all[len(all)-1]
		}
		return len(last) > 0 && strings.Contains(last[len(last)-1], "more, for which this terminal has no rows")
	})
	if len(last) != 24 {
		t.Errorf("%d rows of 24", len(last))
	}
	for _, line := range last {
		if width(line) > 80 {
			t.Errorf("%d columns: %q", width(line), line)
		}
	}
	watch.signal(t, syscall.SIGTERM)
	watch.ends(t)
}

// frames are the screens that were drawn, without colours, by their lines.
func frames(screen string) (all [][]string) {
	for frame := range strings.SplitSeq(colour.ReplaceAllString(screen, ""), "\x1b[J") {
		var lines []string
		for _, line := range regexp.MustCompile(`\x1b\[\d+;1H`).Split(frame, -1)[1:] {
			lines = append(lines, strings.TrimSuffix(line, "\x1b[K"))
		}
		if lines != nil {
			all = append(all, lines)
		}
	}
	return all
}

func TestWatchRedrawsATerminalInPlaceAndMarksChanges(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	lock := db.lead(t, "shop/mail", "worker-1", 3600)
	db.lead(t, "shop/orders", "worker-1", 3600)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		terminal, screen := newTerminal(t)
		p := start(t, db.env, terminal, "list", "-watch")
		shows := func(line string) {
			t.Helper()
			eventually(t, "the screen shows "+line, func() bool {
				all := frames(screen.String())
				return len(all) > 0 && strings.Contains(strings.Join(all[len(all)-1], "\n"), line)
			})
		}
		if signal == syscall.SIGINT {
			shows("\n   shop/mail    worker-1  led")
			db.release(t, lock)
			shows("\n*  shop/mail    -         released")
			shows("\n   shop/orders  worker-1  led")
		}
		shows("2 elections; ctrl-C ends it\n\n   ELECTION     LEADER")
		if strings.Contains(screen.String(), "\n") {
			t.Errorf("it scrolls: %q", screen.String())
		}
		p.signal(t, signal)
		if code := p.ends(t); code != 0 || p.stderr.String() != "" {
			t.Errorf("exit code %d: %s", code, p.stderr.String())
		}
		eventually(t, "the terminal is as before", func() bool {
			return strings.HasPrefix(screen.String(), openScreen) && strings.HasSuffix(screen.String(), closeScreen)
		})
	}
}

func TestWatchShowsOnATerminalThatItCannotRead(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	db.lead(t, "e", "worker-1", 3600)
	terminal, screen := newTerminal(t)
	p := start(t, db.env, terminal, "list", "-watch", "-o", "wide")
	eventually(t, "it shows the election", func() bool { return strings.Contains(screen.String(), "worker-1") })
	db.exec(t, "RENAME TABLE election_fences TO away")
	eventually(t, "it says so beside what it knows", func() bool {
		all := frames(screen.String())
		last := strings.Join(all[len(all)-1], "\n")
		return strings.Contains(last, "not read for ") && strings.Contains(last, "run mysqllock.Migrate") && strings.Contains(last, "worker-1")
	})
	db.exec(t, "RENAME TABLE away TO election_fences")
	eventually(t, "it reads again", func() bool {
		all := frames(screen.String())
		return !strings.Contains(strings.Join(all[len(all)-1], "\n"), "not read for ")
	})
	p.signal(t, syscall.SIGTERM)
	if code := p.ends(t); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr.String())
	}
}
