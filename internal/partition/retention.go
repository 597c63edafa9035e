package partition

import (
	"context"
	"encoding/binary"
	"time"

	"chronik/internal/raftgroup"
	"chronik/internal/segment"
)

// Retention says how much of a log is kept: retention.ms and retention.bytes.
// Negative: no bound.
type Retention struct {
	Ms    int64
	Bytes int64
}

// Retain has the segments that retention no longer wants dropped in all
// replicas: only a serving leader proposes it, apply does it (correctness rules 1
// and invariant 9). It returns at once; proposed tells whether there was anything
// to drop. Segments without timestamps do not age.
func (p *Partition) Retain(now time.Time, r Retention) (start int64, proposed bool) {
	if ok, _ := p.Leader(); !ok {
		return p.LogStartOffset(), false
	}
	v := p.sm.view.Load()
	start = retained(v.log.Segments(), r, now.UnixMilli())
	if start <= v.start {
		return v.start, false
	}
	p.propose(context.Background(), KindLogStart, binary.BigEndian.AppendUint64(nil, uint64(start)), func(raftgroup.Result, error) {})
	return start, true
}

// retained returns the offset behind the segments to drop, oldest first; 0 if
// there are none. A segment goes when its newest record is too old, or when the
// log is large enough without it.
func retained(segments []segment.Info, r Retention, now int64) (start int64) {
	var size int64
	for _, s := range segments {
		size += s.Size
	}
	for _, s := range segments {
		old := r.Ms >= 0 && s.MaxTimestamp >= 0 && now-s.MaxTimestamp > r.Ms
		if surplus := r.Bytes >= 0 && size-s.Size >= r.Bytes; !old && !surplus {
			break
		}
		size -= s.Size
		start = s.NextOffset
	}
	return start
}

// Stats is a partition in numbers. Counters are since the process started.
type Stats struct {
	LogStartOffset int64
	HighWatermark  int64
	Bytes          int64
	Segments       int
	Producers      int

	// Applied on this replica, replay after a start included.
	Batches, Records, AppendedBytes    uint64
	Duplicates, OutOfOrder, StaleEpoch uint64
}

// Stats returns the numbers of now.
func (p *Partition) Stats() Stats {
	v, c := p.sm.view.Load(), &p.sm.stats
	return Stats{
		LogStartOffset: v.start, HighWatermark: v.next, Bytes: v.log.Size(), Segments: len(v.log.Segments()), Producers: v.producers,
		Batches: c.batches.Load(), Records: c.records.Load(), AppendedBytes: c.bytes.Load(),
		Duplicates: c.duplicates.Load(), OutOfOrder: c.outOfOrder.Load(), StaleEpoch: c.staleEpoch.Load(),
	}
}
