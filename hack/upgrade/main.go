// Command upgrade runs candidates of two versions on one table, as a rolling upgrade does, and checks that they elect one
// leader at a time. hack/upgrade.sh compiles the two programs that it is given: examples/client-go of either version,
// which is client-go's own elector.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

const (
	election = "default/upgrade"
	lease    = 3 * time.Second
	deadline = 2 * time.Second
	retry    = 300 * time.Millisecond

	limit = time.Minute // for anything that is waited for, on a busy machine
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, flag.Arg(0), flag.Arg(1)); err != nil {
		fmt.Fprintln(os.Stderr, "upgrade:", err)
		os.Exit(1)
	}
}

// run lets each of the two be the first on tables that it made itself.
func run(ctx context.Context, earlier, current string) (err error) {
	if earlier == "" || current == "" {
		return errors.New("the arguments are two programs, of the earlier version and of this one; hack/upgrade.sh makes them")
	}
	server, err := mysqltest.Shared(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	old, present := version{"earlier", earlier}, version{"current", current}
	done := make(chan error, 2)
	go func() { done <- roll(ctx, server, old, present) }()
	go func() { done <- roll(ctx, server, present, old) }()
	return errors.Join(<-done, <-done)
}

type version struct{ name, program string }

// roll hands leadership to and fro between a candidate of the first version, which makes the tables, and one of the
// second, which finds them: by a release and by a crash, in either direction.
func roll(ctx context.Context, server *mysqltest.Server, first, second version) (err error) {
	where := "tables of the " + first.name + " version"
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", where, err)
		}
	}()
	config, drop, err := database(ctx, server)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop()) }()
	db, err := mysqllock.Open(config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()

	leader, err := start(ctx, first, config)
	if err != nil {
		return err
	}
	defer func() { leader.kill() }() // whoever leads then
	began := time.Now()
	if err := leader.await(ctx, nil); err != nil {
		return err
	}
	fmt.Printf("%s: %s leads after %.1f s\n", where, leader.name, time.Since(began).Seconds())

	var token int64
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGKILL, syscall.SIGTERM} {
		standby, err := start(ctx, map[string]version{first.name: second, second.name: first}[leader.name], config)
		if err != nil {
			return err
		}
		if err := leader.holds(ctx, standby, 2*lease); err != nil {
			standby.kill()
			return err
		}
		e, err := mysqllock.GetElection(ctx, db, election)
		if err == nil && (e.Holder != leader.name || e.FencingToken <= token || e.Expired) {
			err = fmt.Errorf("%s leads, and the tables say %+v; the fencing token before was %d", leader.name, *e, token)
		}
		if err != nil {
			standby.kill()
			return err
		}
		token = e.FencingToken

		before, sent := leader, time.Now()
		err = before.end(s)
		leader = standby
		if err := errors.Join(err, leader.await(ctx, before)); err != nil {
			return err
		}
		fmt.Printf("%s: %s leads %.1f s after the %s of %s\n",
			where, leader.name, time.Since(sent).Seconds(), map[syscall.Signal]string{syscall.SIGTERM: "release", syscall.SIGKILL: "crash"}[s], before.name)
	}
	return leader.end(syscall.SIGTERM)
}

// database makes an empty one.
func database(ctx context.Context, server *mysqltest.Server) (config *mysql.Config, drop func() error, err error) {
	name, err := server.CreateDatabase(ctx)
	if err != nil {
		return nil, nil, err
	}
	config = server.Config()
	config.DBName = name
	return config, func() error { return server.DropDatabase(context.Background(), name) }, nil
}

// environment is that of a program that is to use that database.
func environment(config *mysql.Config) []string {
	host, port, err := net.SplitHostPort(config.Addr)
	if err != nil { // a socket
		host, port = config.Addr, ""
	}
	return append(os.Environ(), "MYSQL_USER="+config.User, "MYSQL_PASSWORD="+config.Passwd,
		"MYSQL_HOST="+host, "MYSQL_PORT="+port, "MYSQL_DBNAME="+config.DBName)
}
