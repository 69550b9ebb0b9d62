// Package machine reports what processes use of the machine's processors and memory, and for how long one did not run.
// What other processes use is known on Linux alone.
package machine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// OwnCPU is the time for which this process has run so far, in user and kernel mode.
func OwnCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // there is no reason why it should
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// tick is the unit of Linux's /proc.
const tick = 10 * time.Millisecond

// ErrNoProc says that there is no /proc to read what other processes use from.
var ErrNoProc = errors.New("the use of processors is read from /proc, which only Linux has")

// CPUOf is the same as OwnCPU of another process, in steps of 10 ms.
func CPUOf(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoProc, err)
	}
	// After the name, which may have spaces: state is field 3, utime 14 and stime 15.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	return ticks(fields[11:13])
}

// CPU is how long all of the machine's processors have worked so far, and how long in all: on Linux, 0 elsewhere.
func CPU() (busy, all time.Duration) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0, 0
	}
	// cpu user nice system idle iowait irq softirq steal; what follows is counted in user.
	if all, err = ticks(fields[1:9]); err != nil {
		return 0, 0
	}
	idle, err := ticks(fields[4:6])
	if err != nil {
		return 0, 0
	}
	return all - idle, all
}

func ticks(fields []string) (sum time.Duration, err error) {
	for _, field := range fields {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// MemoryOf is the memory that a process takes, in bytes: on Linux, 0 elsewhere.
func MemoryOf(pid int) int64 {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// ServerPID asks a database server: package mysqltest doesn't say, and a script may have started it.
func ServerPID(ctx context.Context, admin *sql.DB) (int, error) {
	var file, data string
	if err := admin.QueryRowContext(ctx, "SELECT @@pid_file, @@datadir").Scan(&file, &data); err != nil {
		return 0, err
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(data, file)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(content)))
}
