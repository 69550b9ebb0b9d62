package child

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const echo = "echo"

// As a child, this program says what it is told, until that ends.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == echo {
		fmt.Println(os.Getenv("CHILD_VARIABLE"))
		for lines := json.NewDecoder(os.Stdin); ; {
			var text string
			if lines.Decode(&text) != nil {
				return
			}
			out := bufio.NewWriter(os.Stdout)
			fmt.Fprintln(out, text)
			_ = out.Flush() // the one who listens may be gone
		}
	}
	os.Exit(m.Run())
}

func TestChildIsToldAndHeardUntilItIsHungUp(t *testing.T) {
	long := strings.Repeat("x", longest-1)
	var said []string
	p, err := Start(t.Context(), echo, "orders", func(line []byte) error {
		said = append(said, string(line))
		return nil
	}, "CHILD_VARIABLE=variable")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first", long} {
		if err := p.Tell(text); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(p.HangUp(), p.Wait()); err != nil {
		t.Error(err)
	}
	if want := []string{"variable", "orders", "first", long}; !slices.Equal(said, want) {
		t.Errorf("heard %d lines, %.200q", len(said), said)
	}
}

func TestChildThatIsKilledEnds(t *testing.T) {
	p, err := Start(t.Context(), echo, "orders", func([]byte) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := p.Wait(); err == nil || err.Error() != "signal: killed" { // as hack/chaos has it in its histories
		t.Errorf("it ended by %v", err)
	}
}

// Else its parent would wait for its end in vain.
func TestChildThatNobodyHearsAnyMoreGoesOnAndIsWaitedFor(t *testing.T) {
	deaf := errors.New("deaf")
	p, err := Start(t.Context(), echo, "orders", func([]byte) error { return deaf })
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", 1<<16) // more than a pipe holds, with the next one
	for range 4 {
		if err := p.Tell(text); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(p.HangUp(), p.Wait()); !errors.Is(err, deaf) {
		t.Errorf("%v, want %v", err, deaf)
	}
}
