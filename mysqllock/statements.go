package mysqllock

import (
	"encoding/hex"
	"regexp"
	"strings"
	"sync"
)

// The statements of the protocol, each with its arguments. Laid out as here they can be pasted into
// a console, once the holes are filled in; they are sent on one line.
//
// {records} and {fences} are the tables' quoted names. {session} is the condition under which a
// session may write. {name} is a string that is never empty, {text} one that may be. {observed} is
// the row as it was last seen. {server} is the server's own name. {charsets} are the session's
// character sets, where they matter. {clock} is the server's view of the row, for WithServerClock.
//
// Each statement is atomic by itself and sent with autocommit on: no transaction spans two packets,
// as a candidate that is cut off between two packets would hold its locks until the server notices,
// hours later.

// statement is what a session sends.
type statement struct {
	text string
	args []any
}

// pollSQL reads one election: one row, or none, and then sessionCheckSQL asks what the row would
// have said of the session. Times are microseconds since 1970, a form that no parseTime, loc or
// time_zone can change; strings are bytes, which no character set can change.
//
// An outer join, which would always return a row and spare the second statement, makes every poll
// 1.35 times as long on MariaDB 10.11 and 1.15 times on MySQL 9.7 (prepared; the noise was 0.02).
const pollSQL = `
SELECT ` + pollColumns + `
  FROM {records} AS r
 WHERE r.election_name = {name}`

const pollColumns = stateSQL + ` AS session, {charsets},
       COALESCE(r.version, 0), CAST(r.leader_uid AS BINARY), CAST(r.leader_name AS BINARY), r.lease_duration_seconds,
       TIMESTAMPDIFF(MICROSECOND, '1970-01-01', r.acquire_time), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', r.renew_time),
       r.leader_transitions, CAST(r.strategy AS BINARY), CAST(r.preferred_holder AS BINARY),
       r.ready, CAST(r.step_down_uid AS BINARY), {clock}`

func (s *statements) poll(election string) statement {
	return statement{s.texts.poll, []any{s.encode(election)}}
}

// insertSQL makes an election's row: one row or error 1062; error 1048 if the session may not write,
// as last_update can't be NULL. (SELECT ... FROM DUAL WHERE would do as well, but for Vitess, which
// runs the SELECT on any shard.)
const insertSQL = `
INSERT INTO {records} (leader_name, leader_uid, lease_duration_seconds, acquire_time, renew_time,
       leader_transitions, strategy, preferred_holder, ready, version, last_update, server, election_name)
VALUES ({text}, {text}, ?, ?, ?,
       ?, {text}, {text}, ?, ?, IF({session}, UTC_TIMESTAMP(6), NULL), {server}, {name})`

func (s *statements) insert(election string, r *row) statement {
	return statement{s.texts.insert, append(s.values(r), s.encode(election))}
}

// renewAskedSQL is the compare-and-swap of a renewal: one row if the row was as observed, none if
// not. Nobody else writes the Lock's own uid, and another write of its own changes the version.
// Neither holder nor uid is ever empty here, and the uid is ASCII, which spares the server what
// releaseSQL does. renewSQL also changes none if this leader was asked to step down: it is how a
// leader notices.
const (
	renewAskedSQL = `
UPDATE {records} AS r
   SET r.leader_name = {name}, r.leader_uid = {name}, ` + assignments + `
 WHERE r.election_name = {name} AND COALESCE(r.version, 0) = ? AND r.leader_uid = {name} AND {session}`

	renewSQL = renewAskedSQL + ` AND NOT (r.step_down_uid <=> r.leader_uid)`
)

func (s *statements) renew(election string, old, next *row, asked bool) statement {
	text := s.texts.renew
	if asked {
		text = s.expand(renewAskedSQL)
	}
	return statement{text, append(s.values(next), s.encode(election), old.version, s.encode(old.uid))}
}

// releaseSQL is the compare-and-swap of a release: one row or none, as above. Of two candidates
// that observed the same row only one can get it, as the first changes the version.
const releaseSQL = `
UPDATE {records} AS r
   SET ` + names + assignments + `
 WHERE r.election_name = {name} AND {observed} AND {session}`

func (s *statements) release(election string, old, next *row) statement {
	return statement{s.texts.release, append(s.values(next), s.encode(election), old.version, observedUID(old))}
}

// takeOverSQL is the compare-and-swap that begins a term. It changes both rows or none. The token
// is larger than the last one, which must still be the last one. It is the caller's and doesn't
// come back in the reply: a trigger on either table makes a server leave LAST_INSERT_ID out. The
// fence row comes first, so that a takeover that waits for a guard doesn't hold the lease row
// meanwhile.
const takeOverSQL = `
UPDATE {fences} AS f STRAIGHT_JOIN {records} AS r ON r.election_name = f.election_name
   SET f.fencing_token = ?, f.leader_uid = ?, ` + names + assignments + `,
       r.step_down_uid = IF(?, r.step_down_uid, LEFT('-', 0))
 WHERE f.election_name = {name} AND COALESCE(f.fencing_token, 0) = ? AND {observed} AND {session}`

func (s *statements) takeOver(election string, last, token int64, old, next *row) statement {
	args := append([]any{token, next.uid}, s.values(next)...)
	// A request to step down that this Lock hasn't seen stands; one that it has seen is over.
	keep := old.uid == next.uid && !old.isAsked()
	return statement{s.texts.takeOver, append(args, keep, s.encode(election), last, old.version, observedUID(old))}
}

// probeSQL reads the last fencing token, NULL if the fence row is missing, and the server's clock.
// It finds out whether a transaction guards the current term, without waiting for it: one row; none
// if the session may not write; error 1205 or 3572 if the term is guarded. Without it every retry
// of every follower would leave one more session waiting at the server.
const probeSQL = `
SELECT f.fencing_token, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) AS clock
  FROM (SELECT 1 FROM DUAL WHERE {session}) AS fit LEFT JOIN {fences} AS f ON f.election_name = {name}
   FOR UPDATE NOWAIT`

func (s *statements) probe(election string) statement {
	return statement{s.texts.probe, []any{s.encode(election)}}
}

// insertFenceSQL makes an election's fence row: one row, or error 1062, which is as good; error 1048
// if the session may not write.
const insertFenceSQL = `
INSERT INTO {fences} (election_name, fencing_token, leader_uid)
VALUES ({name}, IF({session}, 0, NULL), LEFT('-', 0))`

func (s *statements) insertFence(election string) statement {
	return statement{s.texts.insertFence, []any{s.encode(election)}}
}

// The values of a row, in the order in which values returns them.
const (
	names       = `r.leader_name = {text}, r.leader_uid = {text}, `
	assignments = `r.lease_duration_seconds = ?, r.acquire_time = ?, r.renew_time = ?,
       r.leader_transitions = ?, r.strategy = {text}, r.preferred_holder = {text}, r.ready = ?, r.version = ?,
       r.last_update = UTC_TIMESTAMP(6), r.server = {server}`
)

func (s *statements) values(r *row) []any {
	args := make([]any, 0, 15) // with room for what follows
	return append(args,
		s.encode(r.record.HolderIdentity), s.encode(r.uid),
		r.record.LeaseDurationSeconds, datetime(r.record.AcquireTime), datetime(r.record.RenewTime),
		r.record.LeaderTransitions, s.encode(string(r.record.Strategy)), s.encode(r.record.PreferredHolder), r.ready, r.version)
}

// observedSQL compares with a row that anybody may have written: a NULL counts for what it was read
// as, and the uid is bytes that no character set can change, compared as such, as the parameter may
// have another collation than the session.
const observedSQL = `COALESCE(r.version, 0) = ? AND COALESCE(HEX(r.leader_uid), LEFT('-', 0)) = CAST(` + maybeEmpty + ` AS BINARY)`

// observedUID is the second argument of {observed}, after the version.
func observedUID(old *row) string { return strings.ToUpper(hex.EncodeToString([]byte(old.uid))) }

const (
	// charsetsSQL are the session's character sets, in which strings travel.
	charsetsSQL = `CONCAT_WS(',', @@character_set_client, @@character_set_connection, @@character_set_results)`

	// unicodeSession is a writableSession that reads no string in another character set than it was
	// written in.
	unicodeSession = writableSession + ` AND @@character_set_client = 'utf8mb4' AND @@character_set_connection = 'utf8mb4'`

	// maybeEmpty is a string that stays '' where the sql_mode EMPTY_STRING_IS_NULL of MariaDB makes
	// it NULL.
	maybeEmpty = `IFNULL(?, LEFT('-', 0))`

	// hexName is a string that travels as the hexadecimal digits of its UTF-8: see unicodeEncoding.
	hexName       = `CONVERT(UNHEX(?) USING utf8mb4)`
	hexMaybeEmpty = `IFNULL(` + hexName + `, LEFT('-', 0))`

	// serverClockSQL is whether the answering server wrote the row, and how many microseconds ago.
	// Without WithServerClock noClockSQL takes its place: with it a poll takes 1.19 times as long
	// on MariaDB 10.11 and 1.13 times on MySQL 9.7 (prepared; the noise was 0.02).
	serverClockSQL = `r.server = ` + serverName + `, TIMESTAMPDIFF(MICROSECOND, r.last_update, UTC_TIMESTAMP(6))`
	noClockSQL     = `NULL, NULL`

	// serverName is what server instances differ in.
	serverName = `LEFT(CONCAT(@@hostname, ':', @@port, '#', @@server_id), 255)`
)

// encoding is how a statement's strings travel.
type encoding int

const (
	// asciiEncoding sends them as they are: every character set carries them.
	asciiEncoding encoding = iota
	// unicodeEncoding sends the hexadecimal digits of their UTF-8, in a session that must have
	// utf8mb4. A driver that puts parameters into the statement itself quotes them for ASCII and
	// UTF-8; in a session with gbk or sjis a part of such a character may swallow the backslash
	// before a quote. The session is refused, but only afterwards.
	unicodeEncoding
)

// encodingOf is the one that all these strings can have.
func encodingOf(values ...string) encoding {
	for _, value := range values {
		if !isASCII(value) {
			return unicodeEncoding
		}
	}
	return asciiEncoding
}

// statements are those for the tables of one database, in one encoding.
type statements struct {
	placement
	holes *strings.Replacer
	texts struct {
		poll, insert, renew, release, takeOver, probe, insertFence string
		guard, fence, multiWriterGuard, fenceCondition             string // see fence.go, fencecondition.go
	}
}

// placement is what the texts depend on.
type placement struct {
	database    string // "": the connection's own
	serverClock bool
	encoding    encoding
}

// expanded has the *statements of each placement: some kilobytes, which Locks share.
var expanded sync.Map

func statementsFor(p placement) *statements {
	if made, ok := expanded.Load(p); ok {
		return made.(*statements) //nolint:errcheck,forcetypeassert // nothing else is stored
	}
	s := &statements{placement: p, holes: p.holes()}
	s.texts.poll = s.expand(pollSQL)
	s.texts.insert = s.expand(insertSQL)
	s.texts.renew = s.expand(renewSQL)
	s.texts.release = s.expand(releaseSQL)
	s.texts.takeOver = s.expand(takeOverSQL)
	s.texts.probe = s.expand(probeSQL)
	s.texts.insertFence = s.expand(insertFenceSQL)
	s.texts.guard = s.expand(guardSQL)
	s.texts.fence = s.expand(fenceSQL)
	s.texts.multiWriterGuard = s.expand(multiWriterGuardSQL)
	s.texts.fenceCondition = s.expand(fenceConditionSQL)
	keepPrepared(s.texts.poll)
	keepPrepared(s.texts.renew)
	made, _ := expanded.LoadOrStore(p, s)
	return made.(*statements) //nolint:errcheck,forcetypeassert // as above
}

// holes are what the texts leave open.
func (p placement) holes() *strings.Replacer {
	clock := noClockSQL
	if p.serverClock {
		clock = serverClockSQL
	}
	charsets, session, name, text := `NULL`, writableSession, `?`, maybeEmpty
	if p.encoding == unicodeEncoding {
		charsets, session, name, text = charsetsSQL, unicodeSession, hexName, hexMaybeEmpty
	}
	return strings.NewReplacer(append(tableHoles(p.database),
		"{clock}", clock, "{charsets}", charsets, "{session}", session, "{name}", name, "{text}", text,
		"{observed}", observedSQL, "{server}", serverName)...)
}

// expand returns a text as it is sent.
func (s *statements) expand(text string) string { return s.holes.Replace(fold(text)) }

// encode is the argument of a {name} or {text}.
func (s *statements) encode(value string) string {
	if s.encoding == unicodeEncoding {
		return hex.EncodeToString([]byte(value))
	}
	return value
}

var lineBreak = regexp.MustCompile(`\s*\n\s*`)

// fold makes one line of a text.
func fold(text string) string { return strings.TrimSpace(lineBreak.ReplaceAllString(text, " ")) }
