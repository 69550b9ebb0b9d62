package main

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// shards keeps track of who works on what.
type shards struct {
	t  *testing.T
	mu sync.Mutex
	of map[string]string // shard to process
}

func (s *shards) seen(p *exampletest.Process, line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, shard, ok := strings.Cut(line, " works on shard "); ok {
		if other := s.of[shard]; other != "" {
			s.t.Errorf("%s and %s work on shard %s", other, p.Name, shard)
		}
		s.of[shard] = p.Name
	} else if _, shard, ok := strings.Cut(line, " stops work on shard "); ok {
		delete(s.of, shard)
	}
}

// gone tells that a process was killed.
func (s *shards) gone(p *exampletest.Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for shard, name := range s.of {
		if name == p.Name {
			delete(s.of, shard)
		}
	}
}

// balanced waits until all shards are shared by so many processes, as evenly as the program says.
func (s *shards) balanced(processes int) {
	s.t.Helper()
	exampletest.Eventually(s.t, fmt.Sprintf("%d shards shared by %d processes", count, processes), func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		held := map[string]int{}
		for _, name := range s.of {
			held[name]++
		}
		for _, n := range held {
			if n > (count+processes-1)/processes {
				return false
			}
		}
		return len(s.of) == count && len(held) == processes
	})
}

const count = 12

func TestShardsAreSharedAsProcessesComeAndGo(t *testing.T) {
	db := exampletest.NewDatabase(t)
	s := &shards{t: t, of: map[string]string{}}
	start := func(id string) *exampletest.Process {
		return exampletest.Start(t, id, db.Env, s.seen, "-id="+id, fmt.Sprintf("-shards=%d", count))
	}
	a := start("a")
	s.balanced(1)
	b := start("b")
	s.balanced(2)
	c := start("c")
	s.balanced(3)
	a.Prints(t, "a holds 4 of 12 shards; processes: 3", 1)
	b.Kill()
	s.gone(b)
	s.balanced(2)
	b = start("b")
	s.balanced(3)
	c.Signal(t, syscall.SIGTERM)
	if code := c.Ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.balanced(2)
	a.Signal(t, syscall.SIGTERM)
	a.Ends(t)
	s.balanced(1)
	b.Prints(t, "b holds 12 of 12 shards; processes: 1", 1)
}
