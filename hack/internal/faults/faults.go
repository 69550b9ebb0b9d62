// Package faults has the faults that both hack/chaos and hack/load inject. Each function returns once its fault is healed;
// the end of its context only makes that sooner.
package faults

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// Freeze stops a server for a time.
func Freeze(ctx context.Context, server *mysqltest.Server, d time.Duration) error {
	if err := server.Pause(); err != nil {
		return err
	}
	wait.For(ctx, d)
	return server.Resume()
}

// Restart ends a server, by its method Kill or Stop, and starts it again after a time.
func Restart(ctx context.Context, server *mysqltest.Server, end func(*mysqltest.Server) error, down time.Duration) error {
	if err := end(server); err != nil {
		return err
	}
	wait.For(ctx, down)
	return server.Restart(context.WithoutCancel(ctx))
}

// Break has the network be as n says for a time. What it held back then is delivered late; if cut, it is lost with its
// connections.
func Break(ctx context.Context, proxy *mysqltest.Proxy, n mysqltest.Network, d time.Duration, cut bool) {
	proxy.Set(n)
	wait.For(ctx, d)
	if cut {
		proxy.Cut()
	}
	proxy.Set(mysqltest.Network{})
}

// Sessions are those of an account.
func Sessions(ctx context.Context, admin *sql.DB, account string) (ids []int64, err error) {
	rows, err := admin.QueryContext(ctx, `SELECT id FROM information_schema.processlist WHERE user = ?`, account)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what matters
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// Kill kills sessions, of which some may have ended.
func Kill(ctx context.Context, admin *sql.DB, sessions ...int64) {
	for _, id := range sessions {
		_, _ = admin.ExecContext(ctx, fmt.Sprintf("KILL %d", id)) // it may have ended
	}
}
