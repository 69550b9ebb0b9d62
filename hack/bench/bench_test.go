package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == childArgument {
		if err := runChild(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// Short: that it measures, not what.
func TestEveryPartWritesItsSectionAndASecondRunReplacesIt(t *testing.T) {
	profiles = []elector.Timings{{LeaseDuration: time.Second, RenewDeadline: 600 * time.Millisecond, RetryPeriod: 100 * time.Millisecond}}
	b := bench{rounds: 1, slice: 20 * time.Millisecond, trials: 2, folder: t.TempDir()}
	for _, chosen := range []string{"all", "transact"} {
		if err := b.run(t.Context(), []string{chosen}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(b.folder, resultsFile))
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, p := range parts {
		if p.apart {
			continue // not in "all"
		}
		if n := strings.Count(string(text), "## "+p.title+": "); n != 1 {
			t.Errorf("%d sections %q, want 1", n, p.title)
		}
		next := strings.Index(string(text), "## "+p.title)
		if next < at {
			t.Errorf("%q is not in its place", p.title)
		}
		at = next
	}
	plots, err := filepath.Glob(filepath.Join(b.folder, plotsFolder, "*.svg"))
	if err != nil || len(plots) != 7 {
		t.Errorf("%d plots, want 7: %v (%v)", len(plots), plots, err)
	}
	for _, plot := range plots {
		if !strings.Contains(string(text), filepath.Base(plot)) {
			t.Errorf("%s is in no section", plot)
		}
	}
}

func TestAPartThatThereIsNotIsRefused(t *testing.T) {
	b := bench{rounds: 1, slice: time.Second, trials: 1}
	for _, chosen := range [][]string{nil, {"part"}} {
		if err := b.run(t.Context(), chosen); err == nil {
			t.Errorf("no error for %q", chosen)
		}
	}
}

func BenchmarkPoll(b *testing.B)    { benchmark(b, pollArms) }
func BenchmarkRenewal(b *testing.B) { benchmark(b, renewalArms) }

// BenchmarkTransact has an empty function.
func BenchmarkTransact(b *testing.B) {
	s := startForBenchmark(b)
	lock, err := lead(b.Context(), s.admin, oneElection)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		err := lock.Transact(b.Context(), s.admin, nil, func(context.Context, *sql.Tx) error { return nil })
		if err != nil {
			b.Fatal(err)
		}
	}
}

func startForBenchmark(b *testing.B) *server {
	s, err := startServer(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

func benchmark(b *testing.B, armsOf func(context.Context, *server, int) ([]arm, func(), error)) {
	s := startForBenchmark(b)
	arms, done, err := armsOf(b.Context(), s, 1)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(done)
	for _, a := range arms {
		b.Run(a.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := a.op(b.Context(), 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
