package mysqllock

import (
	"database/sql/driver"
	"errors"
)

// unansweredError is the error of a write that was sent and had no answer: the server may have done
// it, or may do it yet. All other errors leave nothing open.
type unansweredError struct{ error }

func (e unansweredError) Unwrap() error { return e.error }

// unanswered marks err, of a write that was sent, unless it is an answer or the driver says that it
// sent nothing.
func unanswered(err error) error {
	if err == nil || number(err) != 0 || errors.Is(err, driver.ErrBadConn) {
		return err
	}
	return unansweredError{err}
}
