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
	"sync/atomic"
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
	// sessionCheckSQL tells what the row would have told of the session. Times are microseconds since 1970, a form that
	// no parseTime, loc or time_zone can change.
	pollSQL = pollColumns + ` FROM {records} AS r WHERE r.election_name = {name}`

	pollColumns = `SELECT ` + stateSQL + ` AS session, {charsets}, COALESCE(r.version, 0), CAST(r.leader_uid AS BINARY), CAST(r.leader_name AS BINARY), r.lease_duration_seconds,` +
		` TIMESTAMPDIFF(MICROSECOND, '1970-01-01', r.acquire_time), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', r.renew_time),` +
		` r.leader_transitions, CAST(r.strategy AS BINARY), CAST(r.preferred_holder AS BINARY), {clock}`

	// sessionCheckSQL asks the session for its state and for its database, as bytes,
	// which no character set can change.
	sessionCheckSQL = `SELECT ` + stateSQL + `, ` + charsets + `, CAST(DATABASE() AS BINARY)`

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

	// takeOverSQL is the compare-and-swap that begins a term: parameters (token,
	// uid, values of record, name, last token, observed version, observed uid).
	// It changes both rows or none. The token is the caller's, larger than the
	// last one, which must still be the last one: it doesn't come back in the
	// reply, as a trigger on either table makes a server leave LAST_INSERT_ID out.
	// The fence row comes first, so that a takeover that waits for a guard doesn't
	// hold the lease row meanwhile.
	takeOverSQL = `UPDATE {fences} AS f STRAIGHT_JOIN {records} AS r ON r.election_name = f.election_name` +
		` SET f.fencing_token = ?, f.leader_uid = ?, ` + names + assignments +
		` WHERE f.election_name = {name} AND COALESCE(f.fencing_token, 0) = ? AND {version} AND {uid} AND {session}`

	// probeSQL reads the last fencing token, NULL if the fence row is missing, and
	// the server's clock, and finds out whether a transaction guards the current
	// term, without waiting for it: parameters (name). One row; none when the
	// session may not write; error 1205 or 3572 if the term is guarded. Without it,
	// every retry of every follower would leave one more session waiting at the
	// server.
	probeSQL = `SELECT f.fencing_token, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) AS clock` +
		` FROM (SELECT 1 FROM DUAL WHERE {session}) AS fit LEFT JOIN {fences} AS f ON f.election_name = {name} FOR UPDATE NOWAIT`

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

	// unicodeSession is a writableSession that also keeps names from being read in another character set.
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
	poll, insert, renew, release, takeOver, probe, insertFence string

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
	t := l.tables.Load()
	if l.ascii && isASCII(t.database) && isASCII(string(r.Strategy)) && isASCII(r.PreferredHolder) {
		return t.forASCII
	}
	return t.forUnicode
}

// tables is where statements go to.
type tables struct {
	// database is what they name. "" is the connection's own: as long as it isn't
	// known, or for good if its name can't be part of a statement.
	database    string
	known       bool
	serverClock bool
	// forASCII are for names that any character set carries, forUnicode for
	// sessions that must have utf8mb4.
	forASCII, forUnicode *statements
}

// tablesOf are those of WithDatabase, which may be "".
func tablesOf(database string, serverClock bool) *tables {
	return &tables{
		database: database, known: database != "", serverClock: serverClock,
		forASCII:   wording{database, serverClock, false}.statements(),
		forUnicode: wording{database, serverClock, true}.statements(),
	}
}

// learn asks a session for its database, which all statements name from then on:
// one in which somebody said USE can't lead them elsewhere. In a pool of Open it
// is that of the config. p is what the session said of itself.
func (t *tables) learn(ctx context.Context, s *session) (learned *tables, p *polled, err error) {
	p, database, err := s.check(ctx)
	if err != nil {
		return nil, nil, err
	}
	if s.tracked != nil && s.tracked.database != "" {
		database = s.tracked.database
	}
	switch {
	case database == "":
		return t, p, nil // the next statement's error tells
	case !isASCII(database) && (p.charset() != "" || strings.ContainsFunc(database, isPunctuation)):
		// The statements would need utf8mb4, or the name can't be quoted so that
		// every character set understands it: see WithDatabase.
		database = ""
	}
	return (&tables{database: database, known: true}).with(t.serverClock), p, nil
}

// with are the same tables, with or without WithServerClock.
func (t *tables) with(serverClock bool) *tables {
	with := tablesOf(t.database, serverClock)
	with.known = t.known
	return with
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
	ascii    bool   // election and identity are ASCII
	// tables is where the statements go to; once the database is known, it is
	// part of them.
	tables atomic.Pointer[tables]

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
	// mariaDB is what the last poll's server was. Owned by the holder of turn.
	mariaDB bool

	mu      sync.Mutex
	token   int64           // the fencing token of the current term; 0: no term
	renewed time.Time       // when the current term's last renewal was sent
	cluster *bool           // whether guards must be writes; nil: not asked in this term
	drained bool            // WithBeforeRelease's function ended the work of this term
	working error           // that function did not end it
	lease   time.Duration   // of the last record written here that has a holder
	seen    time.Duration   // of the observed row, if it has a holder
	unfit   map[string]bool // what sessions were discarded for, and logged
	elector seenTimings
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
	l := &Lock{
		db:       db,
		election: election,
		config:   config,
		options:  o,
		uid:      hex.EncodeToString(uid),
		ascii:    isASCII(election) && isASCII(config.Identity),
		turn:     make(chan struct{}, 1),
	}
	l.tables.Store(tablesOf(o.database, o.serverClock))
	return l, nil
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
		if l.observed != nil && (r == nil || r.version < l.observed.version) && o.session.mayBeStale() {
			// Versions grow. What goes back is the snapshot of a transaction that
			// somebody left open, or a server that lost writes: then it stays so.
			if err := o.session.endTransaction(o.ctx); err != nil {
				return err
			}
			if r, err = l.read(o); err != nil {
				return err
			}
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
	var made *row // by this call
	return l.operate(ctx, "create", func(o *operation) error {
		if _, err := l.learn(o); err != nil {
			return err
		}
		if made == nil {
			var err error
			if made, err = l.insert(o, record); err != nil {
				return err
			}
		}
		if record.HolderIdentity == "" {
			return l.succeed(o, made, 0)
		}
		err := l.takeOver(o, made, record)
		var lost *lostError
		if errors.As(err, &lost) {
			return alreadyExists(l.election)
		}
		return err
	})
}

// insert makes the election's rows, that of record as released. It is then taken
// over, so that beginning a term is one statement, the same for a new election
// and an old one. A candidate that dies in between leaves an election that
// anyone can take.
func (l *Lock) insert(o *operation, record resourcelock.LeaderElectionRecord) (*row, error) {
	released := &row{record: record, version: l.newVersion(0)}
	released.record.HolderIdentity = ""
	statements := l.statements(record)
	n, err := o.session.write(o.ctx, statements.insert, append(statements.values(released), statements.text(l.election))...)
	switch {
	case number(err) == errDuplicateKey:
		return nil, alreadyExists(l.election)
	case number(err) == errRecordChanged:
		if now, readErr := l.read(o); readErr == nil && now != nil {
			return nil, alreadyExists(l.election)
		}
		return nil, err
	case err != nil:
		return nil, err
	case n != 1:
		return nil, l.refused(o, record, "the server did not insert the election's row")
	}
	return released, nil
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
// RenewDeadline (half a lease where that is not known), whose work has not ended yet
// unless WithBeforeRelease's function did that.
func (l *Lock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	l.seeUpdate(ctx, record)
	defer l.sawUpdate()
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
	token := l.currentToken()
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
	return l.goOn(o, next, token)
}

// takeOver begins a term. A row that is this Lock's own without a held token (a
// takeover whose reply was lost, an earlier run of the elector) is taken over
// like any other, with another token.
func (l *Lock) takeOver(o *operation, old *row, record resourcelock.LeaderElectionRecord) error {
	l.endTerm()
	statements := l.statements(record)
	if err := o.session.endTransaction(o.ctx); err != nil {
		return err // or the probe would leave the row locked
	}
	var last sql.NullInt64
	var clock int64
	err := o.session.queryRow(o.ctx, statements.probe, []any{statements.text(l.election)}, &last, &clock)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return l.refused(o, record, "the server did not answer with its clock")
	case number(err) == errRecordChanged:
		return l.changed(o, old, record, err)
	case isBusy(err):
		return fmt.Errorf("a transaction guards the current term, or takes over, until it ends: %w", err)
	case err != nil:
		return err
	case last.Int64 == math.MaxInt64:
		return errors.New("the election's row in election_fences has the largest fencing token there is, so that no term can begin; delete that row, once nothing compares with this token any more")
	case !last.Valid:
		if err := l.insertFence(o, record); err != nil {
			return err
		}
	}
	// Larger than the last one, which the statement compares with, and, as the
	// server's clock goes on, than those of a fence row that was lost.
	token := max(last.Int64+1, clock)

	next := &row{record: record, uid: l.uid, version: l.newVersion(old.version)}
	args := append([]any{token, l.uid}, statements.values(next)...)
	n, err := o.session.write(o.ctx, statements.takeOver, append(args, statements.text(l.election), last.Int64, old.version, hexUID(old))...)
	switch {
	case number(err) == errRecordChanged:
		return l.changed(o, old, record, err)
	case err != nil:
		return err
	case n == 0:
		return l.lost(o, old, record)
	}
	return l.succeed(o, next, token)
}

// insertFence makes the election's fence row, if it isn't there.
func (l *Lock) insertFence(o *operation, record resourcelock.LeaderElectionRecord) error {
	statements := l.statements(record)
	n, err := o.session.write(o.ctx, statements.insertFence, statements.text(l.election))
	switch number(err) {
	case errDuplicateKey, errRecordChanged:
		return nil
	}
	if err == nil && n != 1 {
		return l.refused(o, record, "the server did not insert the election's row in election_fences")
	}
	return err
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
	defer func(ctx context.Context) { o.ctx = ctx }(o.ctx)
	var cancel context.CancelFunc
	o.ctx, cancel = context.WithDeadline(o.ctx, over)
	defer cancel()
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
	n, err := o.session.write(o.ctx, statement, append(statements.values(next), statements.text(l.election), old.version, uid)...)
	switch {
	case number(err) == errRecordChanged:
		return l.changed(o, old, next.record, err)
	case err != nil:
		return err
	case n == 0:
		return l.lost(o, old, next.record)
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
func (l *Lock) lost(o *operation, old *row, record resourcelock.LeaderElectionRecord) error {
	now, err := l.read(o)
	switch {
	case isUnfit(err):
		// Nothing is lost: the session was changed after the row was observed.
		return err
	case err != nil:
		l.endTerm()
		return &lostError{cause: conflict(l.election, "the row has changed since it was observed")}
	case now == nil:
		l.endTerm()
		return &lostError{cause: notFound(l.election)}
	case now.version == old.version && now.uid == old.uid:
		return l.refused(o, record, "the election's row in election_fences was changed or deleted meanwhile")
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

// refused finds out why a statement with record's names did nothing, where
// otherwise only that would explain it.
func (l *Lock) refused(o *operation, record resourcelock.LeaderElectionRecord, otherwise string) error {
	p, _, err := o.session.check(o.ctx)
	if err != nil {
		return err
	}
	if charset := p.charset(); charset != "" && l.statements(record).hex {
		return charsetError(charset)
	}
	return errors.New(otherwise)
}

// changed tells what error 1020 means: MariaDB's SERIALIZABLE answers with it
// where the other isolation levels find that no row matches, but also when only
// a neighbour was written. The statement did nothing.
func (l *Lock) changed(o *operation, old *row, record resourcelock.LeaderElectionRecord, err error) error {
	var lost *lostError
	if found := l.lost(o, old, record); errors.As(found, &lost) {
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

// goOn is succeed for a renewal. The term that it was to renew may have ended
// meanwhile, by the event "stopped leading", and must not come back to life.
func (l *Lock) goOn(o *operation, next *row, token int64) error {
	if err := o.late(); err != nil {
		return err
	}
	if !l.extend(o.started, token) {
		return fmt.Errorf("%w: the term ended while it was being renewed", ErrNotLeader)
	}
	l.observe(next)
	return nil
}

// extend reports whether the term with that token is still held, which then
// counts as renewed.
func (l *Lock) extend(sent time.Time, token int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if token == 0 || l.token != token {
		return false
	}
	l.renewed = sent
	return true
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

// operation is one call of the elector, with the deadline that it must not
// outlive even if the caller's context has none.
type operation struct {
	ctx     context.Context
	started time.Time
	timeout time.Duration
	session session
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
	o.session = session{db: l.db, mariaDB: l.mariaDB}
	err := f(o)
	for o.session.settle(o.ctx, &err) {
		err = f(o)
	}
	l.reportUnfit(ctx, o.session.unfit)
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
	// the row's age: a restart may have changed its clock. Row and uptime are of
	// one server, as they are read by one session.
	var name string
	var uptime int64
	if err := o.session.queryRow(o.ctx, uptimeSQL, nil, &name, &uptime); err != nil {
		return nil, err
	}
	now, err := l.read(o)
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

// poll reads the row, together with other Locks' if there is a Batch.
func (l *Lock) poll(o *operation) (*row, error) {
	if b := l.options.batch; b != nil {
		return b.poll(l, o)
	}
	return l.read(o)
}

// read reads the row; nil if there is none.
func (l *Lock) read(o *operation) (*row, error) {
	asked, err := l.learn(o)
	if err != nil {
		return nil, err
	}
	statements := l.statements(resourcelock.LeaderElectionRecord{})
	var p polled
	err = o.session.queryRow(o.ctx, statements.poll, []any{statements.text(l.election)}, p.fields()...)
	if errors.Is(err, sql.ErrNoRows) {
		if asked == nil {
			asked, _, err = o.session.check(o.ctx)
		}
		if asked != nil {
			p, err = *asked, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if err := o.session.note(o.ctx, sessionState(p.state.Int64)); err != nil {
		return nil, err
	}
	l.mariaDB = o.session.mariaDB
	return p.row(l)
}

// learn asks for the tables' database, if that is not known. It returns what the
// session said of itself then.
func (l *Lock) learn(o *operation) (*polled, error) {
	t := l.tables.Load()
	if t.known {
		return nil, nil
	}
	t, p, err := t.learn(o.ctx, &o.session)
	if err == nil {
		l.tables.Store(t)
		l.mariaDB = o.session.mariaDB
	}
	return p, err
}

// polled is what pollSQL returns.
type polled struct {
	state                     sql.NullInt64
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
		&p.state, &p.charsets, &p.version, &p.uid, &p.holder, &p.lease, &p.acquired, &p.renewed, &p.transitions,
		&p.strategy, &p.preferredHolder, &p.sameServer, &p.age,
	}
}

// charset is the first of the session's character sets that isn't utf8mb4.
func (p *polled) charset() string {
	for charset := range strings.SplitSeq(p.charsets.String, ",") {
		if charset != "utf8mb4" {
			return charset
		}
	}
	return ""
}

// row is what was read for l; nil if the election has none.
func (p *polled) row(l *Lock) (*row, error) {
	if !l.ascii || !isASCII(l.tables.Load().database) {
		if charset := p.charset(); charset != "" {
			return nil, charsetError(charset)
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
	if err := l.checkTimings(r); err != nil {
		return err
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
