package main

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
)

// Who a fault hits, besides a slot by its number.
const (
	theServer = -1
	theLeader = -2 // whoever led last
)

// injection is a fault to be: what it is, when in its round, for how long, and whom it hits.
type injection struct {
	kind     string
	after    time.Duration
	duration time.Duration
	slot     int
}

// schedule decides what happens, by its seed and by nothing else.
type schedule struct {
	random          *rand.Rand
	slots           int
	timings         elector.Timings
	candidateFaults map[string]candidateFault
	serverFaults    map[string]serverFault // of any server
	siteFaults      map[string]serverFault // of these servers together: half of all
}

// round is one to four faults, at times that overlap, at most one of them the server's.
func (s *schedule) round() []injection {
	var faults []injection
	lease := int64(s.timings.LeaseDuration)
	fault := func(kinds []string, slot int) {
		faults = append(faults, injection{
			kind:  kinds[s.random.IntN(len(kinds))],
			after: time.Duration(s.random.Int64N(lease)), duration: time.Duration(lease/8 + s.random.Int64N(lease*5/4)), slot: slot,
		})
	}
	if kinds := slices.Sorted(maps.Keys(s.candidateFaults)); len(kinds) > 0 {
		for _, slot := range s.random.Perm(s.slots)[:1+s.random.IntN(min(3, s.slots))] {
			fault(kinds, slot)
		}
		if s.random.IntN(3) != 0 {
			faults[0].slot = theLeader
		}
	}
	kinds := slices.Sorted(maps.Keys(s.serverFaults))
	if len(s.siteFaults) > 0 && (len(kinds) == 0 || s.random.IntN(2) == 0) {
		kinds = slices.Sorted(maps.Keys(s.siteFaults))
	}
	if len(kinds) > 0 && (len(faults) == 0 || s.random.IntN(2) == 0) {
		fault(kinds, theServer)
	}
	return faults
}

// server is the fault of that name.
func (s *schedule) server(kind string) serverFault {
	if f, ok := s.siteFaults[kind]; ok {
		return f
	}
	return s.serverFaults[kind]
}
