package mysqllock

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"time"

	"github.com/go-sql-driver/mysql"
	"k8s.io/klog/v2"
)

// Waiting for a server that is not up yet, at a process's start.

// awaitPause is between two attempts to reach the server.
const awaitPause = time.Second

// isAway reports whether err says that the server can't be reached now, or takes no connections: it
// may be back soon.
func isAway(err error) bool {
	switch number(err) {
	case 0:
	case errTooManyConnections, errTooManyUserConns, errShutdown, errUnknownCommand, errOffline, errConnectionKilled, errSessionKilled:
		return true
	default:
		return false
	}
	var network net.Error
	var op *net.OpError
	return errors.As(err, &op) || errors.As(err, &network) && !errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, io.ErrUnexpectedEOF)
}

// await calls f until the server is not away, or ctx ends; then it returns f's last error.
func await(ctx context.Context, f func() error) error {
	for logged := false; ; {
		err := f()
		if !isAway(err) || ctx.Err() != nil {
			return err
		}
		if !logged {
			klog.FromContext(ctx).Info("Waits for the database", "reason", publicText(err))
			logged = true
		}
		select {
		case <-time.After(awaitPause):
		case <-ctx.Done():
			return err
		}
	}
}
