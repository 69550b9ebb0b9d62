package main

import (
	"fmt"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/hack/internal/elector"
)

// settings are those of one run.
type settings struct {
	elections, candidates, processes, pool int
	timings                                elector.Timings
	window, spread                         time.Duration
	durability                             string
	batch                                  bool
	faults                                 bool
	outage                                 time.Duration
	seed                                   uint64
	profiles                               string
}

// What a commit waits for.
const (
	relaxed = "relaxed"
	durable = "durable"
	binlog  = "binlog"
)

var durabilities = []string{relaxed, durable, binlog}

// serverArguments are the server's options. Its redo log is as large as those of servers in use are.
func (s settings) serverArguments() []string {
	args := []string{
		fmt.Sprintf("--max-connections=%d", 100+5*s.processes*s.pool), // with those that are dead and not yet noticed
		"--loose-innodb-log-file-size=256M", "--loose-innodb-redo-log-capacity=256M", "--innodb-buffer-pool-size=256M",
	}
	switch s.durability {
	case relaxed:
		return append(args, "--innodb-flush-log-at-trx-commit=2", "--sync-binlog=0", "--skip-log-bin")
	case durable:
		return append(args, "--innodb-flush-log-at-trx-commit=1", "--sync-binlog=0", "--skip-log-bin")
	default:
		return append(args, "--innodb-flush-log-at-trx-commit=1", "--sync-binlog=1", "--log-bin=binlog", "--server-id=1")
	}
}

// survivable is the longest outage that costs no lease: at its end the elector must have the time for one more try.
func (s settings) survivable() time.Duration {
	return s.timings.RenewDeadline - s.timings.RetryPeriod - s.timings.Operation()
}
