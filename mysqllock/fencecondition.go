package mysqllock

import (
	"encoding/hex"
	"errors"
	"fmt"
)

// A fence for one statement: a condition in its WHERE, in place of a guarded transaction.

// fenceConditionSQL holds as long as the term is the newest. It waits for a takeover that is under
// way, and its lock keeps others from taking over until the statement is committed.
const fenceConditionSQL = `
EXISTS (SELECT 1
          FROM {fences}
         WHERE election_name = ` + hexName + ` AND fencing_token = ? AND leader_uid = ?
          LOCK IN SHARE MODE)`

// FenceCondition returns a condition for the WHERE of one UPDATE, DELETE or INSERT ... SELECT of
// your own, with the arguments for its placeholders. With it, that statement changes nothing once
// leadership has passed. It needs no transaction: give it to a pool of the lock's server, with
// autocommit on.
//
//	condition, args, err := lock.FenceCondition()
//	if err != nil { ... }
//	result, err := db.ExecContext(ctx, `UPDATE accounts SET balance = ? WHERE id = ? AND `+condition,
//		append([]any{balance, id}, args...)...)
//
// The condition belongs at the end, joined by AND to all the rest: put a rest with OR in
// parentheses. A SELECT of an INSERT must have no aggregate function without GROUP BY: that returns
// a row whatever its WHERE says. Compute it in a derived table, and put the condition outside. Each
// SELECT of a UNION needs the condition. For more than one statement use [Lock.Transact].
//
// The statement takes the round trip that it would take without the condition, and reads one row
// more by its primary key. It waits for a takeover that is under way. Until it is committed nobody
// can take over: a statement that works for longer than a lease holds a dead leader's election up
// for as long. Renewals never wait for it.
//
// That no row was changed means that no row matched, or that leadership has passed. Where a row
// must match, as in INSERT ... SELECT ... FROM DUAL, or where you know the row to be there, it was
// leadership. (Without the driver's clientFoundRows an UPDATE counts only rows that become others.)
// Elsewhere read the row afterwards, or use Transact, which tells. Don't try again with a new
// condition because of it: the term that planned the write is over.
//
// FenceCondition sends nothing. Its condition holds for the current term: get it when you decide
// what to write, and not again before you write it. It holds at every isolation level, and in a
// transaction, too: then nobody can take over until that ends. The account needs SELECT and UPDATE
// on election_fences.
//
// Errors of FenceCondition: [ErrNotLeader] if this Lock holds no term; an error that says so where
// a read lock is not enough, which is on Galera, Group Replication, TiDB and Vitess, and where the
// server did not say what it is, or is of another kind. Use Transact there. The statement itself
// may fail with error 1205 while a takeover hangs, 1213 after a deadlock, or, on MariaDB, 1020
// where the takeover is newer than the snapshot that it reads; it has changed nothing then.
func (l *Lock) FenceCondition() (condition string, args []any, err error) {
	token, on := l.term.fence()
	switch {
	case token == 0:
		err = ErrNotLeader
	case on == unknownEngine:
		err = errors.New("the server did not say what it is when the term began, or is of a kind that is not known here, so that a read lock may not fence a statement; let SHOW VARIABLES through to it, or use Transact, which writes")
	case on.isSharded():
		err = fmt.Errorf("on %v a statement may run on another shard than the election's, where a read lock does not fence it; use Transact, which keeps to one shard", on)
	case on.guardsByWrite():
		err = fmt.Errorf("a read lock does not fence a statement on %v; use Transact, which writes", on)
	}
	if err != nil {
		return "", nil, wrap("fence condition", l.election, err, nil)
	}
	// Any encoding's will do: the name is hexadecimal in each.
	return l.tables.Load().ascii.texts.fenceCondition, []any{hex.EncodeToString([]byte(l.election)), token, l.uid}, nil
}
