package segment

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/datadriven"
	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/vfs"
)

// TestGoldenOperations pins every create, write, sync, rename and removal of a
// log's life, so that a lost sync is a diff.
func TestGoldenOperations(t *testing.T) {
	var ops strings.Builder
	logged := pebblevfs.WithLogging(vfs.NewCrashableMem(), func(format string, args ...any) {
		if line := fmt.Sprintf(format, args...); !strings.HasPrefix(line, "open: ") && !strings.HasPrefix(line, "read-at") {
			ops.WriteString(line + "\n")
		}
	})
	o := Options{FS: logged, Dir: "d", SegmentBytes: 1000}
	var l *Log
	var pin *Pin
	datadriven.RunTest(t, "testdata/operations", func(t *testing.T, d *datadriven.TestData) string {
		ops.Reset()
		switch d.Cmd {
		case "open":
			l = mustOpen(t, o)
		case "append": // sizes of values; one flush
			for _, a := range d.CmdArgs {
				var pad int
				if _, err := fmt.Sscan(a.Key, &pad); err != nil {
					t.Fatal(err)
				}
				l.Stage(build(t, 1, pad, 1000), 1)
			}
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
		case "drop":
			l.DropBefore(l.NextOffset())
		case "capture":
			pin = l.Capture()
		case "sync":
			if err := pin.Sync(); err != nil {
				t.Fatal(err)
			}
		case "published":
			pin.Published()
			o.Segments, o.StartOffset, o.NextOffset = pin.Files(), pin.StartOffset, pin.NextOffset
		case "release":
			pin.Release()
		case "close":
			closeLog(t, l)
		default:
			d.Fatalf(t, "unknown command")
		}
		return ops.String()
	})
}

// TestFlushFailure: whichever operation fails, the log is as before, and the same
// batches go in when it works again.
func TestFlushFailure(t *testing.T) {
	for n := 0; ; n++ {
		left, injected := math.MaxInt, 0
		fs := errorfs.Wrap(vfs.NewCrashableMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if k := op.Kind; k != errorfs.OpFileWriteAt && k != errorfs.OpCreate && k != errorfs.OpOpen {
				return nil
			}
			if left--; left < 0 {
				injected++
				return syscall.ENOSPC
			}
			return nil
		}))
		l := mustOpen(t, Options{FS: fs, Dir: "d", SegmentBytes: 1000})
		first := build(t, 2, 300, 1)
		mustAppend(t, l, first, 1)
		before := l.Segments()
		group := [][]byte{build(t, 1, 100, 2), build(t, 1, 700, 3), build(t, 3, 10, 4), build(t, 1, 900, 5)}
		stage := func() error {
			for _, b := range group {
				l.Stage(b, 1)
			}
			return l.Flush()
		}
		left = n
		err := stage()
		if injected == 0 {
			if n < 4 {
				t.Fatalf("only %d operations", n)
			}
			closeLog(t, l)
			return
		}
		if !vfs.IsNoSpace(err) {
			t.Fatalf("operation %d: %v", n, err)
		}
		if got := l.Segments(); len(got) != len(before) || got[0] != before[0] {
			t.Fatalf("operation %d: segments %v, before %v", n, got, before)
		}
		if l.NextOffset() != 2 || l.StagedOffset() != 2 {
			t.Fatalf("operation %d: next offset %d", n, l.NextOffset())
		}
		left = math.MaxInt
		if err := stage(); err != nil {
			t.Fatal(err)
		}
		var want []byte
		next := int64(0)
		for _, b := range append([][]byte{first}, group...) {
			want = append(want, stamped(b, next, 1)...)
			next += int64(batchRecords(b))
		}
		if got := all(t, l); !bytes.Equal(got, want) {
			t.Fatalf("operation %d: content differs", n)
		}
		closeLog(t, l)
	}
}

// TestSyncFailureSticks: a failed sync is never tried again (a second fsync would
// report success for pages that were thrown away), also one for want of space (correctness rule 31).
func TestSyncFailureSticks(t *testing.T) {
	for _, boom := range []error{errors.New("boom"), syscall.ENOSPC} {
		fail := true
		fs := errorfs.Wrap(vfs.NewCrashableMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSyncData && fail {
				return boom
			}
			return nil
		}))
		l := mustOpen(t, Options{FS: fs, Dir: "d"})
		mustAppend(t, l, build(t, 1, 1, 1), 1)
		for range 2 {
			p := l.Capture()
			if err := p.Sync(); !errors.Is(err, boom) || !strings.Contains(err.Error(), FileName(0)) {
				t.Errorf("sync: %v, want %v", err, boom)
			}
			p.Release()
			fail = false
		}
		closeLog(t, l)
	}
}

// TestUnlinkWaits: a dropped file goes when a capture after the drop is published
// and no pin from before it lives (correctness rule 12), not earlier.
func TestUnlinkWaits(t *testing.T) {
	o := memOptions()
	o.SegmentBytes = 100
	l := mustOpen(t, o)
	defer closeLog(t, l)
	for range 3 {
		mustAppend(t, l, build(t, 1, 50, 1), 1)
	}
	old := l.Capture() // names all three
	if err := old.Sync(); err != nil {
		t.Fatal(err)
	}
	l.DropBefore(2)
	files := func() int {
		t.Helper()
		names, err := vfs.List(o.FS, o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, name := range names {
			if strings.HasSuffix(name, segSuffix) {
				n++
			}
		}
		return n
	}
	expect := func(step string, want int) {
		t.Helper()
		if got := files(); got != want {
			t.Fatalf("%s: %d files, want %d", step, got, want)
		}
	}
	expect("dropped", 3)
	old.Published()
	expect("published a capture from before the drop", 3)
	pin := l.Capture()
	if err := pin.Sync(); err != nil {
		t.Fatal(err)
	}
	pin.Published()
	expect("published, older pin alive", 3)
	old.Release()
	expect("older pin released", 1)
	pin.Release()
	expect("all released", 1)

	l.DropBefore(3)
	p1, p2 := l.Capture(), l.Capture()
	p1.Release()
	expect("capture not published", 1)
	p2.Published()
	p2.Release()
	expect("published", 0)
	if _, err := l.Read(2, 10, math.MaxInt64); !errors.Is(err, ErrOutOfRange) {
		t.Fatalf("read before the start: %v", err)
	}
	if base := mustAppend(t, l, build(t, 1, 50, 1), 1); base != 3 {
		t.Fatalf("base %d after everything was dropped", base)
	}
}

func batchRecords(b []byte) int32 {
	return newScanned(b).NumRecords()
}

// TestWriteBack appends more than a step to a real file: the background start of
// write-back must neither disturb content nor outlive Close.
func TestWriteBack(t *testing.T) {
	o := Options{FS: vfs.Default, Dir: t.TempDir() + "/d", SegmentBytes: 3 << 20, Handles: NewHandles(2)}
	l := mustOpen(t, o)
	var want []byte
	for k := range 24 {
		b := build(t, 1, 256<<10, 1)
		want = append(want, stamped(b, int64(k), 1)...)
		mustAppend(t, l, b, 1)
	}
	o = checkpoint(t, l, o)
	if got := all(t, l); !bytes.Equal(got, want) {
		t.Fatal("content differs")
	}
	closeLog(t, l)
	if n := len(o.Handles.writeBack); n != 0 {
		t.Fatalf("%d write-back slots taken after Close", n)
	}
	l = mustOpen(t, o)
	defer closeLog(t, l)
	if got := all(t, l); !bytes.Equal(got, want) {
		t.Fatal("content differs after reopen")
	}
	if _, err := os.Stat(o.Dir + "/" + idxName(FileName(0))); err != nil {
		t.Fatalf("no index of a sealed segment: %v", err)
	}
}

// TestRoll pins where segments end, to the byte and the millisecond.
func TestRoll(t *testing.T) {
	size := int64(len(build(t, 1, 100, 0)))
	tests := []struct {
		name   string
		bytes  int64
		ms     int64
		times  []int64
		starts []int64 // base offsets of the segments
	}{
		{"exactly full", 2 * size, 0, []int64{0, 0, 0}, []int64{0, 2}},
		{"one byte too many", 2*size - 1, 0, []int64{0, 0, 0}, []int64{0, 1, 2}},
		{"larger than a segment", 1, 0, []int64{0, 0}, []int64{0, 1}},
		{"at the age", 0, 1000, []int64{5, 1005, 1005}, []int64{0}},
		{"over the age", 0, 1000, []int64{5, 1006, 1007}, []int64{0, 1}},
		{"counts from the first, not the largest", 0, 1000, []int64{5, 900, 1006}, []int64{0, 2}},
		{"back in time", 0, 1000, []int64{5000, 1, 2, 5900}, []int64{0}},
		{"no timestamps", 0, 1000, []int64{-1, -1, 999, 1000}, []int64{0, 3}},
		{"a difference that overflows", 0, 1000, []int64{math.MinInt64 / 2, math.MaxInt64 / 4 * 3}, []int64{0, 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := memOptions()
			o.SegmentBytes, o.SegmentMs = tt.bytes, tt.ms
			for _, grouped := range []bool{true, false} {
				o.Dir += "x"
				l := mustOpen(t, o)
				for _, ts := range tt.times {
					l.Stage(build(t, 1, 100, ts), 1)
					if !grouped {
						if err := l.Flush(); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := l.Flush(); err != nil {
					t.Fatal(err)
				}
				var starts []int64
				for _, i := range l.Segments() {
					starts = append(starts, i.BaseOffset)
				}
				if !slices.Equal(starts, tt.starts) {
					t.Errorf("segments start at %v, want %v", starts, tt.starts)
				}
				closeLog(t, l)
			}
		})
	}
}

// A checkpoint that was captured before a drop and published after it names what was
// dropped: those files stay until the next one, though no pin is left.
func TestUnlinkWaitsForTheNextCheckpoint(t *testing.T) {
	o := memOptions()
	o.SegmentBytes = 100
	l := mustOpen(t, o)
	for range 3 {
		mustAppend(t, l, build(t, 1, 50, 1), 1)
	}
	pin := l.Capture()
	if err := pin.Sync(); err != nil {
		t.Fatal(err)
	}
	l.DropBefore(2)
	pin.Published()
	o.Segments, o.StartOffset, o.NextOffset = pin.Files(), pin.StartOffset, pin.NextOffset
	pin.Release()
	closeLog(t, l)
	l = mustOpen(t, o) // as a start would, from that checkpoint
	defer closeLog(t, l)
	if err := l.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}
