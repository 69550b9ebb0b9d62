package servers

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strconv"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// start starts n servers, one after the other: a machine that is busy with several might take too long for each.
func start(ctx context.Context, n int, options func(i int) mysqltest.Options) (nodes []*mysqltest.Server, err error) {
	for i := range n {
		node, err := mysqltest.Start(ctx, options(i))
		if err != nil {
			return nil, errors.Join(err, closeAll(nodes))
		}
		nodes = append(nodes, node)
	}
	return nodes, nil
}

func closeAll(nodes []*mysqltest.Server) error {
	var failed error
	for _, node := range slices.Backward(nodes) {
		if node != nil {
			failed = errors.Join(failed, node.Close())
		}
	}
	return failed
}

// with runs a task on a server's administrator's pool. A pool of its own for each, as what is between two tasks may be
// the server's end.
func with(node *mysqltest.Server, task func(*sql.DB) error) error {
	db, err := mysqllock.Open(node.Config())
	if err != nil {
		return err
	}
	return errors.Join(task(db), db.Close())
}

// execute sends statements, one after the other.
func execute(ctx context.Context, node *mysqltest.Server, statements ...string) error {
	return with(node, func(db *sql.DB) error {
		for _, statement := range statements {
			if _, err := db.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
		return nil
	})
}

// status reads a variable of SHOW STATUS.
func status(ctx context.Context, node *mysqltest.Server, variable string) (value string, err error) {
	err = with(node, func(db *sql.DB) error {
		var name string
		return db.QueryRowContext(ctx, `SHOW GLOBAL STATUS LIKE '`+variable+`'`).Scan(&name, &value)
	})
	return value, err
}

// freePort returns a port of loopback that is free now: below those of package mysqltest, and far below those that the
// kernel gives to connections, as the servers need it again after a restart.
func freePort() (int, error) {
	const low, high = 10000, 20000
	var last error
	for range 100 {
		n, err := rand.Int(rand.Reader, big.NewInt(high-low))
		if err != nil {
			return 0, err
		}
		port := low + int(n.Int64())
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, listener.Close()
		}
		last = err
	}
	return 0, fmt.Errorf("no free port on 127.0.0.1: %w", last)
}
