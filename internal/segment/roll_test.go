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
