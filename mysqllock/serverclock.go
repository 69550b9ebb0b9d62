package mysqllock

import (
	"time"

	"k8s.io/klog/v2"
)

// WithServerClock lets a candidate take over a lease that the server's own clock calls expired
// without watching it for a whole LeaseDuration first, so that a cold start takes a few retries.
//
// It counts only for another candidate's lease, only when the row has not changed between two looks
// so far apart that a live leader would have renewed in between (two retry periods as [WithTimings]
// says, else a third of the stored lease), only when the server that answers is the one that wrote
// the row and has not restarted since (another server's clock may be ahead), and only when the
// lease has been over for a tenth of its duration, at least 0.5 s. Otherwise the lock goes by what
// client-go observes, as without this option. So it does, and logs that once, behind Vitess, where any
// shard's server tells an uptime, and where the server does not say what it is.
//
// Don't use it with binlog_format=STATEMENT: a replica would put its own name where the primary's
// belongs.
func WithServerClock() Option {
	return func(o *options) error {
		o.serverClock = true
		return nil
	}
}

// uptimeSQL is for how many seconds the server has been up.
const uptimeSQL = `SHOW GLOBAL STATUS LIKE 'Uptime'`

// sighting is the row's last state (version, uid) and when this Lock first saw it in that state.
type sighting struct {
	version int64
	uid     string
	at      time.Time
}

// expire finds out whether r is the lease of a candidate that is gone, by the rules of
// WithServerClock, and returns the row as last read. A live leader is never found gone: it would
// have renewed between the two looks.
func (l *Lock) expire(o *operation, r *row) (*row, error) {
	if o.sighting.version != r.version || o.sighting.uid != r.uid {
		o.sighting = sighting{r.version, r.uid, time.Now()}
		return r, nil
	}
	lease := r.leaseDuration()
	isOver := func(r *row) bool {
		return r.isHeld() && r.uid != l.uid && r.sameServer && r.age > lease+max(lease/10, 500*time.Millisecond)
	}
	if o.started.Sub(o.sighting.at) < l.twoRetries(r) || !isOver(r) {
		return r, nil
	}
	if o.engine == unknownEngine {
		var err error
		if o.engine, err = o.session.askEngine(o.ctx); err != nil {
			return nil, err
		}
	}
	if !o.engine.hasOneClock() {
		if !o.clockless {
			o.clockless = true
			klog.FromContext(o.ctx).Info("WithServerClock has no effect here: it is not known that uptime and clock are of one server",
				"lock", l.Describe(), "engine", o.engine.String())
		}
		return r, nil
	}
	// Only a server that has been up since before the row was written can know the row's age: a
	// restart may have changed its clock. Row and uptime are of one server, as they are read by one
	// session.
	var name string
	var uptime int64
	if err := o.session.queryRow(o.ctx, statement{text: uptimeSQL}, &name, &uptime); err != nil {
		return nil, err
	}
	now, err := l.read(o)
	if err != nil || now == nil || now.version != r.version || now.uid != r.uid {
		return r, err // changed just now: the next poll will show it
	}
	now.expired = isOver(now) && time.Duration(uptime)*time.Second > now.age+time.Second
	return now, nil
}
