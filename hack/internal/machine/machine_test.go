package machine

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"time"
)

func TestWhatAProcessUsesIsTheSameFromBothSides(t *testing.T) {
	if runtime.GOOS != "linux" {
		if _, err := CPUOf(os.Getpid()); !errors.Is(err, ErrNoProc) {
			t.Errorf("%v, want ErrNoProc", err)
		}
		return
	}
	busy, all := CPU()
	before := OwnCPU()
	work := 0
	for OwnCPU() < before+200*time.Millisecond {
		work++
	}
	t.Log(work)
	own := OwnCPU()
	seen, err := CPUOf(os.Getpid())
	if d := seen - own; err != nil || d < -3*tick || d > 10*tick {
		t.Errorf("CPUOf says %v (%v), OwnCPU %v", seen, err, own)
	}
	busyNow, allNow := CPU()
	if busyNow-busy < 100*time.Millisecond || allNow-all < busyNow-busy {
		t.Errorf("the processors worked for %v of %v, and this process alone for 200ms", busyNow-busy, allNow-all)
	}
	if m := MemoryOf(os.Getpid()); m < 1<<20 || m > 1<<33 {
		t.Errorf("this process takes %d bytes", m)
	}
}
