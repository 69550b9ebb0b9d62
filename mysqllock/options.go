package mysqllock

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/runtime"
)

// An Option changes a default of New, Migrate, GetElection, ListElections or
// Preflight. The first Option that can't be used makes the call fail.
type Option func(*options) error

type options struct {
	database         string
	operationTimeout time.Duration
	timings          timings
	serverClock      bool
	sameIdentity     bool
	beforeRelease    func(context.Context) error
	eventTarget      runtime.Object
	batch            *Batch
}

func applyOptions(opts []Option) (options, error) {
	var o options
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return options{}, err
		}
	}
	if safe := o.timings.operationTimeout(); o.timings != (timings{}) && o.operationTimeout > safe {
		return options{}, fmt.Errorf("WithOperationTimeout(%v) is longer than the %v that WithTimings leaves for an operation; leave WithOperationTimeout out", o.operationTimeout, safe)
	}
	return o, nil
}

// WithServerClock lets a candidate take over a lease that the server's own
// clock calls expired without watching it for a whole LeaseDuration first, so
// that a cold start takes a few retries.
//
// It counts only for another candidate's lease, only when the row has not
// changed between two looks so far apart that a live leader would have renewed
// in between (two retry periods as WithTimings tells them, else a third of the
// stored lease), only when the server that answers is the one that wrote the
// row and has not restarted since (another server's clock may be ahead), and
// only when the lease has been over for a tenth of its duration, at least 0.5 s.
// Otherwise the lock goes by what client-go observes, as without this option.
//
// Don't use it with binlog_format=STATEMENT: a replica would put its own name
// where the primary's belongs.
func WithServerClock() Option {
	return func(o *options) error {
		o.serverClock = true
		return nil
	}
}

// WithSameIdentityTakeover restores client-go's behaviour for a lease that is
// held under this candidate's own identity by another Lock: it is taken over at
// once. A restarted StatefulSet pod resumes without waiting for its own old
// lease. Two live processes with one identity would take the lease from each
// other with every retry; by default the second waits like any other follower.
func WithSameIdentityTakeover() Option {
	return func(o *options) error {
		o.sameIdentity = true
		return nil
	}
}

// WithBeforeRelease makes the lock call f before it releases the lease
// (ReleaseOnCancel), so that work in hand can end while nobody else can lead:
// client-go releases before it cancels the context of OnStartedLeading.
//
// f is called once a term, while the fencing token is still valid. Its context
// ends one operation before the lease does, counted from the last renewal:
// there are no renewals meanwhile. If f returns an error, or has not returned by
// then, or if this Lock had lost sight of its lease when f was due, nothing is
// released and the lease is left to expire; the elector goes on without waiting
// for f, and ends the context of OnStartedLeading. So f must end the work itself,
// and not wait for that context: it ends after f if the lease was lost, and before
// f if the elector's own context has ended.
func WithBeforeRelease(f func(context.Context) error) Option {
	return func(o *options) error {
		if f == nil {
			return errors.New("WithBeforeRelease: the function is nil")
		}
		o.beforeRelease = f
		return nil
	}
}

// WithDatabase names the database (MySQL's "schema") that holds the tables
// election_records and election_fences. Default: the connection's own. A name
// beyond ASCII must have, of ASCII, only letters, digits and "_".
func WithDatabase(name string) Option {
	return func(o *options) error {
		if err := validateName("WithDatabase", name, 64); err != nil {
			return err
		}
		if !isASCII(name) && strings.ContainsFunc(name, isPunctuation) {
			// It is part of the statements, and in sjis or gbk a part of such a
			// character may swallow the backtick before or after the next one. Then
			// the name stands outside of its quotes: it must not be SQL.
			return fmt.Errorf("WithDatabase %q has punctuation or spaces beside characters beyond ASCII, which is not safe in every character set; rename the database", name)
		}
		o.database = name
		return nil
	}
}

// maxNameLength is the width of the name columns, in characters.
const maxNameLength = 255

// validateName refuses what a server could store as something else: a
// non-strict sql_mode cuts what is too long, a PAD SPACE collation takes "a "
// for "a", and bytes that are not UTF-8 end where the server stops
// understanding them. Two elections could become one, or one two.
func validateName(field, name string, limit int) error {
	switch n := utf8.RuneCountInString(name); {
	case name == "":
		return fmt.Errorf("%s is empty; give it a name", field)
	case !utf8.ValidString(name):
		return fmt.Errorf("%s %q is not valid UTF-8", field, name)
	case n > limit:
		return fmt.Errorf("%s has %d characters; shorten it to at most %d", field, n, limit)
	}
	for _, r := range name {
		if unicode.IsControl(r) {
			return fmt.Errorf("%s %q has the control character %U; remove it", field, name, r)
		}
	}
	first, _ := utf8.DecodeRuneInString(name)
	last, _ := utf8.DecodeLastRuneInString(name)
	if unicode.IsSpace(first) || unicode.IsSpace(last) {
		return fmt.Errorf("%s %q begins or ends with a space; remove it", field, name)
	}
	return nil
}

// isPunctuation tells what of ASCII could be SQL outside of quotes.
func isPunctuation(r rune) bool {
	return r <= unicode.MaxASCII && !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_'
}

// isASCII tells whether s means the same in every character set that a
// connection can have.
func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
