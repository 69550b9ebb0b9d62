package main

import (
	"slices"
	"strings"
	"testing"
)

// newSite is a server with the tables.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.open(t.Context(), single); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEachBreakBreaksItsRuleAndTheWholeLockKeepsAll(t *testing.T) {
	s := newSite(t)
	for _, own := range []bool{false, true} {
		for broken, rules := range map[string][]string{
			"":           nil,
			breakCAS:     {breakCAS, breakRelease}, // a release compares, too
			breakGuard:   {breakGuard},
			breakRelease: {breakRelease},
		} {
			c := &candidate{orders: orders{Identity: "trial", Break: broken, Own: own, Timings: tight}}
			for _, rule := range []string{breakCAS, breakGuard, breakRelease} {
				held, err := c.trial(t.Context(), s.administrator(), rule)
				if err != nil {
					t.Errorf("-break %q, the rule %s: %v", broken, rule, err)
				} else if wanted := !slices.Contains(rules, rule); held != wanted {
					t.Errorf("-break %q keeps to the rule %s: %v, want %v", broken, rule, held, wanted)
				}
			}
		}
	}
}

func TestABreakThatBreaksNothingIsAnError(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		broken  string
		changes []change
		wanted  string
	}{
		{breakCAS, []change{{"what no statement says", "", 1}}, `0 of a lock's statements have the text "what no statement says", which is to be changed in 1`},
		{breakCAS, []change{{"SELECT", "SELECT", 1}}, "-break cas breaks nothing"},
		{"no rule", nil, "there is no such rule"},
	} {
		whole := withoutVersion
		withoutVersion = c.changes
		err := (&candidate{orders: orders{Identity: "trial", Break: c.broken, Timings: tight}}).try(t.Context(), s.administrator())
		withoutVersion = whole
		if err == nil || !strings.Contains(err.Error(), c.wanted) {
			t.Errorf("-break %s with %v: %v, want %q", c.broken, c.changes, err, c.wanted)
		}
	}
}
