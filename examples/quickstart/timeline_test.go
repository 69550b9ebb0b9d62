package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// history makes events from words such as "alpha leads", one a second.
func history(words ...string) *timeline {
	t := &timeline{out: io.Discard, order: map[string]int{}}
	for i, w := range words {
		who, what, _ := strings.Cut(w, " ")
		t.add(event{Time: int64(i+1) * 1e9, Candidate: who, What: map[string]string{
			"leads": startedLeading, "stops": stoppedLeading, "dies": processEnded, "sees": seesLeader,
		}[what]})
	}
	return t
}

func TestTheCheckAcceptsLeadersThatFollowEachOther(t *testing.T) {
	for _, h := range []*timeline{
		history("alpha leads", "alpha stops", "bravo leads", "bravo stops"),
		history("alpha leads", "bravo sees", "alpha dies", "bravo leads"),
		history("alpha leads", "alpha stops", "alpha leads", "alpha stops", "alpha dies", "bravo leads"),
		history("alpha leads", "bravo stops", "bravo dies", "alpha stops"),
	} {
		if err := h.check(); err != nil {
			t.Error(err)
		}
	}
	h := history("alpha leads", "alpha stops", "bravo leads")
	h.events[2].Time = h.events[1].Time
	if err := h.check(); err != nil {
		t.Errorf("one begins at the moment at which the other ends: %v", err)
	}
}

func TestTheCheckFindsTwoLeaders(t *testing.T) {
	for _, test := range []struct {
		history *timeline
		want    string
	}{
		{history("alpha leads", "bravo leads", "alpha stops", "bravo stops"), "alpha and bravo from 2.000 s to 3.000 s"},
		{history("alpha leads", "bravo leads", "bravo dies", "alpha dies"), "alpha and bravo from 2.000 s to 3.000 s"},
		{history("alpha leads", "bravo leads"), "alpha and bravo from 2.000 s to the end"},
		{history("alpha leads", "alpha stops", "bravo leads", "bravo sees", "charlie leads", "bravo stops"), "bravo and charlie from 5.000 s to 6.000 s"},
		{history("alpha leads", "alpha stops", "alpha leads", "bravo leads", "alpha dies"), "alpha and bravo from 4.000 s to 5.000 s"},
		// The first never stopped: the second is not the only one to overlap.
		{history("alpha leads", "bravo leads", "bravo stops", "charlie leads"), "alpha and charlie from 4.000 s to the end"},
	} {
		if err := test.history.check(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
}

func TestTheCheckFindsTwoLeadersByTheirOwnClockNotByTheOrderOfTheirReports(t *testing.T) {
	h := history("alpha leads", "alpha stops", "bravo leads", "bravo stops")
	h.events[2].Time = h.events[1].Time - 1 // reported late
	if err := h.check(); err == nil {
		t.Error("an overlap of a nanosecond was not found")
	}
}

func TestTheCheckRefusesAHistoryWithoutALeader(t *testing.T) {
	if err := history("alpha sees", "alpha dies").check(); err == nil {
		t.Error("nothing was checked, and that passed")
	}
}

func TestWhatACandidateTellsIsUnderstood(t *testing.T) {
	s := &stage{timeline: history(), happened: make(chan event, 10)}
	stdout := &lines{each: func(line []byte) { s.hear("alpha", line) }}
	tell := reporter(stdout, "alpha")
	tell(startedLeading, "")
	tell(seesLeader, "bravo")
	for _, b := range []byte("no report\n") { // in pieces, as a pipe may deliver
		if _, err := stdout.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	reporter(stdout, "bravo")(startedLeading, "") // on alpha's stdout
	for _, want := range []event{
		{Candidate: "alpha", What: startedLeading},
		{Candidate: "alpha", What: seesLeader, Detail: "bravo"},
		{Candidate: "alpha", What: notUnderstood},
		{Candidate: "alpha", What: notUnderstood},
	} {
		got := <-s.happened
		if got.Candidate != want.Candidate || got.What != want.What || got.Detail != want.Detail || got.Time == 0 {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestColoursAreOnlyForTerminals(t *testing.T) {
	for _, colours := range []bool{false, true} {
		h := history()
		var out bytes.Buffer
		h.out, h.colours = &out, colours
		h.add(event{Candidate: "alpha", What: startedLeading})
		if strings.Contains(out.String(), "\x1b[") != colours || !strings.Contains(out.String(), "alpha") {
			t.Errorf("colours %v: %q", colours, out.String())
		}
	}
}
