// Package check judges what clients saw of a cluster. It knows nothing of how the
// cluster works: it takes histories and names what a sound cluster cannot have done.
//
//	Partition   records lost, twice, out of order, or at another offset than was said
//	Seen        an offset that held one record and then another
//	Replicas    replicas that differ
//	Offsets     committed offsets of a group that went back
//	Metadata    calls that no order explains (porcupine)
//
// Each is seen to find its faults in tests of this package: a checker that finds nothing
// proves nothing by itself.
package check

import "fmt"

// Kind is a class of violations.
type Kind string

// The violations.
const (
	Lost         Kind = "lost"        // an acknowledged record is not there
	Duplicate    Kind = "duplicate"   // a record of an idempotent producer is there twice
	Reordered    Kind = "reordered"   // a record stands before one that was sent earlier
	Divergent    Kind = "divergent"   // an offset has two records, or a record that nobody sent
	Backward     Kind = "backward"    // a committed offset went back
	Unexplained  Kind = "unexplained" // no order of the calls explains the answers
	NotAvailable Kind = "unavailable" // producers were not served in time
	Trouble      Kind = "trouble"     // a node said or did what a sound one does not
)

// Violation is something that a sound cluster cannot have done.
type Violation struct {
	Kind  Kind
	Place string // a partition, a group, a topic
	What  string
}

// String implements fmt.Stringer.
func (v Violation) String() string { return fmt.Sprintf("%s: %s: %s", v.Kind, v.Place, v.What) }

// maxEach bounds how many violations of one history are told.
const maxEach = 20

// report collects violations.
type report struct {
	place string
	found []Violation
	more  int
}

func (r *report) add(kind Kind, format string, args ...any) {
	if len(r.found) >= maxEach {
		r.more++
		return
	}
	r.found = append(r.found, Violation{kind, r.place, fmt.Sprintf(format, args...)})
}

func (r *report) done() []Violation {
	if r.more > 0 {
		last := &r.found[len(r.found)-1]
		last.What += fmt.Sprintf(" (and %d more)", r.more)
	}
	return r.found
}
