package mysqllock

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
)

// WithEventTarget names the object that events are recorded on, in operators usually the process's
// own Pod.
//
// Default: a reference to the election. Of the election "namespace/name" its events are in that
// namespace; of any other election they are in the namespace "default", as nothing here knows
// another. A recorder that writes to one namespace only, by its sink
// (client.CoreV1().Events("ops")) or by its account's rights, can't write them there: name the Pod,
// or another object of its namespace. What an API server takes for no name is put into one:
// "ops/my_task" is referred to as "my-task-5d8517a4" in the namespace "ops".
func WithEventTarget(obj runtime.Object) Option {
	return func(o *options) error {
		if obj == nil {
			return errors.New("WithEventTarget: the object is nil; give one, such as the process's own Pod, or leave the option out")
		}
		o.eventTarget = obj
		return nil
	}
}

// RecordEvent records an event of the elector ("became leader", "stopped leading") if the
// ResourceLockConfig has an EventRecorder. See WithEventTarget for the object that it is recorded
// on.
func (l *Lock) RecordEvent(event string) {
	l.elector.event(event)
	if event == "stopped leading" {
		l.term.end()
	}
	if l.config.EventRecorder == nil {
		return
	}
	target := l.options.eventTarget
	if target == nil {
		target = eventTarget(l.election)
	}
	l.config.EventRecorder.Eventf(target, corev1.EventTypeNormal, "LeaderElection", "%s %s", l.config.Identity, event)
}

// eventTarget is a reference to an election on which an API server takes events.
func eventTarget(election string) *corev1.ObjectReference {
	target := &corev1.ObjectReference{APIVersion: "mysqllock/v1", Kind: "Election", Name: election}
	if namespace, name, ok := strings.Cut(election, "/"); ok && name != "" && len(validation.IsDNS1123Label(namespace)) == 0 {
		target.Namespace, target.Name = namespace, name
	}
	target.Name = objectName(target.Name)
	return target
}

// maxObjectName leaves room for what a recorder appends to make the event's name: a dot and a time
// in nanoseconds, as hexadecimal digits.
const maxObjectName = validation.DNS1123SubdomainMaxLength - 1 - 16

// objectName is the name of an object for an election: its own if that is one, or else what is left
// of it, with a part of its hash, so that two elections don't become one.
func objectName(election string) string {
	if len(election) <= maxObjectName && len(validation.IsDNS1123Subdomain(election)) == 0 {
		return election
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(election))
	sum := sha256.Sum256([]byte(election))
	suffix := "-" + hex.EncodeToString(sum[:4])
	name = strings.Trim(name[:min(len(name), maxObjectName-len(suffix))], "-")
	if name == "" {
		name = "election"
	}
	return name + suffix
}
