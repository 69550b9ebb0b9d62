package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

const stepDownHelp = `mysqllock step-down ELECTION [-wait]

Asks the leader of an election to step down, which it does at its next renewal: at once if it has mysqllock.WithStepDown,
else at its RenewDeadline. The other candidates come first for one lease, then it may lead again. Leaders whose library is
too old for that ignore it. It needs SELECT and UPDATE on election_records.

-wait waits for the next term, and says who leads then and after how long; for at most three leases and ten seconds.

Exit code 1: nobody leads who could be asked, there is no such election, or with -wait no other term has begun in time.

Examples:
  mysqllock step-down team-a/my-operator
  mysqllock step-down team-a/my-operator -wait
`

// stepDownPoll is how often -wait looks.
const stepDownPoll = 100 * time.Millisecond

func stepDown(ctx context.Context, stdout, _ *os.File, args []string) error {
	f := newFlags("step-down", stepDownHelp)
	where := f.connection()
	wait := f.Bool("wait", false, "wait until a term has begun, and say whose")
	names, err := f.parse(args, "the election's name")
	if err != nil {
		return err
	}
	db, options, err := where.open()
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // nothing to lose
	election := names[0]
	before, err := find(ctx, db, election, options)
	switch {
	case err != nil:
		return err
	case before.Holder == "":
		return refusedError{fmt.Errorf("step-down %q: nobody leads, so that nobody can be asked", election)}
	case before.Expired:
		return refusedError{fmt.Errorf("step-down %q: %q has not renewed for %s and is gone; the next candidate takes over by itself", election, before.Holder, short(before.Age))}
	}
	began := time.Now()
	if err := mysqllock.RequestStepDown(ctx, db, election, options...); err != nil {
		if now, readErr := find(ctx, db, election, options); readErr == nil && (now.Holder == "" || now.FencingToken != before.FencingToken) {
			return refusedError{err} // it did so by itself meanwhile
		}
		return err
	}
	if err := write(stdout, printable(before.Holder)+" was asked to step down\n"); err != nil || !*wait {
		return err
	}

	tick := time.NewTicker(stepDownPoll)
	defer tick.Stop()
	limit := time.After(3*before.LeaseDuration + 10*time.Second)
	for {
		select {
		case <-ctx.Done():
			return errors.New("step-down: ended before another term began")
		case <-limit:
			return refusedError{fmt.Errorf("step-down %q: no other term has begun in %s; mysqllock list shows what became of it", election, short(time.Since(began)))}
		case <-tick.C:
		}
		now, err := mysqllock.GetElection(ctx, db, election, options...)
		if err != nil || now.Holder == "" || now.FencingToken == before.FencingToken {
			continue // a server that is away for a moment says nothing about the election
		}
		again := ""
		if now.Holder == before.Holder {
			again = " again, as no other candidate took over"
		}
		return write(stdout, fmt.Sprintf("%s leads%s after %.1fs\n", printable(now.Holder), again, time.Since(began).Seconds()))
	}
}
