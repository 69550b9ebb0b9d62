package mysqllock

import (
	"database/sql"
	"database/sql/driver"
	"errors"
)

// unansweredError is the error of a write that was sent and had no answer: the
// server may have done it, or may do it yet. All other errors leave nothing open.
type unansweredError struct{ error }

func (e unansweredError) Unwrap() error { return e.error }

// unanswered marks err, of a write that had a connection, unless it is an answer
// or the driver says that it sent nothing.
func unanswered(err error) error {
	if err == nil || number(err) != 0 || errors.Is(err, driver.ErrBadConn) {
		return err
	}
	return unansweredError{err}
}

// exec sends a write.
func (l *Lock) exec(o *operation, statement string, args []any) (sql.Result, error) {
	connected := false
	args[0] = onConnection{args[0], &connected}
	result, err := l.db.ExecContext(o.ctx, statement, args...)
	if connected {
		err = unanswered(err)
	}
	return result, err
}

// onConnection is an argument that notes when a connection has been taken for
// its statement: only then is it asked for its value.
type onConnection struct {
	value     driver.Value
	connected *bool
}

// Value makes it a driver.Valuer.
func (a onConnection) Value() (driver.Value, error) {
	*a.connected = true
	return a.value, nil
}
