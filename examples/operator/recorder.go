package main

import (
	"sync/atomic"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"
)

// lateRecorder is the manager's recorder, for the lock that is needed to make the manager.
type lateRecorder struct {
	recorder atomic.Pointer[record.EventRecorder]
}

func (l *lateRecorder) set(r record.EventRecorder) { l.recorder.Store(&r) }

// Eventf makes it a resourcelock.EventRecorder.
func (l *lateRecorder) Eventf(obj runtime.Object, eventType, reason, message string, args ...any) {
	if r := l.recorder.Load(); r != nil {
		(*r).Eventf(obj, eventType, reason, message, args...)
	}
}
