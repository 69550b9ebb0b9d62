// Command chaos lets candidates compete for a leadership while everything around them fails, and checks afterwards
// that nothing happened that must not: Jepsen's method, for the lock.
//
//	hack/chaos.sh -duration 10m -seed 7
//
// Five processes run client-go's elector and, while they lead, post to a fenced ledger through Transact, by fenced
// statements and after a Guard, and to an unfenced one without; beside that each gets, creates, updates and releases
// another election as no elector would. Each reaches the server through a proxy of its own, every other one by pools of
// Open, the others by pools as users make them. A nemesis kills and pauses processes, bends their clocks, breaks their
// networks, leaves transactions open in their pools, kills, freezes, fills and locks the server, has it refuse to
// serve, uses up its connections, promotes a replica that lacks the last commits, cuts off a node of a cluster, by a
// schedule that the seed decides. With -triggers audit triggers run at each update of the lock's tables; with -fault a
// command of yours, as a failover, is one more fault of a server that was given. Whom a fault aimed at the leader hits
// depends on who leads, so that a seed gives the same faults again, and not the same run. Then the checker reads what
// the candidates said and what the ledgers hold; see check.go for its rules. RESULTS.md has what was found.
//
// With -lock reference the candidates run a lock with the semantics of client-go's LeaseLock instead, and with
// -break this lock with one of its rules broken: both are there to show that the checker finds what it looks for. What
// breaks nothing would show nothing: a run with -break begins by a trial, and ends there if the lock keeps to the rule.
//
// Where a reader finds what:
//
//	main.go                             flags, a run from its start to its report
//	site.go, slot.go                    the servers; where candidates run, one after the other
//	candidate.go, pool.go, order.go     a candidate: its elector, its work, its pools, what it is told to do
//	raw.go                              the client of raw operations, and whether what it was told is linearizable
//	nemesis.go, schedule.go             the faults by name; which come when
//	refusal.go, triggers.go, clock_*    single faults that need more than a few lines
//	proxy.go, conversation.go           the network of a candidate; which answers to which statements it loses
//	event.go, check.go, idle.go         what is heard; the rules; faults that never hit anything
//	lock.go, rewriting.go               how -break breaks the lock
//	trial.go, control.go                whether -break breaks it, and whether the checker saw it
//
// What it shares with load and bench is in hack/internal: child, elector, faults, machine, wait.
package main
