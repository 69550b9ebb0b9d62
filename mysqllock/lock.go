package mysqllock

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// The statements of the protocol. {records} and {fences} stand for the tables'
// quoted names, {session} for the condition under which a session may write,
// {charsets} for the session's character sets, {name} for the election's name,
// {text} for another string parameter, {version} and {uid} for what was observed
// of the row, {server} for the server's own name, {clock} for the server's view
// of the row with WithServerClock. Each statement is atomic by itself and sent
// with autocommit on: no transaction spans two packets, as a candidate that is
// cut off between two packets would hold its locks until the server notices,
// hours later.
const (
	// pollSQL reads one election: parameters (name). One row, or none, and then
	// missingSQL tells the rest. Times are microseconds since 1970, a form that
	// no parseTime, loc or time_zone can change.
	pollSQL = pollColumns + ` FROM {records} AS r WHERE r.election_name = {name}`

	pollColumns = `SELECT @@autocommit, {charsets}, COALESCE(r.version, 0), CAST(r.leader_uid AS BINARY), CAST(r.leader_name AS BINARY), r.lease_duration_seconds,` +
		` TIMESTAMPDIFF(MICROSECOND, '1970-01-01', r.acquire_time), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', r.renew_time),` +
		` r.leader_transitions, CAST(r.strategy AS BINARY), CAST(r.preferred_holder AS BINARY), {clock}`

	// missingSQL tells whether the session is fit, when a poll found no row. It
	// may be answered by another session of the pool: what keeps a session that
	// is not fit from writing is {session}.
	missingSQL = `SELECT @@autocommit, {charsets}`

	// insertSQL makes an election's row: parameters (values of record, name).
	// One row or error 1062; no row when the session may not write.
	insertSQL = `INSERT INTO {records} (leader_name, leader_uid, lease_duration_seconds, acquire_time, renew_time,` +
		` leader_transitions, strategy, preferred_holder, version, last_update, server, election_name)` +
		` SELECT {text}, {text}, ?, ?, ?, ?, {text}, {text}, ?, UTC_TIMESTAMP(6), {server}, {name} FROM DUAL WHERE {session}`

	// renewSQL is the compare-and-swap of a renewal: parameters (values of
	// record, name, observed version, own uid). One row if the row was as
	// observed, none if not: nobody else writes the Lock's own uid, and another
	// write of its own changes the version. Neither holder nor uid is ever empty
	// here, and the uid is ASCII, which spares the server what releaseSQL does.
	renewSQL = `UPDATE {records} AS r SET r.leader_name = {name}, r.leader_uid = {name}, ` + assignments +
		` WHERE r.election_name = {name} AND {version} AND r.leader_uid = {name} AND {session}`

	// releaseSQL is the compare-and-swap of a release: parameters (values of
	// record, name, observed version, observed uid). One row or none as above:
	// two candidates that observed the same row can't both get one, as the first
	// changes the version.
	releaseSQL = `UPDATE {records} AS r SET ` + names + assignments +
		` WHERE r.election_name = {name} AND {version} AND {uid} AND {session}`

	// takeOverSQL is the compare-and-swap that begins a term: parameters (uid,
	// values of record, name, observed version, observed uid). It changes both
	// rows or none, and its insert id is the new fencing token: larger than
	// every earlier one in the fence row, and than those of a lost fence row
	// as the server's clock goes on. The fence row comes first, so that a
	// takeover that waits for a guard doesn't hold the lease row meanwhile.
	takeOverSQL = `UPDATE {fences} AS f STRAIGHT_JOIN {records} AS r ON r.election_name = f.election_name` +
		` SET f.fencing_token = LAST_INSERT_ID(GREATEST(COALESCE(f.fencing_token, 0) + 1, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)))),` +
		` f.leader_uid = ?, ` + names + assignments +
		` WHERE f.election_name = {name} AND {version} AND {uid} AND {session}`

	// probeSQL finds out whether a transaction guards the current term, without
	// waiting for it: parameters (name). One row; none if the fence row is
	// missing; error 1205 or 3572 if it is guarded. Without it, every retry of
	// every follower would leave one more session waiting at the server.
	probeSQL = `SELECT fencing_token FROM {fences} WHERE election_name = {name} AND {session} FOR UPDATE NOWAIT`

	// insertFenceSQL makes an election's fence row: parameters (name). One row,
	// or error 1062, which is as good.
	insertFenceSQL = `INSERT INTO {fences} (election_name, fencing_token, leader_uid)` +
		` SELECT {name}, 0, LEFT('-', 0) FROM DUAL WHERE {session}`

	// names and assignments are the values of record in an UPDATE.
	names       = `r.leader_name = {text}, r.leader_uid = {text}, `
	assignments = `r.lease_duration_seconds = ?, r.acquire_time = ?, r.renew_time = ?,` +
		` r.leader_transitions = ?, r.strategy = {text}, r.preferred_holder = {text}, r.version = ?,` +
		` r.last_update = UTC_TIMESTAMP(6), r.server = {server}`

	// charsets are the session's character sets, in which names travel.
	charsets = `CONCAT_WS(',', @@character_set_client, @@character_set_connection, @@character_set_results)`

	// writableSession keeps a write from being "done" in a transaction that
	// nobody commits.
	writableSession = `@@autocommit = 1`
	// unicodeSession also keeps names from being read in another character set.
	unicodeSession = writableSession + ` AND @@character_set_client = 'utf8mb4' AND @@character_set_connection = 'utf8mb4'`

	// textParameter is a string parameter that stays '' where the sql_mode
	// EMPTY_STRING_IS_NULL of MariaDB makes it NULL.
	textParameter = `IFNULL(?, LEFT('-', 0))`

	// hexName and hexParameter are strings beyond ASCII. They travel as the
	// hexadecimal digits of their UTF-8, and not as they are: a driver that puts
	// parameters into the statement itself quotes them for ASCII and UTF-8, but
	// in a session with gbk or sjis a part of such a character may swallow the
	// backslash before a quote. The session is refused, but only afterwards.
	hexName      = `CONVERT(UNHEX(?) USING utf8mb4)`
	hexParameter = `IFNULL(` + hexName + `, LEFT('-', 0))`

	// sameVersion and sameUID compare with what was observed, which is whatever
	// somebody put in the row: a NULL counts for what it was read as, and the uid
	// are bytes that no character set can change, compared as such: the parameter
	// may have another collation than the session.
	sameVersion = `COALESCE(r.version, 0) = ?`
	sameUID     = `COALESCE(HEX(r.leader_uid), LEFT('-', 0)) = CAST(` + textParameter + ` AS BINARY)`

	// serverClock is whether the answering server wrote the row, and how many
	// microseconds ago; noServerClock is what takes its place without the option.
	serverClock   = `r.server = ` + serverName + `, TIMESTAMPDIFF(MICROSECOND, r.last_update, UTC_TIMESTAMP(6))`
	noServerClock = `NULL, NULL`

	// uptimeSQL is for how many seconds the server has been up.
	uptimeSQL = `SHOW GLOBAL STATUS LIKE 'Uptime'`

	// serverName tells server instances apart.
	serverName = `LEFT(CONCAT(@@hostname, ':', @@port, '#', @@server_id), 255)`
)

// statements are the above in one wording.
type statements struct {
	poll, missing, insert, renew, release, takeOver, probe, insertFence string

	hex bool // {name} and {text} are hexadecimal digits
}

// wording is what the text of statements depends on.
type wording struct {
	database    string
	serverClock bool
	unicode     bool // they carry strings beyond ASCII
}

// fill puts the wording into a statement.
func (w wording) fill(statement string) string {
	clock, charset, session, name, text := noServerClock, `NULL`, writableSession, `?`, textParameter
	if w.serverClock {
		clock = serverClock
	}
	if w.unicode {
		charset, session, name, text = charsets, unicodeSession, hexName, hexParameter
	}
	return tableNames(w.database).Replace(strings.NewReplacer("{clock}", clock, "{charsets}", charset, "{session}", session,
		"{name}", name, "{text}", text, "{version}", sameVersion, "{uid}", sameUID, "{server}", serverName).Replace(statement))
}

// worded has the *statements of each wording: some kilobytes, which Locks share.
var worded sync.Map

func (w wording) statements() *statements {
	made, ok := worded.Load(w)
	if !ok {
		poll, renew := w.fill(pollSQL), w.fill(renewSQL)
		frequent.Store(poll, nil)
		frequent.Store(renew, nil)
		made, _ = worded.LoadOrStore(w, &statements{
			poll:        poll,
			missing:     w.fill(missingSQL),
			insert:      w.fill(insertSQL),
			renew:       renew,
			release:     w.fill(releaseSQL),
			takeOver:    w.fill(takeOverSQL),
			probe:       w.fill(probeSQL),
			insertFence: w.fill(insertFenceSQL),
			hex:         w.unicode,
		})
	}
	return made.(*statements) //nolint:errcheck,forcetypeassert // nothing else is stored
}

// text is the argument of a {name} or {text}.
func (s *statements) text(value string) string {
	if s.hex {
		return hex.EncodeToString([]byte(value))
	}
	return value
}

// statements are those that may carry r's strings.
func (l *Lock) statements(r resourcelock.LeaderElectionRecord) *statements {
	if l.ascii && isASCII(string(r.Strategy)) && isASCII(r.PreferredHolder) {
		return l.forASCII
	}
	return l.forUnicode
}

// tableNames fills {records} and {fences} in.
func tableNames(database string) *strings.Replacer {
	prefix := qualifier(database)
	return strings.NewReplacer("{records}", prefix+"election_records", "{fences}", prefix+"election_fences")
}

// qualifier is a database's name before that of a table; nothing if it has none,
// as the table is in the connection's own then.
func qualifier(database string) string {
	if database == "" {
		return ""
	}
	return "`" + strings.ReplaceAll(database, "`", "``") + "`."
}

// Lock is a resourcelock.Interface on one row of the table election_records.
// One Lock serves one elector, also for several of its runs; it is safe to call
// from several goroutines. Make it with New.
type Lock struct {
	db       *sql.DB
	election string
	config   resourcelock.ResourceLockConfig
	options  options
	uid      string // which Lock this is; stored with the lease
	ascii    bool   // election and identity are ASCII: any character set will do
	// forASCII are for names that any character set carries, forUnicode for
	// sessions that must have utf8mb4.
	forASCII, forUnicode *statements

	// turn is held during an operation: operations of one Lock don't overlap,
	// so that what one observed is what the next compares with.
	turn chan struct{}
	// observed is the row as the elector last saw it: through a successful Get,
	// Create or Update and by no other way, as the next Update may overwrite
	// exactly this row. Nil before that. Owned by the holder of turn.
	observed *row
	// sight is when the row was first seen as it was last seen. Owned by the
	// holder of turn.
	sight sight
	// tried is the version of the last write that was tried, and the version that
	// it was to follow. Owned by the holder of turn.
	tried struct{ after, version int64 }
	// reported is the uid that ErrDuplicateIdentity was last logged for. Owned
	// by the holder of turn.
	reported string

	mu      sync.Mutex
	token   int64         // the fencing token of the current term; 0: no term
	renewed time.Time     // when the current term's last renewal was sent
	cluster *bool         // whether guards must be writes; nil: not asked in this term
	drained bool          // WithBeforeRelease's function ended the work of this term
	working error         // that function did not end it
	lease   time.Duration // of the last record written here that has a holder
	seen    time.Duration // of the observed row, if it has a holder
}

// sight is one state of the row, and when it was first seen.
type sight struct {
	version int64
	uid     string
	at      time.Time
}

var _ resourcelock.Interface = (*Lock)(nil)

// New makes the lock of the candidate config.Identity in the named election.
// It takes the place of the expression that makes a resourcelock.LeaseLock:
// identity, recorder and elector stay as they are.
//
// It does no I/O; Migrate, or whoever applies Schema, makes the tables. The
// pool stays the caller's: New doesn't configure it, and nothing here closes it.
// Keep it open until the elector has returned, or it can't release its lease.
//
// The election's name and the identity must have 1 to 255 characters of valid
// UTF-8, without control characters and without a space at either end. With an
// EventRecorder, see WithEventTarget for the namespace that events are in.
func New(db *sql.DB, election string, config resourcelock.ResourceLockConfig, opts ...Option) (*Lock, error) {
	fail := func(err error) (*Lock, error) { return nil, &opError{op: "new", election: election, cause: err} }
	if db == nil {
		return fail(errors.New("db is nil; open a pool first, as with mysqllock.Open"))
	}
	if err := validateName("election name", election, maxNameLength); err != nil {
		return fail(err)
	}
	if err := validateName("identity", config.Identity, maxNameLength); err != nil {
		return fail(err)
	}
	o, err := applyOptions(opts)
	if err != nil {
		return fail(err)
	}
	if o.batch != nil {
		if err := o.batch.serve(db, o.database); err != nil {
			return fail(err)
		}
	}
	uid := make([]byte, 16)
	if _, err := rand.Read(uid); err != nil {
		return fail(err)
	}
	return &Lock{
		db:       db,
		election: election,
		config:   config,
		options:  o,
		uid:      hex.EncodeToString(uid),
		ascii:    isASCII(election) && isASCII(config.Identity) && isASCII(o.database),
		turn:     make(chan struct{}, 1),

		forASCII:   wording{o.database, o.serverClock, false}.statements(),
		forUnicode: wording{o.database, o.serverClock, true}.statements(),
	}, nil
}

// Identity returns the candidate's name.
func (l *Lock) Identity() string { return l.config.Identity }

// Describe returns "election_records/<election>", for logs.
func (l *Lock) Describe() string { return "election_records/" + l.election }

// Get reads the election's record. The bytes are the record's JSON with the
// row's version: every renewal changes them, also two within one second, and
// client-go's followers take nothing else for a sign of life.
//
// A row that another Lock holds under this one's identity is reported as held
// by someone else, or both would lead.
//
// Errors: apierrors.IsNotFound if the election has no row; an error about the
// session if it has autocommit off, or if a name has characters beyond ASCII
// and the session's character set is not utf8mb4.
func (l *Lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	var record resourcelock.LeaderElectionRecord
	var raw []byte
	err := l.operate(ctx, "get", func(o *operation) error {
		r, err := l.poll(o)
		if err != nil {
			return err
		}
		if err := o.late(); err != nil {
			return err
		}
		if r == nil {
			l.endTerm()
			return notFound(l.election)
		}
		if l.options.serverClock {
			if r, err = l.expire(o, r); err != nil {
				return err
			}
		}
		l.observe(r)
		if r.uid != l.uid {
			// Someone took over meanwhile, or this Lock never led.
			l.endTerm()
		}
		record = r.record
		switch {
		case r.expired:
			record.HolderIdentity = ""
		case l.isDuplicate(r) && !l.options.sameIdentity:
			l.reportDuplicate(ctx, r)
			record.HolderIdentity += " (another candidate, uid " + r.uid + ")"
		}
		raw, err = rawRecord(record, r.version)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return &record, raw, nil
}

// Create makes the election's row, held as record says.
//
// Errors: apierrors.IsAlreadyExists if the row is there already, also if
// another candidate was faster.
func (l *Lock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	record.LeaderTransitions = storable(record.LeaderTransitions)
	if err := l.validate(record); err != nil {
		return wrap("create", l.election, err, nil)
	}
	l.noteLease(record)
	return l.operate(ctx, "create", func(o *operation) error {
		// Made as released and then taken over, so that beginning a term is one
		// statement, the same for a new election and an old one. A candidate
		// that dies in between leaves an election that anyone can take.
		released := row{record: record, version: l.newVersion(0)}
		released.record.HolderIdentity = ""
		statements := l.statements(record)
		err := l.write(o, statements.insert, append(statements.values(&released), statements.text(l.election)))
		switch {
		case number(err) == errDuplicateKey:
			return alreadyExists(l.election)
		case number(err) == errRecordChanged:
			if now, readErr := l.read(o); readErr == nil && now != nil {
				return alreadyExists(l.election)
			}
			return err
		case err != nil:
			return err
		}
		if record.HolderIdentity == "" {
			return l.succeed(o, &released, 0)
		}
		err = l.takeOver(o, &released, record)
		var lost *lostError
		if errors.As(err, &lost) {
			return alreadyExists(l.election)
		}
		return err
	})
}

// Update writes record if the row is still as the elector last saw it: a
// renewal while this Lock holds a term, a takeover that begins a term
// otherwise, a release if the record has no holder.
//
// The outcome of a write that had no answer is unknown: the server may still apply
// the statement. That is harmless, as it is a compare-and-swap, and a later Get
// recognises a row that this Lock wrote itself.
//
// Errors: apierrors.IsConflict if the row is not as last seen (with
// ErrDuplicateIdentity if another candidate of the same identity holds it);
// apierrors.IsNotFound if it is gone. A release by a Lock that no longer holds
// the row is refused by an error that is no conflict, as client-go would retry
// a conflict without a pause; so is one by a leader that did not renew for
// RenewDeadline (half a lease without WithTimings), whose work has not ended yet
// unless WithBeforeRelease's function did that.
func (l *Lock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	record.LeaderTransitions = storable(record.LeaderTransitions)
	if err := l.validate(record); err != nil {
		return wrap("update", l.election, err, nil)
	}
	if record.HolderIdentity == "" {
		if err := l.drain(ctx); err != nil {
			return wrap("update", l.election, err, nil)
		}
	}
	l.noteLease(record)
	return l.operate(ctx, "update", func(o *operation) error {
		old := l.observed
		switch {
		case old == nil:
			return errors.New("no row was observed yet; call Get or Create first")
		case record.HolderIdentity == "":
			return l.release(o, old, record)
		case old.uid == l.uid && l.leads():
			return l.renew(o, old, record)
		case old.isHeld() && old.uid != l.uid && !l.mayResume(old) && !record.AcquireTime.Equal(&record.RenewTime):
			// The record goes on with a term, the row is a successor's: the
			// caller hasn't noticed. A takeover has equal times.
			return conflict(l.election, "the row is held by "+strconv.Quote(old.record.HolderIdentity)+", and the record does not begin a term")
		default:
			err := l.takeOver(o, old, record)
			var lost *lostError
			if errors.As(err, &lost) {
				return lost.cause
			}
			return err
		}
	})
}

// renew goes on with the current term. No other candidate can have a term at
// that moment: beginning one changes version and uid, and then no row matches.
func (l *Lock) renew(o *operation, old *row, record resourcelock.LeaderElectionRecord) error {
	next := &row{record: record, uid: l.uid, version: l.newVersion(old.version)}
	written := false
	if b := l.options.batch; b != nil {
		var err error
		if written, err = b.renew(l, o, old, next); err != nil {
			return err
		}
	}
	if !written {
		statements := l.statements(record)
		if err := l.swap(o, old, next, statements.renew, statements.text(l.uid)); err != nil {
			return err
		}
	}
	return l.succeed(o, next, l.currentToken())
}

// takeOver begins a term. A row that is this Lock's own without a held token (a
// takeover whose reply was lost, an earlier run of the elector) is taken over
// like any other, so that no token has to be guessed.
func (l *Lock) takeOver(o *operation, old *row, record resourcelock.LeaderElectionRecord) error {
	l.endTerm()
	statements := l.statements(record)
	var last sql.NullInt64
	err := l.db.QueryRowContext(o.ctx, statements.probe, statements.text(l.election)).Scan(&last)
	switch {
	case last.Int64 == math.MaxInt64:
		return errors.New("the election's row in election_fences has the largest fencing token there is, so that no term can begin; delete that row, once nothing compares with this token any more")
	case errors.Is(err, sql.ErrNoRows):
		err := l.write(o, statements.insertFence, []any{statements.text(l.election)})
		if n := number(err); err != nil && n != errDuplicateKey && n != errRecordChanged {
			return err
		}
	case number(err) == errRecordChanged:
		return l.changed(o, old, err)
	case isBusy(err):
		return fmt.Errorf("a transaction guards the current term, or takes over, until it ends: %w", err)
	case err != nil:
		return err
	}

	next := &row{record: record, uid: l.uid, version: l.newVersion(old.version)}
	args := append([]any{l.uid}, statements.values(next)...)
	result, err := l.exec(o, statements.takeOver, append(args, statements.text(l.election), old.version, hexUID(old)))
	if number(err) == errRecordChanged {
		return l.changed(o, old, err)
	}
	if err != nil {
		return err
	}
	switch n, err := result.RowsAffected(); {
	case err != nil:
		return err
	case n == 0:
		return l.lost(o, old)
	}
	token, err := result.LastInsertId()
	if err != nil {
		return err
	}
	if token <= 0 {
		return fmt.Errorf("the server returned the fencing token %d", token)
	}
	return l.succeed(o, next, token)
}

// release gives the lease up, if it is this Lock's own. The term, and with it
// the token, ends before anything is sent: once the row is released, anybody may
// begin the next one.
//
// It ends with the lease: the elector calls itself leader until it has returned,
// and has already spent a deadline on the Get before it. And it is for electors
// that were cancelled, whose work has been told to end. One that could not renew
// for RenewDeadline tells its work afterwards, so that a successor would lead
// beside it for as long as the reply takes: its lease is left to expire. So is one
// whose work WithBeforeRelease's function has not ended, as this Lock had lost
// sight of the row, and with it the term, when the function was due.
func (l *Lock) release(o *operation, old *row, record resourcelock.LeaderElectionRecord) error {
	givenUp := l.gaveUp()
	l.mu.Lock()
	over, limit := l.renewed.Add(l.lease), l.renewDeadline()
	undrained := l.options.beforeRelease != nil && !l.drained
	l.mu.Unlock()
	l.endTerm()
	ctx, cancel := context.WithDeadline(o.ctx, over)
	defer cancel()
	o = &operation{ctx: ctx, started: o.started, timeout: o.timeout}
	for {
		if old.uid != l.uid {
			return fmt.Errorf("not released, as this candidate does not hold the election: it is held by %s", old.holder())
		}
		if givenUp {
			return fmt.Errorf("not released, the lease is left to expire: it was not renewed for %v, and an elector that gives up ends its work only after the release", limit)
		}
		if undrained {
			return errors.New("not released, the lease is left to expire: it was not known to be held when the function of WithBeforeRelease was due, so that work may still go on")
		}
		next := &row{record: record, version: l.newVersion(old.version)}
		err := l.swap(o, old, next, l.statements(record).release, hexUID(old))
		var lost *lostError
		switch {
		case err == nil:
			return l.succeed(o, next, 0)
		case errors.As(err, &lost) && lost.now != nil:
			// A late renewal of this Lock's own: released in the next round,
			// as older versions of client-go don't try again. Held by another:
			// refused there.
			old = lost.now
		default:
			return err
		}
	}
}

// swap writes next over old by renewSQL or releaseSQL, with old's uid as that
// takes it.
func (l *Lock) swap(o *operation, old, next *row, statement, uid string) error {
	statements := l.statements(next.record)
	args := append(statements.values(next), statements.text(l.election), old.version, uid)
	result, err := l.exec(o, statement, args)
	if number(err) == errRecordChanged {
		return l.changed(o, old, err)
	}
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err != nil {
		return err
	}
	if n == 0 {
		return l.lost(o, old)
	}
	return nil
}

// lostError is a lost compare-and-swap: cause is what the elector is told, now
// the row that was found instead, nil if it is gone or couldn't be read.
type lostError struct {
	cause error
	now   *row
}

func (e *lostError) Error() string { return e.cause.Error() }
func (e *lostError) Unwrap() error { return e.cause }

// lost finds out why a compare-and-swap with old matched no row. What it reads
// is not made l.observed: the elector hasn't seen it, and an optimistic update
// that the elector still believes in must not overwrite a successor.
func (l *Lock) lost(o *operation, old *row) error {
	now, err := l.read(o)
	var refused sessionError
	switch {
	case errors.As(err, &refused):
		// Nothing is lost: the session was changed after the row was observed.
		// No conflict, which client-go would retry without a pause in a release.
		return err
	case err != nil:
		l.endTerm()
		return &lostError{cause: conflict(l.election, "the row has changed since it was observed")}
	case now == nil:
		l.endTerm()
		return &lostError{cause: notFound(l.election)}
	case now.version == old.version && now.uid == old.uid:
		return errors.New("the session refused the write: its autocommit is off, or its character set is not utf8mb4; or the election's row in election_fences vanished")
	case now.uid == l.uid:
		// A write of this Lock whose reply was lost. The term goes on: only a
		// takeover changes the fence, and it would have changed the uid as well.
		return &lostError{conflict(l.election, "an earlier write of this candidate was applied late"), now}
	}
	l.endTerm()
	cause := conflict(l.election, fmt.Sprintf("the row has changed since it was observed and is held by %s", now.holder()))
	if l.isDuplicate(now) {
		l.reportDuplicate(o.ctx, now)
		cause = fmt.Errorf("%w: %w", ErrDuplicateIdentity, cause)
	}
	return &lostError{cause, now}
}

// changed tells what error 1020 means: MariaDB's SERIALIZABLE answers with it
// where the other isolation levels find that no row matches, but also when only
// a neighbour was written. The statement did nothing.
func (l *Lock) changed(o *operation, old *row, err error) error {
	var lost *lostError
	if found := l.lost(o, old); errors.As(found, &lost) {
		return found
	}
	return err
}

// succeed records that next is now the row, unless the reply came too late to
// be trusted: then it is as good as a reply that was lost.
func (l *Lock) succeed(o *operation, next *row, token int64) error {
	if err := o.late(); err != nil {
		return unanswered(err)
	}
	l.observe(next)
	l.mu.Lock()
	defer l.mu.Unlock()
	if token != l.token {
		l.drained, l.working, l.cluster = false, nil, nil
	}
	l.token, l.renewed = token, o.started
	return nil
}

func (l *Lock) observe(r *row) {
	l.observed = r
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = 0
	if r.isHeld() {
		l.seen = time.Duration(r.record.LeaseDurationSeconds) * time.Second
	}
}

func (l *Lock) endTerm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.token = 0
}

// drain runs WithBeforeRelease's function, once a term and only while this Lock
// holds one. The lease isn't renewed meanwhile, so that the function must end
// one operation, the release, before followers may take over; one that goes on
// isn't waited for, as the elector ends its leader's context only afterwards.
func (l *Lock) drain(ctx context.Context) error {
	f := l.options.beforeRelease
	if f == nil {
		return nil
	}
	timeout := l.operationTimeout()
	l.mu.Lock()
	due, working := l.token != 0 && !l.drained, l.working
	deadline := l.renewed.Add(l.lease - timeout)
	l.mu.Unlock()
	if !due {
		return working
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	returned := make(chan error, 1)
	go func() { returned <- f(ctx) }()
	var err error
	select {
	case err = <-returned:
		if err != nil {
			err = fmt.Errorf("failed: %w", err)
		}
	case <-ctx.Done():
	}
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("took too long: %w", ctx.Err())
	}
	if err != nil {
		err = fmt.Errorf("not released, the lease is left to expire: the function of WithBeforeRelease %w", err)
		l.endTerm()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drained, l.working = err == nil, err
	return err
}

// gaveUp tells whether an elector has given up by now, for want of a renewal.
// It ends its leader's work after the release only, unless that was drained, so
// that a release would let a successor begin too early.
func (l *Lock) gaveUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.drained && time.Since(l.renewed) >= l.renewDeadline()
}

// renewDeadline is the elector's, as far as it is known. The caller holds l.mu.
func (l *Lock) renewDeadline() time.Duration {
	if d := l.options.timings.renewDeadline; d != 0 {
		return d
	}
	return l.lease / 2
}

func (l *Lock) leads() bool { return l.currentToken() != 0 }

func (l *Lock) currentToken() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.token
}

func (l *Lock) isDuplicate(r *row) bool {
	return r.uid != l.uid && r.record.HolderIdentity == l.config.Identity
}

// mayResume tells whether the row may be taken over because it is held under
// this candidate's own identity.
func (l *Lock) mayResume(r *row) bool {
	return l.options.sameIdentity && l.isDuplicate(r)
}

// reportDuplicate logs, once for each of them, that another candidate leads
// under this one's name.
func (l *Lock) reportDuplicate(ctx context.Context, r *row) {
	if l.reported == r.uid {
		return
	}
	l.reported = r.uid
	klog.FromContext(ctx).Error(ErrDuplicateIdentity, "Election is held under this candidate's own identity; give each process an identity of its own",
		"lock", l.Describe(), "identity", l.config.Identity)
}

// noteLease remembers the lease duration for the deadline of what follows.
// client-go's release record says 1 s and has no holder; it must not count.
func (l *Lock) noteLease(record resourcelock.LeaderElectionRecord) {
	if record.HolderIdentity == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lease = time.Duration(record.LeaseDurationSeconds) * time.Second
}

// leaseDuration is that of the last record written here.
func (l *Lock) leaseDuration() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lease
}

// maxOperationTimeout is (LeaseDuration - RenewDeadline - RetryPeriod) / 2 of
// client-go's defaults: 15 s, 10 s and 2 s.
const maxOperationTimeout = 1500 * time.Millisecond

// operationTimeout is how long an operation may take; see WithOperationTimeout.
func (l *Lock) operationTimeout() time.Duration {
	if l.options.operationTimeout > 0 {
		return l.options.operationTimeout
	}
	if l.options.timings != (timings{}) {
		return l.options.timings.operationTimeout()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, lease := range []time.Duration{l.lease, l.seen} {
		if lease > 0 {
			return min(lease/10, maxOperationTimeout)
		}
	}
	return maxOperationTimeout
}

// operation is one call of the elector, with the deadline that it must not
// outlive even if the caller's context has none.
type operation struct {
	ctx     context.Context
	started time.Time
	timeout time.Duration
}

var errLate = fmt.Errorf("the reply came after the deadline: %w", context.DeadlineExceeded)

// late reports a reply that came too late. Timers may fire late in a process
// that was paused, so the context alone can't tell.
func (o *operation) late() error {
	if err := o.ctx.Err(); err != nil {
		return err
	}
	if time.Since(o.started) > o.timeout {
		return errLate
	}
	return nil
}

func (l *Lock) operate(ctx context.Context, op string, f func(*operation) error) error {
	o := &operation{started: time.Now(), timeout: l.operationTimeout()}
	var cancel context.CancelFunc
	o.ctx, cancel = context.WithTimeout(ctx, o.timeout)
	defer cancel()
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-o.ctx.Done():
		return wrap(op, l.election, o.ctx.Err(), l.db)
	}
	err := f(o)
	var status apierrors.APIStatus
	if cause := o.ctx.Err(); err != nil && cause != nil && !errors.Is(err, cause) && number(err) == 0 && !errors.As(err, &status) {
		// A driver may report a connection that it had to give up in words of
		// its own.
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return wrap(op, l.election, err, l.db)
}

// row is one row of election_records.
type row struct {
	record  resourcelock.LeaderElectionRecord
	uid     string
	version int64

	// With WithServerClock: whether the answering server wrote the row, how
	// long ago, and whether expire found that its lease is over.
	sameServer bool
	age        time.Duration
	expired    bool
}

// isHeld tells whether the row names a leader that is not known to be gone.
func (r *row) isHeld() bool { return r.record.HolderIdentity != "" && !r.expired }

// expire finds out whether r is the lease of a candidate that is gone, by the
// rules of WithServerClock, and returns the row as last read. A live leader is
// never found gone: it would have renewed between the two sights.
func (l *Lock) expire(o *operation, r *row) (*row, error) {
	if l.sight.version != r.version || l.sight.uid != r.uid {
		l.sight = sight{r.version, r.uid, time.Now()}
		return r, nil
	}
	lease := time.Duration(r.record.LeaseDurationSeconds) * time.Second
	apart := lease / 3
	if l.options.timings.retry > 0 {
		apart = 2 * l.options.timings.retry
	}
	isOver := func(r *row) bool {
		return r.isHeld() && r.uid != l.uid && r.sameServer && r.age > lease+max(lease/10, 500*time.Millisecond)
	}
	if o.started.Sub(l.sight.at) < apart || !isOver(r) {
		return r, nil
	}
	// Only a server that has been up since before the row was written can know
	// the row's age: a restart may have changed its clock. Row and uptime must
	// be of one server, so they are read by one session.
	conn, err := l.db.Conn(o.ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // back to the pool; nothing to lose
	var name string
	var uptime int64
	if err := conn.QueryRowContext(o.ctx, uptimeSQL).Scan(&name, &uptime); err != nil {
		return nil, err
	}
	now, err := l.readBy(o, conn)
	if err != nil || now == nil || now.version != r.version || now.uid != r.uid {
		return r, err // changed just now: the next poll will tell
	}
	now.expired = isOver(now) && time.Duration(uptime)*time.Second > now.age+time.Second
	return now, nil
}

// holder is the row's holder in words.
func (r *row) holder() string {
	if r.record.HolderIdentity == "" {
		return "nobody"
	}
	return strconv.Quote(r.record.HolderIdentity)
}

// sessionError is what makes a session unfit for a lock.
type sessionError string

func (e sessionError) Error() string { return string(e) }

// poll reads the row, together with other Locks' if there is a Batch.
func (l *Lock) poll(o *operation) (*row, error) {
	if b := l.options.batch; b != nil {
		return b.poll(l, o)
	}
	return l.read(o)
}

// read reads the row; nil if there is none.
func (l *Lock) read(o *operation) (*row, error) { return l.readBy(o, l.db) }

func (l *Lock) readBy(o *operation, db interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
},
) (*row, error) {
	statements := l.statements(resourcelock.LeaderElectionRecord{})
	var p polled
	err := db.QueryRowContext(o.ctx, statements.poll, statements.text(l.election)).Scan(p.fields()...)
	if errors.Is(err, sql.ErrNoRows) {
		err = db.QueryRowContext(o.ctx, statements.missing).Scan(&p.autocommit, &p.charsets)
	}
	if err != nil {
		return nil, err
	}
	return p.row(l)
}

// polled is what pollSQL returns.
type polled struct {
	autocommit                sql.NullBool
	charsets                  sql.NullString
	version                   sql.NullInt64
	uid, holder               sql.NullString
	lease, transitions        sql.NullInt64
	acquired, renewed         sql.NullInt64
	strategy, preferredHolder sql.NullString
	sameServer                sql.NullBool
	age                       sql.NullInt64
}

func (p *polled) fields() []any {
	return []any{
		&p.autocommit, &p.charsets, &p.version, &p.uid, &p.holder, &p.lease, &p.acquired, &p.renewed, &p.transitions,
		&p.strategy, &p.preferredHolder, &p.sameServer, &p.age,
	}
}

// row is what was read for l; nil if the election has none.
func (p *polled) row(l *Lock) (*row, error) {
	if !p.autocommit.Bool {
		return nil, sessionError("the session has autocommit off, so that no write would ever be committed; remove autocommit=0 from the DSN, the server's configuration or init_connect")
	}
	if !l.ascii {
		for charset := range strings.SplitSeq(p.charsets.String, ",") {
			if charset != "utf8mb4" {
				return nil, sessionError("the session's character set is " + charset + ", in which the election's name, the identity or the database's name is another; set charset=utf8mb4 in the DSN")
			}
		}
	}
	if !p.version.Valid {
		return nil, nil
	}
	if p.version.Int64 == math.MaxInt64 {
		return nil, errors.New("the row's version is the largest there is, so that it can't be renewed; delete the row")
	}
	return &row{
		uid:        p.uid.String,
		version:    p.version.Int64,
		sameServer: p.sameServer.Bool,
		age:        duration(p.age.Int64, time.Microsecond),
		record: resourcelock.LeaderElectionRecord{
			HolderIdentity:       p.holder.String,
			LeaseDurationSeconds: int(p.lease.Int64),
			AcquireTime:          fromMicros(p.acquired),
			RenewTime:            fromMicros(p.renewed),
			LeaderTransitions:    int(p.transitions.Int64),
			Strategy:             coordinationv1.CoordinatedLeaseStrategy(p.strategy.String),
			PreferredHolder:      p.preferredHolder.String,
		},
	}, nil
}

// write runs a statement that must change exactly one row.
func (l *Lock) write(o *operation, statement string, args []any) error {
	result, err := l.exec(o, statement, args)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err != nil {
		return err
	}
	if n != 1 {
		return errors.New("the session refused the write: its autocommit is off, or its character set is not utf8mb4")
	}
	return nil
}

// values are the parameters of assignments, in their order.
func (s *statements) values(r *row) []any {
	return []any{
		s.text(r.record.HolderIdentity), s.text(r.uid), r.record.LeaseDurationSeconds, datetime(r.record.AcquireTime), datetime(r.record.RenewTime),
		r.record.LeaderTransitions, s.text(string(r.record.Strategy)), s.text(r.record.PreferredHolder), r.version,
	}
}

// hexUID is the argument of {uid}.
func hexUID(old *row) string { return strings.ToUpper(hex.EncodeToString([]byte(old.uid))) }

// newVersion is larger than the observed version, and also larger than that of
// a row that was deleted and made again meanwhile, so that a stale
// compare-and-swap can't match. No two tries to follow one version have the same,
// so that a row tells which of them was applied, also where versions are ahead
// of this clock.
func (l *Lock) newVersion(observed int64) int64 {
	next := max(observed+1, time.Now().UnixMicro())
	if l.tried.after == observed {
		next = max(next, l.tried.version+1)
	}
	l.tried.after, l.tried.version = observed, next
	return next
}

// storable is n, or what is next to it in the column. The elector makes it from
// the row, by adding one, so that a row with a number at its limit would elect
// nobody any more if it were refused.
func storable(transitions int) int {
	return min(max(transitions, 0), math.MaxInt32)
}

// validate refuses a record that a column can't hold or that would elect two.
func (l *Lock) validate(r resourcelock.LeaderElectionRecord) error {
	if r.HolderIdentity != "" && r.HolderIdentity != l.config.Identity {
		return fmt.Errorf("holderIdentity %q is neither this candidate (%q) nor empty; a Lock writes for its own candidate only", r.HolderIdentity, l.config.Identity)
	}
	if r.HolderIdentity != "" && r.LeaseDurationSeconds < 1 {
		return fmt.Errorf("leaseDurationSeconds is %d, a lease that has always expired; client-go stores whole seconds, so make LeaseDuration at least 1s", r.LeaseDurationSeconds)
	}
	if t := l.options.timings; r.HolderIdentity != "" && t != (timings{}) && time.Duration(r.LeaseDurationSeconds)*time.Second != t.lease {
		return fmt.Errorf("leaseDurationSeconds is %d, WithTimings says %v; give WithTimings the elector's own LeaseDuration", r.LeaseDurationSeconds, t.lease)
	}
	if n := r.LeaseDurationSeconds; n < 0 || n > math.MaxInt32 {
		return fmt.Errorf("leaseDurationSeconds %d is out of range; give 0 to %d", n, math.MaxInt32)
	}
	for _, s := range []struct{ field, value string }{{"strategy", string(r.Strategy)}, {"preferredHolder", r.PreferredHolder}} {
		if s.value == "" {
			continue
		}
		if err := validateName(s.field, s.value, maxNameLength); err != nil {
			return err
		}
	}
	for _, t := range []struct {
		field string
		value metav1.Time
	}{{"acquireTime", r.AcquireTime}, {"renewTime", r.RenewTime}} {
		if y := t.value.UTC().Year(); !t.value.IsZero() && (y < 1000 || y > 9999) {
			return fmt.Errorf("%s is in the year %d; a DATETIME holds 1000 to 9999", t.field, y)
		}
	}
	return nil
}

// datetime is t for a DATETIME(6) column: text, as the driver would turn a
// time.Time into the connection's time zone.
func datetime(t metav1.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format("2006-01-02 15:04:05.000000")
}

func fromMicros(t sql.NullInt64) metav1.Time {
	if !t.Valid {
		return metav1.Time{}
	}
	return metav1.NewTime(time.UnixMicro(t.Int64).UTC())
}

// rawRecord is the record's JSON with the version as one more field.
func rawRecord(record resourcelock.LeaderElectionRecord, version int64) ([]byte, error) {
	raw, err := json.Marshal(record)
	if err != nil {
		return nil, err
	}
	raw = append(raw[:len(raw)-1], `,"version":`...)
	return append(strconv.AppendInt(raw, version, 10), '}'), nil
}
