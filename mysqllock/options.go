package mysqllock

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
)

// An Option changes a default of a function that takes Options. The first that can't be used makes
// the call fail. Each function uses those marked here and ignores the others, so that one list can
// be given to all:
//
//	                             New   Preflight   GetElection     Migrate
//	                                               ListElections
//	                                               RequestStepDown
//	WithDatabase                  x        x             x            x
//	WithOperationTimeout          x        x             x
//	WithTimings                   x        x
//	WithServerClock               x        x
//	WithSameIdentityTakeover      x
//	WithBeforeRelease             x
//	WithEventTarget               x
//	WithReadiness                 x
//	WithStepDown                  x
//	WithBatch                     x
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
	stepDown         func()
	readiness        func(context.Context) error
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

// WithDatabase names the database (MySQL's "schema") that holds the tables election_records and
// election_fences. Default: the connection's own. The ASCII characters of a non-ASCII name must be
// letters, digits and "_".
func WithDatabase(name string) Option {
	return func(o *options) error {
		if err := validateName("WithDatabase", name, 64); err != nil {
			return err
		}
		if !isASCII(name) && strings.ContainsFunc(name, isPunctuation) {
			// It is part of the statements, and in sjis or gbk a part of such a character may
			// swallow the backtick before or after the next one. Then the name stands outside of
			// its quotes: it must not be SQL.
			return fmt.Errorf("WithDatabase %q has non-ASCII characters, and punctuation or spaces beside them, which is not safe in every character set; rename the database", name)
		}
		o.database = name
		return nil
	}
}
