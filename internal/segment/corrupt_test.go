package segment

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"chronik/internal/record"
	"chronik/internal/vfs"
)

func newScanned(b []byte) record.Batch {
	h, err := record.Header(b)
	if err != nil {
		panic(err)
	}
	return h
}

// filled is a checkpointed log of several segments with many small batches.
func filled(t testing.TB) Options {
	t.Helper()
	o := memOptions()
	o.SegmentBytes = 40_000
	l := mustOpen(t, o)
	for k := range 600 {
		mustAppend(t, l, build(t, 1+k%3, 50, int64(k*10), int64(k*10+5)), 1)
	}
	o = checkpoint(t, l, o)
	if len(o.Segments) < 3 {
		t.Fatalf("%d segments", len(o.Segments))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return o
}

func patch(t testing.TB, o Options, name string, at int64, data []byte) {
	t.Helper()
	f, err := o.FS.OpenReadWrite(o.FS.PathJoin(o.Dir, name), vfs.CategorySegment)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
}

func replace(t testing.TB, o Options, name string, data []byte) {
	t.Helper()
	path := o.FS.PathJoin(o.Dir, name)
	if err := vfs.WriteFileSync(o.FS, path, data, vfs.CategorySegment); err != nil {
		t.Fatal(err)
	}
}

func content(t testing.TB, o Options, name string) []byte {
	t.Helper()
	b, err := vfs.ReadFile(o.FS, o.FS.PathJoin(o.Dir, name), math.MaxInt32)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestOpenCorrupt: Open names the file and the byte, and removes nothing.
func TestOpenCorrupt(t *testing.T) {
	tests := []struct {
		name   string
		damage func(t *testing.T, o *Options)
		file   int // which segment is named; -1 the checkpoint
		want   string
	}{
		{"short sealed file", func(t *testing.T, o *Options) {
			n := o.Segments[0].Name()
			replace(t, *o, n, content(t, *o, n)[:1234])
		}, 0, "byte 1234"},
		{"missing file", func(t *testing.T, o *Options) {
			if err := o.FS.Remove(o.FS.PathJoin(o.Dir, o.Segments[1].Name())); err != nil {
				t.Fatal(err)
			}
		}, 1, "byte 0"},
		{"short active file", func(t *testing.T, o *Options) {
			last := o.Segments[len(o.Segments)-1]
			replace(t, *o, last.Name(), content(t, *o, last.Name())[:last.Size-1])
		}, 99, "file ends"},
		{"flipped bit in the last batch", func(t *testing.T, o *Options) {
			last := o.Segments[len(o.Segments)-1]
			patch(t, *o, last.Name(), last.Size-1, []byte{0xee})
		}, 99, "CRC"},
		{"other bytes at the end", func(t *testing.T, o *Options) {
			last := o.Segments[len(o.Segments)-1]
			patch(t, *o, last.Name(), last.Size-300, make([]byte, 300))
		}, 99, "byte"},
		{"length not at a batch's end", func(t *testing.T, o *Options) {
			o.Segments[len(o.Segments)-1].Size -= 3
		}, 99, "batch of"},
		{"offset of the end wrong", func(t *testing.T, o *Options) {
			o.Segments[len(o.Segments)-1].NextOffset++
			o.NextOffset++
		}, 99, "ends at offset"},
		{"gap between segments", func(t *testing.T, o *Options) {
			o.Segments = append(o.Segments[:1:1], o.Segments[2:]...)
		}, -1, "no segment for offset"},
		{"start beyond the end", func(t *testing.T, o *Options) { o.StartOffset = o.NextOffset + 1 }, -1, "start offset"},
		{"end elsewhere", func(t *testing.T, o *Options) { o.NextOffset++ }, -1, "next offset"},
		{"empty segment", func(t *testing.T, o *Options) { o.Segments[0].Size = 0 }, -1, "segment"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := filled(t)
			o.Segments = append([]Info(nil), o.Segments...)
			tt.damage(t, &o)
			before, _ := vfs.List(o.FS, o.Dir)
			_, err := Open(o)
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if tt.file >= 0 {
				name := o.Segments[min(tt.file, len(o.Segments)-1)].Name()
				if !strings.Contains(err.Error(), name) {
					t.Fatalf("%v does not name %s", err, name)
				}
			}
			if after, _ := vfs.List(o.FS, o.Dir); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Fatalf("files %v, before %v", after, before)
			}
		})
	}
}

// TestReadCorrupt: a flipped bit in the middle is found by the read that meets
// it and by Verify, and by no other read.
func TestReadCorrupt(t *testing.T) {
	o := filled(t)
	s := o.Segments[1]
	raw := content(t, o, s.Name())
	patch(t, o, s.Name(), 20_000, []byte{raw[20_000] ^ 1})
	l := mustOpen(t, o)
	defer closeLog(t, l)
	bad := 0
	for from := s.BaseOffset; from < s.NextOffset; from++ {
		b, err := l.Read(from, 1, math.MaxInt64)
		switch {
		case errors.Is(err, ErrCorrupt) && strings.Contains(err.Error(), s.Name()):
			bad++
		case err != nil:
			t.Fatal(err)
		case newScanned(b).BaseOffset() > from || newScanned(b).NextOffset() <= from:
			t.Fatalf("read %d: wrong batch", from)
		}
	}
	if bad == 0 || bad > 3 {
		t.Fatalf("%d offsets unreadable", bad)
	}
	if err := l.Verify(t.Context(), nil); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), s.Name()) {
		t.Fatalf("verify: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("verify, ended: %v", err)
	}
}

// TestIndexRebuilt: whatever is wrong with index files, every read gives the same,
// and what was wrong with a sealed one is repaired.
func TestIndexRebuilt(t *testing.T) {
	good := filled(t)
	pristine := make(map[string][]byte)
	for _, s := range good.Segments {
		if s.Size == 0 {
			continue
		}
		path := good.FS.PathJoin(good.Dir, idxName(s.Name()))
		if _, err := good.FS.Stat(path); err == nil {
			pristine[idxName(s.Name())] = content(t, good, idxName(s.Name()))
		}
	}
	if len(pristine) < 2 {
		t.Fatalf("%d index files", len(pristine))
	}
	breaks := map[string]func(b []byte) []byte{
		"missing":    func([]byte) []byte { return nil },
		"empty":      func([]byte) []byte { return []byte{} },
		"short":      func(b []byte) []byte { return b[:len(b)-9] },
		"bit":        func(b []byte) []byte { b[50] ^= 4; return b },
		"zeros":      func(b []byte) []byte { return make([]byte, len(b)) },
		"other base": func(b []byte) []byte { b[15]++; return recrc(b) },
		"other size": func(b []byte) []byte { b[23]++; return recrc(b) },
		"wrong place": func(b []byte) []byte { // the entries' positions are off
			for at := idxHeaderSize + idxEntrySize; at < len(b)-idxCRCSize; at += idxEntrySize {
				binary.BigEndian.PutUint64(b[at+8:], binary.BigEndian.Uint64(b[at+8:])+1)
			}
			return recrc(b)
		},
	}
	for name, brk := range breaks {
		t.Run(name, func(t *testing.T) {
			o := filled(t)
			for file, b := range pristine {
				if b = brk(bytes.Clone(b)); b == nil {
					if err := o.FS.Remove(o.FS.PathJoin(o.Dir, file)); err != nil {
						t.Fatal(err)
					}
				} else {
					replace(t, o, file, b)
				}
			}
			l := mustOpen(t, o)
			defer closeLog(t, l)
			for from := int64(0); from < l.NextOffset(); from++ {
				b, err := l.Read(from, 1, math.MaxInt64)
				if err != nil {
					t.Fatal(err)
				}
				if h := newScanned(b); h.BaseOffset() > from || h.NextOffset() <= from {
					t.Fatalf("read %d: batch [%d,%d)", from, h.BaseOffset(), h.NextOffset())
				}
			}
			for file, want := range pristine {
				if got := content(t, o, file); !bytes.Equal(got, want) {
					t.Errorf("%s not as it was", file)
				}
			}
		})
	}
}

func recrc(b []byte) []byte {
	body := b[:len(b)-idxCRCSize]
	return binary.BigEndian.AppendUint32(bytes.Clone(body), checksum(body))
}

// TestActiveIndexReused: Open walks only what the active segment's index lacks,
// and an index that runs ahead of the checkpoint is no harm.
func TestActiveIndexReused(t *testing.T) {
	o := memOptions()
	l := mustOpen(t, o)
	early := checkpoint(t, l, o)
	for range 40 {
		mustAppend(t, l, build(t, 1, 40_000, 1), 1)
	}
	mid := checkpoint(t, l, o)
	idx := idxName(FileName(0))
	if len(content(t, o, idx)) == 0 {
		t.Fatal("no index of the active segment")
	}
	for range 40 {
		mustAppend(t, l, build(t, 1, 40_000, 1), 1)
	}
	checkpoint(t, l, o) // writes the index again
	want := all(t, l)
	closeLog(t, l)

	l = mustOpen(t, mid)
	for range 40 {
		mustAppend(t, l, build(t, 1, 40_000, 1), 1)
	}
	if got := all(t, l); !bytes.Equal(got, want) {
		t.Fatal("content differs after an index that ran ahead")
	}
	for from := int64(0); from < 80; from++ {
		if b, err := l.Read(from, 1, 80); err != nil || newScanned(b).BaseOffset() != from {
			t.Fatalf("read %d: %v", from, err)
		}
	}
	closeLog(t, l)

	l = mustOpen(t, early)
	defer closeLog(t, l)
	if names, _ := vfs.List(o.FS, o.Dir); len(names) != 0 || l.NextOffset() != 0 {
		t.Fatalf("an empty checkpoint left %v", names)
	}
}

// TestConcurrentReads reads, looks up and syncs beside an applier that appends,
// rolls and drops: for the race detector, and for reads that must never see half a batch.
func TestConcurrentReads(t *testing.T) {
	o := memOptions()
	o.SegmentBytes, o.Handles = 8_000, NewHandles(2)
	l := mustOpen(t, o)
	batch := build(t, 3, 100, 5, 6, 7)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		wg.Go(func() { readUntil(t, l, done) })
	}
	wg.Go(func() {
		for {
			p := l.Capture() // Capture is the applier's, but safe beside appends
			if err := p.Sync(); err != nil {
				t.Error(err)
			}
			p.Published()
			p.Release()
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for k := range 400 {
		for range k % 4 {
			l.Stage(batch, 1)
		}
		if err := l.Flush(); err != nil {
			t.Error(err)
		}
		if k%50 == 49 {
			l.DropBefore(l.NextOffset() - 20)
		}
	}
	close(done)
	wg.Wait()
	closeLog(t, l)
	if n := o.Handles.Len(); n != 0 {
		t.Fatalf("%d files still open", n)
	}
}

// readUntil follows the log from its start, and looks up timestamps at its end,
// until done is closed there.
func readUntil(t *testing.T, l *Log, done <-chan struct{}) {
	for from := int64(0); ; {
		b, err := l.Read(from, 2000, math.MaxInt64)
		switch {
		case errors.Is(err, ErrOutOfRange):
			from = l.StartOffset()
		case err != nil:
			t.Error(err)
			return
		case len(b) == 0:
			if _, _, _, err := l.OffsetForTimestamp(7, math.MaxInt64); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
		for len(b) > 0 {
			h := newScanned(b)
			if from > h.LastOffset() || from < h.BaseOffset() {
				t.Errorf("read %d: batch [%d,%d)", from, h.BaseOffset(), h.NextOffset())
				return
			}
			from, b = h.NextOffset(), b[h.Size():]
		}
	}
}

// TestDump prints both kinds of file and stops at the first wrong byte.
func TestDump(t *testing.T) {
	o := filled(t)
	s := o.Segments[0]
	var w strings.Builder
	path := o.FS.PathJoin(o.Dir, s.Name())
	if err := Dump(o.FS, path, &w); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("offsets [%d,%d)\n", s.BaseOffset, s.NextOffset); !strings.HasSuffix(w.String(), want) {
		t.Fatalf("dump ends %q", w.String()[max(0, w.Len()-200):])
	}
	w.Reset()
	if err := Dump(o.FS, o.FS.PathJoin(o.Dir, idxName(s.Name())), &w); err != nil || !strings.Contains(w.String(), "offset 0 byte 0 ") {
		t.Fatalf("index: %v\n%s", err, w.String())
	}
	patch(t, o, s.Name(), s.Size, []byte("torn"))
	if err := Dump(o.FS, path, &w); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), fmt.Sprintf("byte %d", s.Size)) {
		t.Fatalf("torn: %v", err)
	}
	if err := Dump(o.FS, "d/checkpoint", &w); err == nil {
		t.Fatal("dumped a file that is no segment")
	}
}
