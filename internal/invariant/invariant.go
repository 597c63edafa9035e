// Package invariant holds the checks that are always on and the named fault
// points between durable steps.
package invariant

import (
	"fmt"
	"sync/atomic"
)

// Violation is the value a broken invariant panics with.
type Violation struct{ What string }

// Error implements error.
func (v Violation) Error() string { return "invariant broken: " + v.What }

// Check panics with a Violation unless ok. The message is formatted only then,
// so keep arguments cheap: they are evaluated either way.
func Check(ok bool, format string, args ...any) {
	if !ok {
		panic(Violation{What: fmt.Sprintf(format, args...)})
	}
}

var hook atomic.Pointer[func(string)]

// Point marks one side of a durable step, by name. It does nothing unless a
// test has set a hook.
func Point(name string) {
	if h := hook.Load(); h != nil {
		(*h)(name)
	}
}

// SetPointHook makes every Point call h; nil removes it. For tests.
func SetPointHook(h func(name string)) {
	if h == nil {
		hook.Store(nil)
		return
	}
	hook.Store(&h)
}
