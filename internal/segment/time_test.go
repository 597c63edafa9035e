package segment

import (
	"math"
	"testing"

	"chronik/internal/record"
)

// TestOffsetForTimestamp looks up timestamps that jump about, over several index
// entries and segments.
func TestOffsetForTimestamp(t *testing.T) {
	o := memOptions()
	o.SegmentBytes = 30_000
	l := mustOpen(t, o)
	defer closeLog(t, l)
	var times []int64 // by offset
	for k := range 60 {
		ts := []int64{int64(1000 - k), int64(500 + 20*k), int64(k)}
		mustAppend(t, l, build(t, 3, 400, ts...), 1)
		times = append(times, ts...)
	}
	if n := len(l.Segments()); n < 3 {
		t.Fatalf("%d segments", n)
	}
	next := l.NextOffset()
	for _, limit := range []int64{0, 1, 2, 50, 100, next, math.MaxInt64} {
		for ts := int64(-1); ts < 1800; ts++ {
			want := int64(-1)
			for o, at := range times[:min(limit, next)] {
				if at >= ts {
					want = int64(o)
					break
				}
			}
			offset, timestamp, ok, err := l.OffsetForTimestamp(ts, limit)
			if err != nil {
				t.Fatal(err)
			}
			if ok != (want >= 0) || (ok && (offset != want || timestamp != times[want])) {
				t.Fatalf("timestamp %d below %d: %d at %d (%v), want %d", ts, limit, offset, timestamp, ok, want)
			}
		}
	}
}

// TestTimestampOfLogAppendTime: every record of such a batch has the batch's time.
func TestTimestampOfLogAppendTime(t *testing.T) {
	l := mustOpen(t, memOptions())
	defer closeLog(t, l)
	b := build(t, 3, 10, 1, 2, 3)
	record.SetLogAppendTime(b, 777)
	mustAppend(t, l, b, 1)
	mustAppend(t, l, b, 1)
	if offset, ts, ok, err := l.OffsetForTimestamp(5, 100); offset != 0 || ts != 777 || !ok || err != nil {
		t.Fatal(offset, ts, ok, err)
	}
	l.DropBefore(2) // inside the first batch
	if offset, ts, ok, err := l.MaxTimestamp(100); offset != 2 || ts != 777 || !ok || err != nil {
		t.Fatal(offset, ts, ok, err)
	}
}
