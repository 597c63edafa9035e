package partition

import (
	"fmt"
	"slices"
	"testing"
)

// TestEpochs follows Kafka's leader epoch cache.
func TestEpochs(t *testing.T) {
	var table epochTable
	for _, e := range []epochStart{{2, 0}, {2, 5}, {3, 10}, {7, 30}} {
		table = table.assign(e.epoch, e.offset)
	}
	if want := (epochTable{{2, 0}, {3, 10}, {7, 30}}); !slices.Equal(table, want) {
		t.Fatalf("table %v, want %v", table, want)
	}
	ends := []struct {
		asked, current int32
		epoch          int32
		offset         int64
	}{
		{-1, 9, -1, -1},
		{1, 9, 1, 0}, // older than what is kept
		{2, 9, 2, 10},
		{3, 9, 3, 30},
		{5, 9, 3, 30}, // wrote nothing: the one before
		{7, 9, 7, 50},
		{8, 9, 7, 50},
		{9, 9, 9, 50}, // the leader, though it wrote nothing yet
		{10, 9, -1, -1},
		{7, 7, 7, 50},
	}
	for _, tt := range ends {
		if epoch, offset := table.end(tt.asked, tt.current, 50); epoch != tt.epoch || offset != tt.offset {
			t.Errorf("epoch %d of %d ends: %d at %d, want %d at %d", tt.asked, tt.current, epoch, offset, tt.epoch, tt.offset)
		}
	}
	if epoch, offset := epochTable(nil).end(3, 4, 0); epoch != 3 || offset != 0 {
		t.Errorf("empty table: %d at %d", epoch, offset)
	}
	for offset, want := range map[int64]int32{0: 2, 9: 2, 10: 3, 29: 3, 30: 7, 99: 7} {
		if got := table.at(offset); got != want {
			t.Errorf("offset %d is of epoch %d, want %d", offset, got, want)
		}
	}
	shared := table[:len(table):len(table)]
	for start, want := range map[int64]epochTable{
		0:  {{2, 0}, {3, 10}, {7, 30}},
		5:  {{2, 5}, {3, 10}, {7, 30}},
		10: {{3, 10}, {7, 30}},
		31: {{7, 31}},
		50: {{7, 50}},
	} {
		if got := table.from(start); !slices.Equal(got, want) {
			t.Errorf("from %d: %v, want %v", start, got, want)
		}
	}
	// Everything was deleted, then a new epoch writes at the same offset.
	empty := table.from(50)
	if got := empty.assign(8, 50); fmt.Sprint(got) != fmt.Sprint(epochTable{{8, 50}}) || empty[0].epoch != 7 {
		t.Errorf("after deleting everything: %v beside %v", got, empty)
	}
	if fmt.Sprint(shared) != fmt.Sprint(epochTable{{2, 0}, {3, 10}, {7, 30}}) {
		t.Errorf("a shared table changed: %v", shared)
	}
}
