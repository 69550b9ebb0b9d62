//go:build unix

package mysqltest

import (
	"context"
	"os"
	"time"
)

// reaperScript reads what to kill, the last line that came, until the pipe ends: then every holder of its other end is
// gone, that is, this program, however it ended. Then it kills that process group, if any, and deletes directory $1.
// It ignores the signals of a terminal, which would end it before its work. POSIX sh: no fractions for sleep, and an
// argument of kill that begins with "-" is a group.
const reaperScript = `
trap '' HUP INT QUIT TERM
PATH=/usr/bin:/bin
pid=
while IFS= read -r line; do pid=$line; done
[ -z "$pid" ] || kill -s KILL -- "-$pid" 2>/dev/null || pid=
tries=0
while rm -rf -- "$1"; [ "$tries" -lt 10 ]; do
	[ -z "$pid" ] || kill -s 0 -- "-$pid" 2>/dev/null || pid=
	[ -n "$pid" ] || [ -e "$1" ] || exit 0
	tries=$((tries + 1))
	sleep 1
done
`

// launchScript tells the reaper its own pid, then becomes the server. The child itself tells it, before the server
// begins, so that there is no moment at which this program could be killed and leave a server that the reaper does not
// know: until the line is written, the child too holds the pipe open.
const launchScript = `echo "$$" >&3 && exec "$@" 3>&-`

type reaper struct {
	proc *process
	pipe *os.File
}

// startReaper starts the process that cleans up after this one. It is in a group of its own: Ctrl-C must not reach it.
func startReaper(dir string) (*reaper, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	proc, err := startProcess([]*os.File{r, null, null}, "/bin/sh", "-c", reaperScript, "mysqllock-reaper", dir)
	if err != nil {
		w.Close()
		return nil, err
	}
	return &reaper{proc: proc, pipe: w}, nil
}

// launch starts a program that the reaper will kill if this process ends before forget.
func (r *reaper) launch(stdin, log *os.File, argv []string) (*process, error) {
	sh := []string{"/bin/sh", "-c", launchScript, "mysqllock-launch"}
	return startProcess([]*os.File{stdin, log, log, r.pipe}, append(sh, argv...)...)
}

// forget tells the reaper that the program last launched has ended and been waited for: its pid may be re-used now.
func (r *reaper) forget() {
	// No reaper, no harm: there is nothing left for it to kill.
	_, _ = r.pipe.WriteString("\n")
}

// close ends the reaper, which first does its work; it has none if the directory is gone.
func (r *reaper) close() {
	r.pipe.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if r.proc.wait(ctx) != nil {
		_ = r.proc.kill()
	}
}
