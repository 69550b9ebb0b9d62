package mysqllock

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"unicode"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The errors that callers compare with, and the form of all.

var (
	// ErrNotLeader says that this [Lock] does not hold its election, or no longer holds it: what
	// was to be done in the leader's name must not be done.
	ErrNotLeader = errors.New("not the leader")

	// ErrDuplicateIdentity says that another [Lock] holds the election under the same identity.
	// client-go compares identities as strings, so that two processes with one identity would both
	// lead; give each process an identity of its own, as [NewIdentity] does.
	ErrDuplicateIdentity = errors.New("another candidate uses the same identity")

	// ErrOutcomeUnknown says that [Lock.Transact] sent its COMMIT and got no answer. The
	// transaction is committed as a whole or not at all; to find out, read what it wrote. If it is
	// committed, that happened within the term that it was guarded with.
	ErrOutcomeUnknown = errors.New("the commit was sent, but its outcome is unknown")
)

// errNoPool is for functions that are given no pool.
var errNoPool = errors.New("db is nil; open a pool first, as with mysqllock.Open")

// electionRecords is what Kubernetes' error types call the resource.
var electionRecords = schema.GroupResource{Resource: "election_records"}

// opError is the form of every error that leaves this package:
//
//	mysqllock: <operation> <election>: <cause>[; <what to do>]
//
// The cause stays reachable by errors.As and errors.Is, down to *mysql.MySQLError; the text shows
// no password, DSN or host of the database.
type opError struct {
	op, election string
	cause        error
	advice       string
}

func (e *opError) Error() string {
	s := "mysqllock: " + e.op
	if e.election != "" {
		s += fmt.Sprintf(" %q", e.election)
	}
	s += ": " + oneLine(publicText(e.cause))
	if e.advice != "" {
		s += "; " + e.advice
	}
	return s
}

func (e *opError) Unwrap() error { return e.cause }

// oneLine is a text that a log can show: a server's message may be in another character set, and
// quote what a client sent.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r // U+FFFD for what is not UTF-8
	}, text)
}

// wrap gives err the package's form, with advice where a person can act. An error that has the form
// already is returned as it is.
func wrap(op, election string, err error, db *sql.DB) error {
	var done *opError
	if err == nil || errors.As(err, &done) {
		return err
	}
	return &opError{op: op, election: election, cause: err, advice: advice(op, err, db)}
}

func notFound(election string) error {
	return apierrors.NewNotFound(electionRecords, election)
}

func alreadyExists(election string) error {
	return apierrors.NewAlreadyExists(electionRecords, election)
}

func conflict(election, why string) error {
	return apierrors.NewConflict(electionRecords, election, errors.New(why))
}
