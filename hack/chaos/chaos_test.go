package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The program is compiled, as go test strips its own of the symbols by which clocks are bent.
func TestAShortRunFindsNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	program := filepath.Join(t.TempDir(), "chaos")
	if output, err := exec.CommandContext(ctx, "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	output, err := exec.CommandContext(ctx, program, "-seed", "1", "-duration", "15s").CombinedOutput()
	t.Logf("%s", output)
	if err != nil {
		t.Error(err)
	}
	for _, wanted := range []string{"\n0 violations\n", "rounds of faults:\n"} {
		if !strings.Contains(string(output), wanted) {
			t.Errorf("the report lacks %q", wanted)
		}
	}
	for _, empty := range []string{"\n0 terms", " 0 entries acknowledged", "\n0 raw operations"} {
		if strings.Contains(string(output), empty) {
			t.Errorf("the report has %q: nothing was tried", strings.TrimSpace(empty))
		}
	}
}
