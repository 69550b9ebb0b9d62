package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/child"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/wait"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// childArgument makes this program a process to be killed: its childConfig comes by stdin.
const childArgument = "child"

// childConfig says what a child does: it is an etcd, or it leads elections.
type childConfig struct {
	Etcd bool

	DSN       string
	Elections []string
	Timings   elector.Timings
}

// benchChild is a process that does what its config says. It says when it is ready, by lines.
type benchChild struct {
	*child.Process

	lines  chan string
	folder string // its own, deleted at its end
}

func startChild(ctx context.Context, config childConfig) (*benchChild, error) {
	folder, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return nil, err
	}
	c := &benchChild{folder: folder, lines: make(chan string, 1000)}
	c.Process, err = child.Start(ctx, childArgument, config, func(line []byte) error {
		c.lines <- string(line)
		return nil
	}, "TMPDIR="+folder)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	go func() {
		defer close(c.lines)
		_ = c.Wait() // killed, which is no news
	}()
	return c, nil
}

// line is the next one that the child says.
func (c *benchChild) line(ctx context.Context) (string, error) {
	select {
	case line, ok := <-c.lines:
		if !ok {
			return "", errors.New("the child ended without a word; what it wrote to stderr is above")
		}
		return line, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// kill ends the child as a crash would, unless it has ended.
func (c *benchChild) kill() {
	_ = c.Signal(syscall.SIGKILL) // fails if it has ended
	c.wait()
}

// wait waits for the end of a child that was told to end.
func (c *benchChild) wait() {
	for range c.lines { // until it has ended
	}
	_, _ = c.HangUp(), os.RemoveAll(c.folder)
}

func runChild() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	input := bufio.NewReader(os.Stdin)
	line, err := input.ReadBytes('\n')
	if err != nil {
		return err
	}
	var config childConfig
	if err := json.Unmarshal(line, &config); err != nil {
		return err
	}
	// A parent that ends without a word, by whatever signal, leaves no child behind.
	go func() {
		_, _ = io.Copy(io.Discard, input)
		os.Exit(1)
	}()
	if config.Etcd {
		return runEtcd(ctx)
	}
	return runLeaders(ctx, config)
}

// runEtcd says the address at which it listens.
func runEtcd(ctx context.Context) error {
	config := embed.NewConfig()
	folder, err := os.MkdirTemp("", "etcd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	config.Dir, config.LogLevel, config.UnsafeNoFsync = folder, "error", false
	anyPort := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	config.ListenPeerUrls, config.ListenClientUrls = []url.URL{anyPort}, []url.URL{anyPort}
	config.AdvertiseClientUrls, config.AdvertisePeerUrls = config.ListenClientUrls, config.ListenPeerUrls
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer etcd.Close()
	select {
	case <-etcd.Server.ReadyNotify():
	case <-ctx.Done():
		return ctx.Err()
	}
	fmt.Println("http://" + etcd.Clients[0].Addr().String())
	select {
	case <-ctx.Done():
		return nil
	case err := <-etcd.Err():
		return err
	}
}

// runLeaders leads elections, says the name of each that it leads, and one that begins with "lost" of each that it leads no
// longer.
func runLeaders(ctx context.Context, config childConfig) error {
	dsn, err := mysql.ParseDSN(config.DSN)
	if err != nil {
		return err
	}
	db, err := mysqllock.Open(dsn)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // all is released, or never will be
	var electors sync.WaitGroup
	for i, election := range config.Elections {
		e, err := newElector(db, election, mysqllock.NewIdentity(), config.Timings, func(leading bool) {
			if leading {
				fmt.Println(election)
			} else if ctx.Err() == nil {
				fmt.Println("lost", election)
			}
		})
		if err != nil {
			return err
		}
		electors.Go(func() {
			// Renewals come evenly, as from so many processes.
			wait.For(ctx, config.Timings.RetryPeriod*time.Duration(i)/time.Duration(len(config.Elections)))
			e.Run(ctx)
		})
	}
	electors.Wait()
	return nil
}

// leads waits until the child leads that many elections.
func (c *benchChild) leads(ctx context.Context, elections int) error {
	for range elections {
		line, err := c.line(ctx)
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, "lost") {
			return fmt.Errorf("the child %s before the measurement", line)
		}
	}
	return nil
}

// lost is how many elections the child said that it lost meanwhile.
func (c *benchChild) lost() int {
	n := 0
	for {
		select {
		case line, ok := <-c.lines:
			if !ok {
				return n
			}
			if strings.HasPrefix(line, "lost") {
				n++
			}
		default:
			return n
		}
	}
}
