package snapshot

import (
	"cmp"
	"slices"
	"time"

	"chronik/internal/ident"
)

// Direction of a transfer, as this node sees it.
type Direction string

// Directions.
const (
	Incoming Direction = "in"
	Outgoing Direction = "out"
)

// States of a transfer, in their order.
const (
	StateQueued       = "queued"       // waits for a slot, here or at the source
	StateManifest     = "manifest"     // fetches what the bytes are
	StateTransferring = "transferring" // hashes local bytes and fetches missing ones
	StateFinishing    = "finishing"    // syncs and renames
)

// Transfer is a live transfer, for status pages.
type Transfer struct {
	Group     ident.GroupID
	Direction Direction
	State     string
	Peer      ident.NodeID
	Pin       uint64
	Index     ident.Index
	Term      ident.Term
	// BytesDone of BytesTotal are in place; BytesReused of them were here already.
	BytesDone, BytesTotal, BytesReused int64
	// BytesReceived came over the network, From says from whom. Incoming only.
	BytesReceived int64
	From          []SourceBytes
	// Rate is bytes a second over the network, lately.
	Rate    float64
	Started time.Time
	// Attempts counts this one and the failed ones before it.
	Attempts int
}

// Left estimates the time to completion; 0 is unknown.
func (t Transfer) Left() time.Duration {
	if t.Rate <= 0 || t.BytesDone >= t.BytesTotal {
		return 0
	}
	s := float64(t.BytesTotal-t.BytesDone) / t.Rate
	if s > float64(24*365*time.Hour/time.Second) {
		return 0
	}
	return time.Duration(s * float64(time.Second))
}

func sortTransfers(ts []Transfer) {
	slices.SortFunc(ts, func(a, b Transfer) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Pin, b.Pin))
	})
}

// meter measures a rate over the last two to four seconds. Not safe for concurrent use.
type meter struct {
	start     time.Time // of the current window
	last, cur int64     // bytes of the window before, and of this
	lastFor   time.Duration
}

const meterWindow = 2 * time.Second

func (m *meter) add(now time.Time, n int64) {
	m.roll(now)
	m.cur += n
}

func (m *meter) roll(now time.Time) {
	if m.start.IsZero() {
		m.start = now
		return
	}
	passed := now.Sub(m.start)
	if passed < meterWindow {
		return
	}
	m.last, m.lastFor, m.cur, m.start = m.cur, passed, 0, now
}

func (m *meter) rate(now time.Time) float64 {
	m.roll(now)
	d := m.lastFor + now.Sub(m.start)
	if m.start.IsZero() || d <= 0 {
		return 0
	}
	return float64(m.last+m.cur) / d.Seconds()
}
