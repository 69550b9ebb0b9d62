// Command elect-leader is the whole program for users of the first go-leaderelection-mysql: one call, configured by the
// environment, or by a file .env in the current directory (see .env.example). Start it on several machines; one says
// that it works, and when that one ends, another does.
//
//	cp elect-leader/.env.example .env      # and fill it in
//	go run ./elect-leader
//
// It prints, after up to 100 seconds if another one led before and crashed:
//
//	worker1.example.com-4711 works
//
// The candidate's identity in the table begins with the same host name: SELECT leader_name FROM election_records.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/joho/godotenv"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "elect-leader:", err)
		os.Exit(1)
	}
}

func run() error {
	// What is set already is stronger than the file.
	if err := godotenv.Load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.New("the file .env has other lines than NAME=value and comments") // the cause may quote a password
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	host, err := os.Hostname()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%s-%d", host, os.Getpid()) // for what is printed; ElectLeader makes an identity of its own
	becomeLeader := func(ctx context.Context) {
		fmt.Println(name, "works")
		<-ctx.Done() // ends when leadership does: so must the work
	}
	loseLeadership := func() {
		fmt.Println(name, "has stopped")
	}
	// Returns when ctx ends. Until then it campaigns again whenever it has lost.
	return mysqllock.ElectLeader(ctx, "my-task", becomeLeader, loseLeadership)
}
