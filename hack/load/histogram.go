package main

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// A histogram counts durations by size: each bucket is at most a sixteenth wider than the one before, from a microsecond
// to two minutes.
type histogram [400]uint64

func bucket(d time.Duration) int {
	micros := uint64(max(d, 0) / time.Microsecond)
	shift := max(bits.Len64(micros)-5, 0)
	return min(shift*16+int(micros>>shift), len(histogram{})-1) //nolint:gosec // less than 32
}

// limit is the longest duration of a bucket.
func limit(bucket int) time.Duration {
	if bucket < 32 {
		return time.Duration(bucket) * time.Microsecond
	}
	shift := bucket/16 - 1
	return time.Duration((bucket%16+17)<<shift-1) * time.Microsecond
}

func (h *histogram) count() (n uint64) {
	for _, c := range h {
		n += c
	}
	return n
}

func (h *histogram) add(other *histogram) {
	for i, c := range other {
		h[i] += c
	}
}

// quantile is the duration that q of all don't exceed; 0 if there are none.
func (h *histogram) quantile(q float64) time.Duration {
	rest := q * float64(h.count())
	for i, c := range h {
		rest -= float64(c)
		if c > 0 && rest <= 0 {
			return limit(i)
		}
	}
	return 0
}

// counters is a histogram that many goroutines add to.
type counters [len(histogram{})]atomic.Uint64

func (c *counters) observe(d time.Duration) { c[bucket(d)].Add(1) }

// take returns what was counted and begins anew.
func (c *counters) take() (h histogram) {
	for i := range c {
		h[i] = c[i].Swap(0)
	}
	return h
}
