package main

import (
	"debug/elf"
	"errors"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// A Go program reads its clocks from the kernel's vDSO, not from the C library, so that libfaketime does not reach it. But
// the runtime keeps the address of the vDSO's function in a variable, and what runs here is this program: setClock finds
// that variable and puts a function there that bends the time. Everything in the process, timers included, then goes by it,
// and nothing of the library knows.

// line is one clock since some moment: it showed shown then and has gone at rate/1024 of the true speed since.
type line struct{ since, rate, shown int64 }

var (
	skew        *[2]line   // of the wall clock and the monotonic one; read by skewedClock
	skews       []*[2]line // all there were: skewedClock may be at work with one, out of the collector's sight
	clockAnchor = 1        // a variable of this program, by which another is found

	skewedClockAddress uintptr // of the function, as the runtime calls it
)

// clockOrder says how a candidate's clocks shall go: the wall clock ahead of the true time, and both at some speed.
type clockOrder struct {
	Ahead time.Duration
	Rate  float64
}

// setClock bends this process's clocks. The monotonic clock goes on from where it is.
func setClock(o clockOrder) error {
	hook, err := clockHook()
	if err != nil {
		return err
	}
	next := &[2]line{{rate: 1024, since: read(0)}, {rate: 1024, since: read(1)}}
	next[0].shown, next[1].shown = next[0].since+int64(o.Ahead), next[1].since
	if skew != nil {
		next[1].shown = skew[1].shown + (next[1].since-skew[1].since)*skew[1].rate>>10
	}
	next[0].rate, next[1].rate = int64(o.Rate*1024), int64(o.Rate*1024)
	skews = append(skews, next)
	skew = next
	*hook = skewedClockAddress
	return nil
}

// clocksBend returns why setClock can't do its work, if so.
func clocksBend() error {
	_, err := clockHook()
	return err
}

// clockHook is the runtime's variable.
func clockHook() (*uintptr, error) {
	self, err := elf.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer func() { _ = self.Close() }() // it was only read
	symbols, err := self.Symbols()
	if err != nil {
		return nil, err // a stripped program
	}
	var hook, anchor uint64
	for _, s := range symbols {
		switch {
		case s.Name == "runtime.vdsoClockgettimeSym":
			hook = s.Value
		case strings.HasSuffix(s.Name, ".clockAnchor"):
			anchor = s.Value
		}
	}
	if hook == 0 || anchor == 0 {
		return nil, errors.New("the program has no symbol runtime.vdsoClockgettimeSym")
	}
	// Wherever the program was loaded, its variables are as far from each other.
	return (*uintptr)(unsafe.Add(unsafe.Pointer(&clockAnchor), int(hook)-int(anchor))), nil //nolint:gosec // the point of it
}

// read asks the kernel, past everything that could be bent.
func read(clock uintptr) int64 {
	var t syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clock, uintptr(unsafe.Pointer(&t)), 0) //nolint:gosec // as syscalls are made
	return t.Nano()
}

// trueTime is the time, however this process's clocks go. It is one for all processes of a machine, and has no steps.
func trueTime() time.Time { return time.Unix(0, read(1)+epoch) }

// epoch is what the wall clock was ahead of the monotonic one when the run began. Candidates are told.
var epoch = read(0) - read(1)
