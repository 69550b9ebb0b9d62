package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
)

// refuseToServe has a server that is up refuse all that candidates ask of it, each product in its own way.
func refuseToServe(ctx context.Context, w *world, d time.Duration) error {
	server := w.site.node(d).server
	switch {
	case w.site.cluster != nil: // a node under maintenance: error 1047 to every statement, also in sessions that there are
		return reversible(ctx, w, d, `SET GLOBAL wsrep_reject_queries = ALL`, `SET GLOBAL wsrep_reject_queries = NONE`)
	case !server.MariaDB(): // error 3032, to whoever is no administrator
		return reversible(ctx, w, d, `SET GLOBAL offline_mode = ON`, `SET GLOBAL offline_mode = OFF`)
	}
	// MariaDB by itself has none of these. It can lock an account, which sessions that there are don't notice.
	always := context.WithoutCancel(ctx)
	admin := w.site.node(d).admin
	_, err := admin.ExecContext(always, `ALTER USER `+account+`@'%' ACCOUNT LOCK`)
	if err == nil {
		err = w.killSessions(always)
		wait.For(ctx, d)
	}
	_, undone := admin.ExecContext(always, `ALTER USER `+account+`@'%' ACCOUNT UNLOCK`)
	return errors.Join(err, undone)
}

// crowd is the account of an application that knows no limit.
const crowd = "crowd"

// tooManyConnections is the server's answer to one more.
const tooManyConnections = 1040

// useUpConnections takes every connection that the server has left, also those that are given up meanwhile.
func useUpConnections(ctx context.Context, w *world, d time.Duration) error {
	config := w.site.node(d).server.Config()
	config.User, config.Passwd, config.Timeout = crowd, w.site.password, time.Second
	connector, err := newConnector(config)
	if err != nil {
		return err
	}
	var taken []driver.Conn
	defer func() {
		for _, conn := range taken {
			_ = conn.Close() // it may have ended
		}
	}()
	began := trueTime()
	var full time.Time // since when it is
	for ctx.Err() == nil && (full.IsZero() || trueTime().Sub(full) < d) {
		conn, err := connector.Connect(ctx)
		var server *mysql.MySQLError
		switch {
		case err == nil && full.IsZero() && trueTime().Sub(began) > time.Minute:
			return errors.Join(conn.Close(), fmt.Errorf("the server has more than %d connections", len(taken)))
		case err == nil:
			taken = append(taken, conn)
		case errors.As(err, &server) && server.Number == tooManyConnections:
			if full.IsZero() {
				full = trueTime()
			}
			wait.For(ctx, 5*time.Millisecond)
		case ctx.Err() == nil:
			return err
		}
	}
	return nil
}
