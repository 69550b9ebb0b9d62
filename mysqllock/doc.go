// Package mysqllock lets client-go's standard leaderelection.LeaderElector run on a MySQL or
// MariaDB table instead of a Kubernetes Lease: [Lock] implements resourcelock.Interface, the
// elector and its callbacks stay as they are.
//
//	db, err := mysqllock.Open(config)        // or any *sql.DB of your own
//	err = mysqllock.Migrate(ctx, db)         // or apply mysqllock.Schema
//	lock, err := mysqllock.New(db, "my-controller", resourcelock.ResourceLockConfig{Identity: mysqllock.NewIdentity()},
//		mysqllock.WithTimings(15*time.Second, 10*time.Second, 2*time.Second))
//	leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{Lock: lock, ...})
//
// # State
//
// An election is one row of election_records: who leads, which Lock that is (leader_uid), and a
// version that every write changes. All writes are compare-and-swap statements on version and uid,
// as last observed. Of two candidates that saw the same row, the server lets one write, and the
// other gets a Conflict. No transaction spans several packets, and no lock on a row outlives its
// statement.
//
// A second row, in election_fences, holds the fencing token of the newest term. The statement that
// takes the lease writes it, too; renewals don't touch it.
//
// A Lock keeps to the database that its first operation found, and runs each operation in one
// session. A session that is unfit (autocommit off, an open transaction, another character set,
// locked tables, a read-only server) is closed, and the operation goes on in another. So an
// application may share the pool.
//
// # Trust, and its limits
//
// A leader trusts its lease for LeaseDuration after its last successful renewal, and gives up after
// RenewDeadline without one. A follower takes over when it has seen no change for LeaseDuration.
// Nobody compares clocks; what counts is time measured by one process.
//
// For that to leave no moment with two leaders, the reply to a renewal must not arrive much later
// than the renewal was applied, as the leader counts from the reply and the followers from the
// write. So each operation has a deadline
//
//	d = (LeaseDuration - RenewDeadline - RetryPeriod) / 2
//
// also if its context has none, and a reply that comes later is an error, even one that says OK.
// For client-go's 15 s, 10 s and 2 s d is 1.5 s. [WithTimings] computes d for other timings, and
// refuses those that leave no room. Without it the lock sees the elector's timings by its renewals:
// see [WithOperationTimeout].
//
// # Fencing
//
// A leader that is paused believes in its lease until it looks at a clock again. The fencing token
// is for that moment. [Lock.Transact] commits a transaction only if the term that it began in is
// still the newest, and no other term can begin between that check and the commit: a write of a
// stale leader is never committed, no matter what that leader believes. [Lock.FencingToken] serves
// the same purpose for resources outside of this database.
//
// # Handing over
//
// Leadership may follow the ability to work ([WithReadiness]): the row's column ready says whether
// the leader can work, and a follower that can asks one that can't to step down. So may a person
// ([RequestStepDown]). A request is the leader's uid in the column step_down_uid; the leader
// notices it at its next renewal, and the function of [WithStepDown] ends its work. The lease is
// renewed until the elector gives it up, and then the next candidate leads.
//
// # Failure
//
// A missing row, a lost race and a lost compare-and-swap are the API errors that client-go knows
// (apierrors.IsNotFound, IsAlreadyExists, IsConflict). All else is an error with the operation, the
// election and, where a person can act, what to do; errors.As reaches the *mysql.MySQLError
// beneath. No error, log line or event shows a password, a DSN or the database's host.
//
// A write that was sent and had no answer has an unknown outcome, and its error says so: the server
// may still apply the statement. As it is a compare-and-swap it can't overwrite a later write, and
// the next Get recognises a row that this Lock wrote itself. A takeover whose reply was lost is
// done once more, for a token that is known.
//
// # Correctness boundary
//
// No lock below the elector can stop a process that doesn't run. A leader that is paused (SIGSTOP,
// a suspended machine, a long garbage collection) beyond its lease believes in itself until it
// looks at a clock again. So does one whose clock runs slower than its followers' by more than the
// ratio of LeaseDuration to RenewDeadline. For a moment, two processes may believe that they lead.
// What only one of them can do is to commit through [Lock.Transact] or [Lock.Guard].
//
// The server must be MySQL 8.0 or newer, or MariaDB 10.3 or newer, with InnoDB: one server that
// takes the writes, the primary; or Galera or Group Replication, whose nodes certify each other's.
// Vitess (guarded work on the election's shard alone) and TiDB are tested as well; OPERATIONS.md says
// what is other there.
// The lock is as durable as that server's commits. A replica that is promoted without the last
// transactions gives the lease back to an earlier holder, and fencing tokens back to their earlier
// values, until the next takeover. [Preflight] says what is wrong with a server's settings, and
// package mysqllocktest whether its software is fit.
package mysqllock
