// Command chaos lets candidates compete for a leadership while everything around them fails, and checks afterwards that
// nothing happened that must not: Jepsen's method, for the lock.
//
//	hack/chaos.sh -duration 10m -seed 7
//
// Five processes run client-go's elector and, while they lead, post to a fenced ledger through Transact and to an unfenced
// one without. Each reaches the server through a proxy of its own. A nemesis kills and pauses processes, breaks their
// networks, kills, freezes and locks the server, by a schedule that the seed decides. Then the checker reads what the
// candidates said and what the ledgers hold; see check.go for its rules.
//
// With -lock reference the candidates run a lock with the semantics of client-go's LeaseLock instead, and with -break this
// lock with one of its rules broken: both are there to show that the checker finds what it looks for.
package main
