package mysqllock

import "k8s.io/klog/v2"

// One identity, one leader: what a Lock makes of a row that names its own identity. client-go takes
// each row with its own identity for a term of its own.

// WithSameIdentityTakeover restores client-go's behaviour for a lease that is held under this
// candidate's own identity by another [Lock]: it is taken over at once. A restarted StatefulSet pod
// resumes without waiting for its own old lease. Two live processes with one identity would take
// the lease from each other with every retry; by default the second waits like any other follower.
func WithSameIdentityTakeover() Option {
	return func(o *options) error {
		o.sameIdentity = true
		return nil
	}
}

// isNamesake reports whether another Lock holds the row under this one's identity.
func (l *Lock) isNamesake(r *row) bool {
	return r.uid != l.uid && r.record.HolderIdentity == l.config.Identity
}

// mayTakeOverNamesake reports whether the row may be taken over because it is held under this
// candidate's own identity.
func (l *Lock) mayTakeOverNamesake(r *row) bool {
	return l.options.sameIdentity && l.isNamesake(r) && !r.isAsked()
}

// reportNamesake logs, once for each of them, that another candidate leads under this one's name.
func (l *Lock) reportNamesake(o *operation, r *row) {
	if o.reported == r.uid {
		return
	}
	o.reported = r.uid
	klog.FromContext(o.ctx).Error(ErrDuplicateIdentity, "Election is held under this candidate's own identity; give each process an identity of its own",
		"lock", l.Describe(), "identity", l.config.Identity)
}

// shownHolder is the holder that Get reports of r. An elector would go on at once with what it
// takes for its own term: with that of a namesake two would lead, and with one that it was asked to
// end the request would be lost.
func (l *Lock) shownHolder(o *operation, r *row) string {
	switch {
	case r.expired:
		return ""
	case l.isNamesake(r) && !l.mayTakeOverNamesake(r):
		l.reportNamesake(o, r)
		return r.record.HolderIdentity + " (another candidate, uid " + r.uid + ")"
	case r.uid == l.uid && r.isAsked() && l.term.current() == 0:
		return r.record.HolderIdentity + " (asked to step down)"
	}
	return r.record.HolderIdentity
}
