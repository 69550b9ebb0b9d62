package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// entry is an election as JSON. Durations are seconds.
type entry struct {
	Election     string    `json:"election"`
	Leader       string    `json:"leader"` // empty: released
	Expired      bool      `json:"expired"`
	Ready        bool      `json:"ready"`
	Asked        bool      `json:"step_down_requested"`
	Age          float64   `json:"age_seconds"` // since the last renewal
	Lease        float64   `json:"lease_seconds"`
	Since        time.Time `json:"acquire_time,omitzero"`
	Renewed      time.Time `json:"renew_time,omitzero"`
	LastUpdate   time.Time `json:"last_update,omitzero"`
	Transitions  int       `json:"leader_transitions"`
	FencingToken int64     `json:"fencing_token"`
}

func asJSON(elections []mysqllock.Election, indent string) (string, error) {
	all := make([]entry, 0, len(elections))
	for _, e := range elections {
		all = append(all, entry{
			e.Name, e.Holder, e.Expired, e.Ready, e.StepDownRequested, e.Age.Seconds(), e.LeaseDuration.Seconds(), e.AcquireTime, e.RenewTime, e.LastUpdate,
			e.LeaderTransitions, e.FencingToken,
		})
	}
	return encode(all, indent)
}

// encode returns JSON that ends in a line feed. What is not printable is escaped, as in printable: a terminal may get it.
func encode(value any, indent string) (string, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", indent)
	if err := encoder.Encode(value); err != nil {
		return "", err
	}
	var text strings.Builder
	for _, r := range buffer.String() {
		if r == '\n' || unicode.IsPrint(r) {
			text.WriteRune(r)
			continue
		}
		if r1, r2 := utf16.EncodeRune(r); r1 != utf8.RuneError {
			fmt.Fprintf(&text, `\u%04x\u%04x`, r1, r2)
		} else {
			fmt.Fprintf(&text, `\u%04x`, r)
		}
	}
	return text.String(), nil
}
