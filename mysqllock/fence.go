package mysqllock

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Guards: by a read lock, or by a write; which one, engine.go decides.

// guardSQL pins the current term. The shared lock lasts until the transaction ends, and a takeover
// needs the row for itself, so that no term begins before. LOCK IN SHARE MODE is the spelling that
// both MySQL and MariaDB know. The name is hexadecimal UTF-8, as the transaction's session may have
// any character set.
const guardSQL = fenceSQL + `
  LOCK IN SHARE MODE`

// fenceSQL reads the current term and pins nothing.
const fenceSQL = `
SELECT fencing_token, leader_uid
  FROM {fences}
 WHERE election_name = ` + hexName + ``

// literal is a string for a placeholder of hexName.
func literal(s string) string { return "'" + hex.EncodeToString([]byte(s)) + "'" }

// inline puts values in the place of a text's placeholders. What goes without arguments takes one
// round trip, whatever the options of the driver are. The values are digits, so that there is
// nothing to escape, and the last placeholders count: the database may have a ? in its name.
func inline(text string, values ...string) string {
	for _, value := range slices.Backward(values) {
		i := strings.LastIndexByte(text, '?')
		text = text[:i] + value + text[i+1:]
	}
	return text
}

// multiWriterGuardSQL pins the current term on clusters in which several nodes take writes: one
// row, or none if another term has begun. There, a lock is known to its own node only, and a node
// that is behind with applying has not seen a takeover that another node committed; but the cluster
// certifies writes, and refuses the commit of the later one of two transactions that changed the
// same row. So does TiDB, whatever its settings: in a pessimistic transaction the write locks, and
// an optimistic one is refused at its commit. On Vitess one server has the row, but vtgate, told to
// keep a transaction to one shard, looks at the shards that it writes to alone.
const multiWriterGuardSQL = `
UPDATE {fences}
   SET guards = guards + 1
 WHERE election_name = ` + hexName + ` AND fencing_token = ? AND leader_uid = ?`

// FencingToken returns the token of the current term, and whether this Lock holds one. Every term
// of an election, also one of the same holder, has a token larger than all before. A resource that
// refuses tokens smaller than the largest it has seen refuses a stale leader:
//
//	UPDATE resource SET ..., fence = ? WHERE id = ? AND fence <= ?
//
// Read it once when a term begins, in OnStartedLeading, and use that value for the term's work. For
// tables in the same MySQL server use [Lock.Transact], which needs no column.
func (l *Lock) FencingToken() (token int64, held bool) {
	token = l.term.current()
	return token, token != 0
}

// Guard makes sure, inside the caller's transaction, that this Lock leads and that no other
// candidate can begin a term before that transaction ends. It returns [ErrNotLeader] if leadership
// has passed; then roll back.
//
// tx must be of the server that has the lock's tables. A guard as the first statement pins
// leadership for the whole transaction: what is read afterwards stays a leader's view until the
// commit, but nobody can take over meanwhile, whatever becomes of this process. A guard as the last
// statement before the commit pins it for the shortest time: prefer it, or [Lock.Transact], which
// does it.
//
// A client that is cut off after its guard holds takeovers off until the server drops its session,
// after wait_timeout (8 hours by default): Transact lowers that, Guard does not. Renewals never
// wait for a guard.
//
// The guard is a shared lock, so that any number of a leader's transactions may be guarded at once.
// On Galera, Group Replication, TiDB and Vitess, and on a server that did not say what it is, it is
// a write instead: guarded transactions of one election wait for each other there, a commit may
// fail with error 1213, 3101 or 9007, having committed nothing, and a read-only transaction can't
// be guarded. tx's account needs SELECT and UPDATE on election_fences.
//
// On Vitess the session must have transaction_mode = 'single', which Transact sees to: in another
// mode a transaction may span shards, which commit one after the other, so that the guard's lock is
// gone before the last one has. Guard refuses other sessions.
//
// A server may end a transaction on its own after an error (a deadlock, 1213; MariaDB's 1020): roll
// back on every error. What follows in such a transaction would be committed statement by
// statement, unguarded; Transact notices that, Guard can't.
func (l *Lock) Guard(ctx context.Context, tx *sql.Tx) error {
	token, held := l.FencingToken()
	if !held {
		return wrap("guard", l.election, ErrNotLeader, nil)
	}
	return wrap("guard", l.election, l.guard(ctx, tx, token), nil)
}

func (l *Lock) guard(ctx context.Context, tx *sql.Tx, token int64) error {
	// The transaction may be of a pool with another default database.
	texts := &l.tables.Load().ascii.texts // its guards suit every encoding
	_, on := l.term.fence()
	if on.isSharded() {
		if err := mustBeSingle(ctx, tx); err != nil {
			return err
		}
	}
	byWrite, text := on.guardsByWrite(), texts.guard
	if byWrite {
		result, err := tx.ExecContext(ctx, inline(texts.multiWriterGuard, literal(l.election), strconv.FormatInt(token, 10), "'"+l.uid+"'"))
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 1 {
			return err
		}
		// Nothing to lock: the write found no row, and this only says why. TiDB refuses LOCK IN
		// SHARE MODE, or ignores it.
		text = texts.fence
	}
	var found sql.NullInt64
	var uid sql.NullString
	err := tx.QueryRowContext(ctx, inline(text, literal(l.election))).Scan(&found, &uid)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return errors.New("the election has no row in election_fences, although this candidate holds a term: the transaction is not of the server and the database that have the lock's tables, or somebody deleted the row; give the pool of that server, or WithDatabase")
	case number(err) == errRecordChanged:
		return fmt.Errorf("%w: another term has begun since the transaction did: %w", ErrNotLeader, err)
	case err != nil:
		return err
	case found.Int64 != token || uid.String != l.uid:
		return anotherTerm(found.Int64, token)
	case byWrite:
		return fmt.Errorf("%w: the row in election_fences is not as it was when the transaction began", ErrNotLeader)
	}
	return nil
}

func anotherTerm(found, token int64) error {
	return fmt.Errorf("%w: another term has begun, with fencing token %d after %d", ErrNotLeader, found, token)
}

// isLost reports whether err says that the session of a statement is no more, with all that it has
// not committed.
func isLost(err error) bool {
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) || number(err) == errIdleDisconnect
}

// hasPassed asks, if err says that a session was lost, whether another term has begun than the one
// with that token. It returns nil if not, and if it gets no answer.
func (l *Lock) hasPassed(ctx context.Context, db *sql.DB, token int64, err error) error {
	if !isLost(err) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.operationTimeout()) // the pool may have no other session
	defer cancel()
	var found sql.NullInt64
	var uid sql.NullString
	err = db.QueryRowContext(ctx, inline(l.tables.Load().ascii.texts.fence, literal(l.election))).Scan(&found, &uid)
	if err != nil || found.Int64 == token && uid.String == l.uid {
		return nil
	}
	return anotherTerm(found.Int64, token)
}

// insertFence makes the election's fence row, if it isn't there.
func (l *Lock) insertFence(o *operation, record resourcelock.LeaderElectionRecord) error {
	n, err := o.session.write(o.ctx, l.statements(record).insertFence(l.election))
	switch {
	case number(err) == errDuplicateKey, hasChanged(err):
		return nil
	case number(err) == errNotNull, err == nil && n != 1:
		return l.refused(o, record, "the server did not insert the election's row in election_fences; check it with Preflight")
	}
	return err
}

// transactionModeSQL asks vtgate whether a transaction may span shards.
const transactionModeSQL = `SELECT @@transaction_mode`

// mustBeSingle refuses a transaction of vtgate that may span shards.
func mustBeSingle(ctx context.Context, tx *sql.Tx) error {
	var mode string
	if err := tx.QueryRowContext(ctx, transactionModeSQL).Scan(&mode); err != nil {
		return err
	}
	if !strings.EqualFold(mode, "single") {
		return errors.New("the session's transaction_mode is " + mode + ", in which a transaction may span shards, which commit one after the other, unguarded; use Transact, or set it to 'single' before the transaction")
	}
	return nil
}
