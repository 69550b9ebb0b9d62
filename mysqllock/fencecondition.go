package mysqllock

import (
	"encoding/hex"
	"errors"
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
// your own, with the arguments for its placeholders. In a pool of the lock's server, with
// autocommit on, that statement then changes nothing once leadership has passed: a fence for the
// price of one round trip.
//
//	condition, args, err := lock.FenceCondition()
//	if err != nil { ... }
//	result, err := db.ExecContext(ctx, `UPDATE accounts SET balance = ? WHERE id = ? AND `+condition,
//		append([]any{balance, id}, args...)...)
//
// That no row was changed means that no row matched, or that leadership has passed: ask for the
// number of rows only where one must match, and take none for the loss of leadership; or read
// afterwards. For more than one statement use [Lock.Transact].
//
// A SELECT of an INSERT must have no aggregate function without GROUP BY: that returns a row whatever
// its WHERE says. Compute it in a derived table, and put the condition outside.
//
// It sends nothing. The condition holds for the current term; get it anew for each statement. It
// holds at every isolation level, and in a transaction, too: then nobody can take over until that
// ends. The account needs SELECT and UPDATE on election_fences.
//
// Errors: [ErrNotLeader] if this Lock holds no term; an error that says so on servers where a read
// lock is not enough, such as Galera, Group Replication and TiDB. Don't use it on Vitess unless the
// statement stays on the shard of the election's row.
func (l *Lock) FenceCondition() (condition string, args []any, err error) {
	const op = "fence condition"
	token, held := l.FencingToken()
	switch {
	case !held:
		return "", nil, wrap(op, l.election, ErrNotLeader, nil)
	case l.term.guardsByWrite():
		return "", nil, wrap(op, l.election, errors.New("this server is of a kind on which a read lock doesn't fence a statement; use Transact, which writes"), nil)
	}
	// Any encoding's will do: the name is hexadecimal in each.
	return l.tables.Load().ascii.texts.fenceCondition, []any{hex.EncodeToString([]byte(l.election)), token, l.uid}, nil
}
