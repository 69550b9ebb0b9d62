package main

import (
	"errors"
	"regexp"
	"time"
)

// symptoms are the violations by which a broken rule shows. Others have other causes.
var symptoms = map[string]*regexp.Regexp{
	breakCAS:     regexp.MustCompile(`led at once|is not linearizable|have one token|the ledger has`),
	breakGuard:   regexp.MustCompile(`the ledger has`),
	breakRelease: regexp.MustCompile(`led at once|is not linearizable`),
}

// errNotCaught says that a control went by as if nothing was broken.
var errNotCaught = errors.New("the lock was broken, and no violation shows it")

// caught is the first violation that shows how the lock was broken.
func (v *verdict) caught(broken string) (first violation, ok bool) {
	for _, violation := range v.violations {
		if symptoms[broken].MatchString(violation.text) && (!ok || first.at.IsZero() || violation.at.Before(first.at) && !violation.at.IsZero()) {
			first, ok = violation, true
		}
	}
	return first, ok
}

// mayStop reports whether a run with -stop has found what it was for.
func (r *run) mayStop(v *verdict) bool {
	if r.broken == "" {
		return len(v.violations) > 0
	}
	_, ok := v.caught(r.broken)
	return ok
}

// outcome is what the run comes to. That of a control is good if it was caught.
func (r *run) outcome(v *verdict, began time.Time) (string, error) {
	if r.broken == "" {
		if len(v.violations) > 0 {
			return "", errViolated
		}
		return "", nil
	}
	first, ok := v.caught(r.broken)
	if !ok {
		return "", errNotCaught
	}
	if first.at.IsZero() { // an entry of which nobody spoke
		return "caught: " + first.text, nil
	}
	return "caught after " + first.at.Sub(began).Truncate(time.Second).String() + ": " + first.text, nil
}
