// Command bench measures what a lock costs: a real server of its own, with durable settings, and on it the lock beside
// the bare statements that it can't do without (the floor), beside what one would otherwise use, under transactions and single statements, and
// when leaders die.
//
// Machines differ, and so does one machine from minute to minute. So what is a time is a ratio to the floor: both are
// measured in turns (A B A B), a slice of time each, and each round has a ratio of its own. A table shows the median of
// the rounds' ratios, and the smallest and largest. The floor is measured twice in each round, under two names: how far
// the second one is from 1.00 is what the machine's noise alone does.
//
// Results go to RESULTS.md, a section for each part and server, of which each run replaces its own, and to plots.
// hack/bench.sh starts it. The same operations, one by one for a profiler, are the benchmarks of this package:
//
//	go test -bench Poll -cpuprofile cpu.out
//
// Where a reader finds what:
//
//	main.go                       the parts, flags, and a run: each part on a server of its own
//	measure.go, comparisons.go    an arm, turns of arms and their ratios; tables of them
//	parts.go                      operations against the floor; what goes over the wire
//	rivals.go                     GET_LOCK, v0's statement, etcd
//	lease.go                      client-go's LeaseLock on the user's own API server
//	transact.go, cluster.go       what fences a transaction, and a statement; Galera and Group Replication
//	failover.go, child.go         leaders that die, in processes of their own
//	election.go, server.go        the elections and the server that all parts use
//	report.go                     RESULTS.md and the plots
//
// What it shares with chaos and load is in hack/internal: child, elector, machine, wait.
package main
