package mysqllock

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// row is one row of election_records.
type row struct {
	record  resourcelock.LeaderElectionRecord
	uid     string
	version int64
	ready   bool // the leader can do its work, as far as it knows
	// stepDownUID is the uid of the leader that was asked to step down.
	stepDownUID string

	// With WithServerClock: whether the answering server wrote the row, how long ago, and whether
	// expire found that its lease is over.
	sameServer bool
	age        time.Duration
	expired    bool
}

// isHeld reports whether the row names a leader that is not known to be gone.
func (r *row) isHeld() bool { return r.record.HolderIdentity != "" && !r.expired }

// isAsked reports whether the leader that the row names was asked to step down.
func (r *row) isAsked() bool { return r.uid != "" && r.stepDownUID == r.uid }

// leaseDuration is the one that the row's holder wrote.
func (r *row) leaseDuration() time.Duration {
	return time.Duration(r.record.LeaseDurationSeconds) * time.Second
}

// holder is the row's holder in words.
func (r *row) holder() string {
	if r.record.HolderIdentity == "" {
		return "nobody"
	}
	return strconv.Quote(r.record.HolderIdentity)
}

// raw is the bytes of Get: record's JSON with the row's version as one more field. Every renewal
// changes them, also two within one second, and client-go's followers take nothing else for a sign
// of life.
func (r *row) raw(record resourcelock.LeaderElectionRecord) ([]byte, error) {
	raw, err := json.Marshal(record)
	if err != nil {
		return nil, err
	}
	raw = append(raw[:len(raw)-1], `,"version":`...)
	return append(strconv.AppendInt(raw, r.version, 10), '}'), nil
}

// poll reads the row for Get, together with other Locks' if there is a Batch; nil if there is none.
func (l *Lock) poll(o *operation) (r *row, err error) {
	if b := l.options.batch; b != nil {
		r, err = b.poll(l, o)
	} else {
		r, err = l.read(o)
	}
	if err != nil || o.observed == nil || r != nil && r.version >= o.observed.version || !o.session.mayBeStale() {
		return r, err
	}
	// Versions grow. What goes back is the snapshot of a transaction that somebody left open, or a
	// server that lost writes: then it stays so.
	if err := o.session.endTransaction(o.ctx); err != nil {
		return nil, err
	}
	return l.read(o)
}

// read reads the row; nil if there is none.
func (l *Lock) read(o *operation) (*row, error) {
	asked, err := l.learn(o)
	if err != nil {
		return nil, err
	}
	s := l.statements(resourcelock.LeaderElectionRecord{})
	var p polled
	err = o.session.queryRow(o.ctx, s.poll(l.election), p.fields()...)
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
	o.mariaDB = o.session.mariaDB
	return p.row(s.encoding)
}

// statements are those that may carry r's strings.
func (l *Lock) statements(r resourcelock.LeaderElectionRecord) *statements {
	return l.tables.Load().in(max(l.encoding, encodingOf(string(r.Strategy), r.PreferredHolder)))
}

// observe makes r the row that the elector has seen.
func (l *Lock) observe(o *operation, r *row) {
	o.observed = r
	if r.isHeld() && r.uid != l.uid {
		o.standsDownUntil = time.Time{} // another one leads
	}
	followed := time.Duration(0)
	if r.isHeld() {
		followed = r.leaseDuration()
	}
	l.followedLease.Store(int64(followed))
}

// next is the row that takes the place of old while this Lock holds the election.
func (l *Lock) next(o *operation, old *row, record resourcelock.LeaderElectionRecord) *row {
	return &row{record: record, uid: l.uid, version: o.newVersion(old.version), ready: o.unready == nil}
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
	ready                     sql.NullBool
	stepDownUID               sql.NullString
	sameServer                sql.NullBool
	age                       sql.NullInt64
}

// fields are in the order of pollColumns.
func (p *polled) fields() []any {
	return []any{
		&p.state, &p.charsets, &p.version, &p.uid, &p.holder, &p.lease, &p.acquired, &p.renewed, &p.transitions,
		&p.strategy, &p.preferredHolder, &p.ready, &p.stepDownUID, &p.sameServer, &p.age,
	}
}

// charset is the first of the session's character sets that isn't utf8mb4; "" if there is none.
func (p *polled) charset() string {
	for charset := range strings.SplitSeq(p.charsets.String, ",") {
		if charset != "utf8mb4" {
			return charset
		}
	}
	return ""
}

// row is what was read by a statement of that encoding; nil if the election has no row.
func (p *polled) row(e encoding) (*row, error) {
	if charset := p.charset(); charset != "" && e == unicodeEncoding {
		return nil, charsetError(charset)
	}
	if !p.version.Valid {
		return nil, nil
	}
	if p.version.Int64 == math.MaxInt64 {
		return nil, errors.New("the row's version is the largest there is, so that it can't be renewed; delete the row")
	}
	return &row{
		uid:         p.uid.String,
		version:     p.version.Int64,
		ready:       p.ready.Bool || !p.ready.Valid,
		stepDownUID: p.stepDownUID.String,
		sameServer:  p.sameServer.Bool,
		age:         duration(p.age.Int64, time.Microsecond),
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

// storable is n, or what is next to it in the column. The elector makes it from the row, by adding
// one, so that a row with a number at its limit would elect nobody any more if it were refused.
func storable(transitions int) int {
	return min(max(transitions, 0), math.MaxInt32)
}

// datetime is t for a DATETIME(6) column: text, as the driver would turn a time.Time into the
// connection's time zone.
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

// duration is n units; the longest there is (292 years) where that overflows, as with a row from
// the year 1000.
func duration(n int64, unit time.Duration) time.Duration {
	switch limit := math.MaxInt64 / int64(unit); {
	case n > limit:
		return math.MaxInt64
	case n < -limit:
		return math.MinInt64
	}
	return time.Duration(n) * unit
}
