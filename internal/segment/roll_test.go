package segment

import (
	"fmt"
	"testing"
)

// TestRollAfterReopen: a start in the middle of a segment changes nothing about
// where it ends, whether its index was read or built again (correctness rule 2).
func TestRollAfterReopen(t *testing.T) {
	for _, tt := range []struct {
		name string
		pad  int // of 40 batches; from indexStep on the active segment's index is on disk
	}{{"index built again", 100}, {"index read", 40_000}} {
		t.Run(tt.name, func(t *testing.T) {
			o := memOptions()
			o.SegmentMs = 1000
			var starts []string
			for _, reopened := range []bool{false, true} {
				o.Dir += "x"
				l := mustOpen(t, o)
				for k := range int64(40) {
					mustAppend(t, l, build(t, 1, tt.pad, 10*k), 1)
				}
				if reopened {
					after := checkpoint(t, l, o)
					if _, err := o.FS.Stat(l.idxPath(l.active())); (err == nil) != (tt.pad > 1000) {
						t.Fatalf("index on disk: %v", err)
					}
					closeLog(t, l)
					l = mustOpen(t, after)
				}
				for _, ts := range []int64{990, 1000, 1001, 2001, 2002} {
					mustAppend(t, l, build(t, 1, tt.pad, ts), 1)
				}
				starts = append(starts, fmt.Sprint(l.Segments()))
				closeLog(t, l)
			}
			if starts[0] != starts[1] || len(starts[0]) == 0 {
				t.Errorf("segments %s, after a start %s", starts[0], starts[1])
			}
		})
	}
}

// TestSegmentsAreBounded: with as many segments as a checkpoint can name, neither size nor age makes more, until
// some are dropped. However the batches come, at once, one by one or around a start, they land alike (correctness rule 2).
func TestSegmentsAreBounded(t *testing.T) {
	const most, batches = 5, 40
	run := func(flush func(k int) bool, reopen func(k int) bool) string {
		o := memOptions()
		o.SegmentBytes, o.SegmentMs = 1, 1
		l := mustOpen(t, o)
		l.maxSegments = most
		for k := range batches {
			if k == 20 {
				l.StageStart(3) // within the fourth: three less
			}
			if k == 30 {
				l.StageStart(l.StagedOffset()) // all
			}
			l.Stage(build(t, 1, 10, int64(10*k)), 1)
			if !flush(k) && k < batches-1 {
				continue
			}
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
			if n := len(l.Segments()); n > most {
				t.Fatalf("%d segments", n)
			}
			if reopen(k) {
				after := checkpoint(t, l, o)
				closeLog(t, l)
				l = mustOpen(t, after)
				l.maxSegments = most
			}
		}
		defer closeLog(t, l)
		return fmt.Sprint(l.Segments())
	}
	never := func(int) bool { return false }
	want := run(func(int) bool { return true }, never)
	for name, got := range map[string]string{
		"in pairs":          run(func(k int) bool { return k%2 == 1 }, never),
		"in sevens":         run(func(k int) bool { return k%7 == 6 }, never),
		"with a few starts": run(func(k int) bool { return k%3 == 2 }, func(k int) bool { return k%4 == 2 }),
	} {
		if got != want {
			t.Errorf("%s: %s\none by one: %s", name, got, want)
		}
	}
}
