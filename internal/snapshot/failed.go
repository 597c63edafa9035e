package snapshot

import (
	"errors"
	"time"
)

// Fetched is how far a Fetch came.
type Fetched struct {
	// Received came over the network; Reused was on this node already.
	Received, Reused int64
	Took             time.Duration
}

// failedFetch is the error of a Fetch that had begun. What it fetched stays in the staging.
type failedFetch struct {
	error
	got Fetched
}

func (f *failedFetch) Unwrap() error { return f.error }

// FetchedBefore tells how far the Fetch came whose error err is, or wraps. Zero: it did not begin.
func FetchedBefore(err error) Fetched {
	if f := (*failedFetch)(nil); errors.As(err, &f) {
		return f.got
	}
	return Fetched{}
}

// Failed is err with what the Fetch that led to s had fetched: for who finds the result of no use.
func (s *Staged) Failed(err error) error {
	return &failedFetch{error: err, got: Fetched{Received: s.BytesReceived, Reused: s.BytesReused, Took: s.Took}}
}

// failed is err with what t has fetched.
func (t *transfer) failed(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return &failedFetch{error: err, got: Fetched{Received: t.received, Reused: t.reused, Took: time.Since(t.started)}}
}

// Attempt says which attempt at a transfer a pin is for, for status pages.
func (s *Server) Attempt(pin uint64, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pins[pin]; p != nil {
		p.attempts = n
	}
}
