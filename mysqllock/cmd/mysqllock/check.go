package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

const checkHelp = `mysqllock check [-o json]

Asks the database whether it is fit for elections: tables, grants (too few or far too many), triggers, read-only or too
old servers, session and durability settings, replication, encryption, round-trip time and clocks. It changes nothing, and
says how to remedy each finding. Give it the account and the connection that the candidates will have.

Exit code 1: there is an error, so that elections would fail, or elect two. Warnings are no errors.

Examples:
  mysqllock check
  mysqllock check -lease-duration 30s -renew-deadline 20s -retry-period 4s
  mysqllock check -o json | jq '.[] | select(.severity == "error")'
`

func check(ctx context.Context, stdout, _ *os.File, args []string) error {
	f := newFlags("check", checkHelp)
	where := f.connection()
	form := f.String("o", "", "`form` of the output: json; default: text")
	lease := f.Duration("lease-duration", 15*time.Second, "of the electors")
	renew := f.Duration("renew-deadline", 10*time.Second, "of the electors")
	retry := f.Duration("retry-period", 2*time.Second, "of the electors")
	if _, err := f.parse(args); err != nil {
		return err
	}
	if *form != "" && *form != "json" {
		return usageError{errors.New("check: -o is not json")}
	}
	db, options, err := where.open()
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // nothing to lose
	findings, err := mysqllock.Preflight(ctx, db, append(options, mysqllock.WithTimings(*lease, *renew, *retry))...)
	if err != nil {
		return err
	}
	text := findingsAsText(findings)
	if *form == "json" {
		if text, err = findingsAsJSON(findings); err != nil {
			return err
		}
	}
	if err := write(stdout, text); err != nil {
		return err
	}
	wrong := 0
	for _, finding := range findings {
		if finding.Severity == mysqllock.SeverityError {
			wrong++
		}
	}
	if wrong > 0 {
		return refusedError{fmt.Errorf("check: %d of %d findings are errors: elections would fail", wrong, len(findings))}
	}
	return nil
}

func findingsAsText(findings []mysqllock.Finding) string {
	var text strings.Builder
	fit := true
	for _, finding := range findings {
		fit = fit && finding.Severity != mysqllock.SeverityError
		label := "remedy"
		if finding.Severity == mysqllock.SeverityInfo {
			label = "advice"
		}
		fmt.Fprintf(&text, "%-7s  %s: %s\n         %s: %s\n", finding.Severity, finding.Subject, finding.Problem, label, finding.Remedy)
	}
	if fit {
		text.WriteString("ok       elections will work here\n")
	}
	return text.String()
}

func findingsAsJSON(findings []mysqllock.Finding) (string, error) {
	type entry struct {
		Severity mysqllock.Severity `json:"severity"`
		Subject  string             `json:"subject"`
		Problem  string             `json:"problem"`
		Remedy   string             `json:"remedy"`
	}
	all := make([]entry, 0, len(findings))
	for _, finding := range findings {
		all = append(all, entry(finding))
	}
	return encode(all, "  ")
}
