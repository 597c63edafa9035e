package snapshot

import (
	"sort"
	"time"

	"chronik/internal/ident"
)

// Thresholds say when a replica is due for a checkpoint. A zero field is off.
type Thresholds struct {
	Entries  uint64
	Bytes    int64
	Interval time.Duration
}

// Since is what happened after a replica's last checkpoint.
type Since struct {
	Entries uint64 // applied index less the checkpoint's index
	Bytes   int64  // of those entries
	Elapsed time.Duration
}

// Reason says why a checkpoint is due.
type Reason string

// Reasons for a checkpoint. NotDue is the zero value.
const (
	NotDue      Reason = ""
	DueEntries  Reason = "entries"
	DueBytes    Reason = "bytes"
	DueInterval Reason = "interval"
)

// Due says whether a checkpoint is due. Without applied entries it never is:
// the last one still says everything.
func (t Thresholds) Due(s Since) Reason {
	switch {
	case s.Entries == 0:
		return NotDue
	case t.Entries > 0 && s.Entries >= t.Entries:
		return DueEntries
	case t.Bytes > 0 && s.Bytes >= t.Bytes:
		return DueBytes
	case t.Interval > 0 && s.Elapsed >= t.Interval:
		return DueInterval
	default:
		return NotDue
	}
}

// Jitter moves an interval by up to a tenth either way, always the same for
// the same key (a replica id), so that replicas born together do not
// checkpoint together.
func Jitter(interval time.Duration, key uint64) time.Duration {
	const steps = 1 << 10
	key = (key ^ key>>32) * 0x9e3779b97f4a7c15 // the golden ratio's bits spread neighbours
	step := int64(key>>54) - steps/2
	return interval + time.Duration(int64(interval)/10/(steps/2)*step)
}

// KeepEntries is the default of snapshot.keep_entries: a tenth of the threshold, at most 5,000.
func KeepEntries(thresholdEntries uint64) uint64 { return min(thresholdEntries/10, 5000) }

// KeepBytes bounds the kept entries by their size.
const KeepBytes = 16 << 20

// Follower is a replica as its leader sees it.
type Follower struct {
	// Alive says that the follower's node has its stream up (correctness rule 28).
	Alive bool
	Match ident.Index
}

// TrimInput is what TrimTo decides by.
type TrimInput struct {
	// Snapshot is the last durable checkpoint's index; Applied is the index raft
	// was told is applied (rule 10). First is the log's first index.
	Snapshot, Applied, First ident.Index
	// KeepEntries and KeepBytes are kept, counted back from Snapshot. The smaller wins.
	KeepEntries uint64
	KeepBytes   int64
	// Yield: entries up to it are not kept. 0: none.
	Yield ident.Index
	// Followers are the other replicas; empty on a follower.
	Followers []Follower
	// HoldBytes is how much log an alive follower that lags may hold in all.
	HoldBytes int64
	// Pinned are the indexes of live pins (Server.Live).
	Pinned []ident.Index
	// Bytes is the size of the entries in (after, to]; it grows as after falls.
	Bytes func(after, to ident.Index) int64
}

// TrimTo is the highest index whose entry may be trimmed: entries <= it are not
// needed. First-1 means nothing. It is never above min(Snapshot, Applied).
func TrimTo(in TrimInput) ident.Index {
	none := max(in.First, 1) - 1
	top := min(in.Snapshot, in.Applied)
	if top <= none {
		return none
	}
	to := max(keepFrom(in, none), min(in.Yield, in.Snapshot), none)
	to = min(to, top)
	limit := to
	for _, f := range in.Followers {
		// Holding a follower whose next entry is gone already helps nobody.
		if !f.Alive || f.Match >= limit || f.Match < none {
			continue
		}
		if in.Bytes == nil || in.Bytes(f.Match, limit) <= in.HoldBytes {
			to = min(to, f.Match)
		}
	}
	for _, at := range in.Pinned {
		if at >= none { // else what it held is gone, and so it holds nothing
			to = min(to, at)
		}
	}
	return to
}

// keepFrom is Snapshot less what is kept behind it.
func keepFrom(in TrimInput, none ident.Index) ident.Index {
	to := none
	if uint64(in.Snapshot) > in.KeepEntries {
		to = max(to, in.Snapshot-ident.Index(in.KeepEntries))
	}
	if in.Bytes == nil || in.KeepBytes <= 0 || in.Bytes(to, in.Snapshot) <= in.KeepBytes {
		return to
	}
	// The lowest index from which the kept entries fit.
	n := sort.Search(int(in.Snapshot-to), func(i int) bool {
		return in.Bytes(to+ident.Index(i), in.Snapshot) <= in.KeepBytes
	})
	return to + ident.Index(n)
}
