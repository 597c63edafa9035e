package segment

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"chronik/internal/record"
	"chronik/internal/vfs"
)

// model is a log as a slice of batches, and the checkpoint a crash goes back to.
type model struct {
	batches [][]byte
	heads   []record.Batch
	start   int64

	opts Options // of the last checkpoint
	ckpt int     // batches in it
	// drops are the drops after the checkpoint: after how many batches, to where.
	drops []struct {
		at     int
		offset int64
	}
}

func (m *model) next() int64 {
	if len(m.heads) == 0 {
		return 0
	}
	return m.heads[len(m.heads)-1].NextOffset()
}

func (m *model) drop(to int64) {
	if to > m.start {
		m.start = to
		m.drops = append(m.drops, struct {
			at     int
			offset int64
		}{len(m.batches), to})
	}
}

func (m *model) add(b []byte) {
	h, _ := record.Header(b)
	m.batches, m.heads = append(m.batches, b), append(m.heads, h)
}

// TestModel drives a log with random appends, reads, look-ups, drops, checkpoints,
// crashes and reopens, beside the model.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		handles := NewHandles(rapid.IntRange(1, 3).Draw(t, "handles"))
		m := &model{opts: Options{
			FS: vfs.NewCrashableMem(), Dir: "data/p",
			SegmentBytes: rapid.SampledFrom([]int64{3000, 25_000}).Draw(t, "segment bytes"), SegmentMs: 2000, Handles: handles,
		}}
		l := mustOpen(t, m.opts)
		m.opts = checkpoint(t, l, m.opts)
		now := int64(1000)
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) { now = m.append(t, l, now) },
			"read":   func(t *rapid.T) { m.read(t, l) },
			"time":   func(t *rapid.T) { m.time(t, l, now) },
			"drop": func(t *rapid.T) {
				to := rapid.Int64Range(0, m.next()).Draw(t, "to")
				l.DropBefore(to)
				m.drop(to)
			},
			"checkpoint": func(t *rapid.T) {
				m.opts, m.ckpt, m.drops = checkpoint(t, l, m.opts), len(m.batches), nil
			},
			"crash": func(t *rapid.T) {
				cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: rapid.SampledFrom([]int{0, 50, 100}).Draw(t, "unsynced"), RNG: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))}
				m.opts.FS = m.opts.FS.(*vfs.MemFS).CrashClone(cfg)
				l = m.reopen(t, l)
			},
			"reopen": func(t *rapid.T) { l = m.reopen(t, l) },
			"": func(t *rapid.T) {
				if l.NextOffset() != m.next() || l.StartOffset() != m.start {
					t.Fatalf("log [%d,%d), model [%d,%d)", l.StartOffset(), l.NextOffset(), m.start, m.next())
				}
				if n := handles.Len(); n > 3 {
					t.Fatalf("%d files open", n)
				}
			},
		})
		want := bytes.Join(m.batches[m.first(m.start):], nil)
		if got := all(t, l); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, want %d", len(got), len(want))
		}
		if err := l.Verify(t.Context(), nil); err != nil {
			t.Fatalf("verify: %v", err)
		}
	})
}

// append stages batches and changes of the start, and writes or discards them.
func (m *model) append(t *rapid.T, l *Log, now int64) int64 {
	batches, start, drops := len(m.batches), m.start, len(m.drops)
	for range rapid.IntRange(1, 12).Draw(t, "batches") {
		if rapid.IntRange(0, 15).Draw(t, "drop") == 0 {
			to := m.next() - rapid.SampledFrom([]int64{0, 0, 1, 9}).Draw(t, "short of the end")
			l.StageStart(max(to, 0))
			m.drop(to)
		}
		now += rapid.Int64Range(-100, 200).Draw(t, "step")
		ts := rapid.SliceOfN(rapid.Int64Range(now-50, now+50), 1, 4).Draw(t, "ts")
		b := build(t, len(ts), rapid.IntRange(0, 1200).Draw(t, "pad"), ts...)
		before, next := bytes.Clone(b), m.next()
		base := l.Stage(b, 7)
		if !bytes.Equal(b, before) {
			t.Fatalf("Stage changed its argument")
		}
		if base != next || l.StagedOffset() != next+int64(len(ts)) {
			t.Fatalf("staged at %d, want %d", base, next)
		}
		m.add(stamped(b, base, 7))
	}
	if rapid.IntRange(0, 9).Draw(t, "discard") == 0 {
		l.Discard()
		m.batches, m.heads = m.batches[:batches], m.heads[:batches]
		m.start, m.drops = start, m.drops[:drops]
		return now
	}
	if err := l.Flush(); err != nil {
		t.Fatalf("flush: %v", err)
	}
	return now
}

// first is the place of the batch that holds offset.
func (m *model) first(offset int64) int {
	for k, h := range m.heads {
		if h.NextOffset() > offset {
			return k
		}
	}
	return len(m.heads)
}

// reopen goes back to the checkpoint and applies again what followed: the
// segments must come out at the same offsets.
func (m *model) reopen(t *rapid.T, l *Log) *Log {
	t.Helper()
	before := l.Segments()
	if err := l.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	l = mustOpen(t, m.opts)
	drops := m.drops
	for k := m.ckpt; ; k++ {
		for len(drops) > 0 && drops[0].at == k {
			l.DropBefore(drops[0].offset)
			drops = drops[1:]
		}
		if k == len(m.batches) {
			break
		}
		if base := mustAppend(t, l, m.batches[k], 7); base != m.heads[k].BaseOffset() {
			t.Fatalf("replayed at %d, was at %d", base, m.heads[k].BaseOffset())
		}
	}
	after := l.Segments()
	if len(before) != len(after) {
		t.Fatalf("segments %v, before the crash %v", after, before)
	}
	for k := range after {
		if before[k] != after[k] {
			t.Fatalf("segments %v, before the crash %v", after, before)
		}
	}
	return l
}

func (m *model) read(t *rapid.T, l *Log) {
	from := rapid.Int64Range(m.start, m.next()).Draw(t, "from")
	maxBytes := rapid.IntRange(0, 9000).Draw(t, "max")
	limit := rapid.Int64Range(from, m.next()).Draw(t, "limit")
	got, err := l.Read(from, maxBytes, limit)
	if err != nil {
		t.Fatalf("read %d: %v", from, err)
	}
	starts := make(map[int64]bool)
	for _, i := range l.Segments() {
		starts[i.BaseOffset] = true
	}
	var want []byte
	for k := m.first(from); k < len(m.batches); k++ {
		b, h := m.batches[k], m.heads[k]
		if h.NextOffset() > limit || (len(want) > 0 && (len(want)+len(b) > maxBytes || starts[h.BaseOffset()])) {
			break
		}
		want = append(want, b...)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("read %d max %d limit %d: %d bytes, want %d", from, maxBytes, limit, len(got), len(want))
	}
}

func (m *model) time(t *rapid.T, l *Log, now int64) {
	limit := rapid.Int64Range(m.start, m.next()).Draw(t, "limit")
	ts := rapid.Int64Range(max(now-2000, 0), now+100).Draw(t, "ts")
	if n := len(m.heads); n > 0 && rapid.Bool().Draw(t, "a batch's own") {
		ts = m.heads[rapid.IntRange(0, n-1).Draw(t, "batch")].MaxTimestamp()
	}
	wantOffset, wantTime, found := int64(0), int64(0), false
	maxOffset, maxTime, some := int64(0), int64(math.MinInt64), false
	for k := range m.batches {
		err := m.heads[k].ForEach(func(r record.Record) error {
			if r.Offset < m.start || r.Offset >= limit {
				return nil
			}
			if !found && r.Timestamp >= ts {
				wantOffset, wantTime, found = r.Offset, r.Timestamp, true
			}
			if r.Timestamp > maxTime {
				maxOffset, maxTime, some = r.Offset, r.Timestamp, true
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%v", err)
		}
	}
	offset, timestamp, ok, err := l.OffsetForTimestamp(ts, limit)
	if err != nil || ok != found || offset != wantOffset || timestamp != wantTime {
		t.Fatalf("timestamp %d: %d %d %v %v, want %d %d %v", ts, offset, timestamp, ok, err, wantOffset, wantTime, found)
	}
	offset, timestamp, ok, err = l.MaxTimestamp(limit)
	if err != nil || ok != some || (ok && (offset != maxOffset || timestamp != maxTime)) {
		t.Fatalf("max timestamp: %d %d %v %v, want %d %d %v", offset, timestamp, ok, err, maxOffset, maxTime, some)
	}
}
