package segment

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

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

// TestTimestampsOfUnreadableRecords: a batch as it was written whose records decompress to more than is allowed counts as
// its header says, whether a timestamp or the largest is asked for. It is no damage.
func TestTimestampsOfUnreadableRecords(t *testing.T) {
	big := record.Builder{Codec: record.Zstd}
	for ts := range int64(2) {
		big.Append(record.Record{Timestamp: 1000 + ts, Value: make([]byte, record.DefaultMaxDecompressed/2)})
	}
	raw, err := big.Build()
	if err != nil {
		t.Fatal(err)
	}
	if err := record.ForEach(raw, func(record.Record) error { return nil }); !errors.Is(err, record.ErrTooLarge) {
		t.Fatal(err)
	}
	l := mustOpen(t, memOptions())
	defer closeLog(t, l)
	mustAppend(t, l, build(t, 1, 10, 10), 1)
	mustAppend(t, l, raw, 1)
	mustAppend(t, l, build(t, 1, 10, 2000), 1)
	for _, tt := range []struct{ ts, limit, start, offset, at int64 }{
		{5, 4, 0, 0, 10}, {500, 4, 0, 1, 1001}, {1001, 4, 0, 1, 1001}, {1002, 4, 0, 3, 2000}, {500, 4, 2, 2, 1001},
	} {
		l.DropBefore(tt.start)
		if o, at, ok, err := l.OffsetForTimestamp(tt.ts, tt.limit); o != tt.offset || at != tt.at || !ok || err != nil {
			t.Errorf("timestamp %d: %d at %d (%v), %v; want %d at %d", tt.ts, o, at, ok, err, tt.offset, tt.at)
		}
	}
	if o, at, ok, err := l.MaxTimestamp(3); o != 2 || at != 1001 || !ok || err != nil {
		t.Errorf("largest below 3: %d at %d (%v), %v", o, at, ok, err)
	}
}

// TestMaxTimestamp: the first record with the largest timestamp, wherever the log starts and whatever the limit is.
func TestMaxTimestamp(t *testing.T) {
	o := memOptions()
	o.SegmentBytes = 12_000
	l := mustOpen(t, o)
	defer closeLog(t, l)
	rng := rand.New(rand.NewPCG(1, 2))
	var times []int64 // by offset
	for range 80 {
		ts := []int64{rng.Int64N(40), rng.Int64N(40), rng.Int64N(40)} // many are equal
		mustAppend(t, l, build(t, 3, 200, ts...), 1)
		times = append(times, ts...)
	}
	if n := len(l.Segments()); n < 4 {
		t.Fatalf("%d segments", n)
	}
	for start := int64(0); start <= l.NextOffset(); start += 1 + start%4 {
		l.DropBefore(start)
		for limit := int64(0); limit <= l.NextOffset()+1; limit++ {
			want, at := int64(-1), int64(0)
			for o := start; o < min(limit, l.NextOffset()); o++ {
				if want < 0 || times[o] > at {
					want, at = o, times[o]
				}
			}
			offset, timestamp, ok, err := l.MaxTimestamp(limit)
			if err != nil || ok != (want >= 0) || ok && (offset != want || timestamp != at) {
				t.Fatalf("in [%d,%d): %d at %d (%v), %v; want %d at %d", start, limit, offset, timestamp, ok, err, want, at)
			}
		}
	}
}

// TestMaxTimestampReadsLittle: also while the newest batch is not yet to be seen, as beside an append, not the whole log is
// read, and not a whole segment.
func TestMaxTimestampReadsLittle(t *testing.T) {
	read := 0
	o := memOptions()
	o.FS = errorfs.Wrap(o.FS, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt {
			read++
		}
		return nil
	}))
	o.SegmentBytes = 1 << 20
	l := mustOpen(t, o)
	defer closeLog(t, l)
	for k := range 4000 {
		mustAppend(t, l, build(t, 1, 1000, int64(k)), 1)
	}
	next := l.NextOffset()
	for _, limit := range []int64{next, next - 1, l.Segments()[1].NextOffset + 1} {
		read = 0
		if offset, ts, ok, err := l.MaxTimestamp(limit); offset != limit-1 || ts != limit-1 || !ok || err != nil {
			t.Errorf("below %d: %d at %d (%v), %v", limit, offset, ts, ok, err)
		}
		if read > 4 {
			t.Errorf("below %d of %d: %d reads", limit, next, read)
		}
	}
}
