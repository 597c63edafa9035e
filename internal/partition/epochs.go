package partition

import (
	"fmt"
	"sort"

	"chronik/internal/record"
	"chronik/internal/segment"
)

// epochStart is the first offset that a leader epoch gave.
type epochStart struct {
	epoch  int32
	offset int64
}

// epochTable ascends strictly in epoch and in offset. It is immutable to whom it
// was shared with: growing writes only behind their length. An epoch that wrote
// nothing is not in it.
type epochTable []epochStart

// assign says that the batch at offset is of epoch.
func (t epochTable) assign(epoch int32, offset int64) epochTable {
	n := len(t)
	if n > 0 && t[n-1].epoch >= epoch {
		return t
	}
	if n > 0 && t[n-1].offset >= offset { // nothing of the last one is left
		t = append(epochTable(nil), t[:n-1]...)
	}
	return append(t, epochStart{epoch, offset})
}

// from returns the table of a log that starts at start: the epoch that holds
// start begins there.
func (t epochTable) from(start int64) epochTable {
	k := sort.Search(len(t), func(i int) bool { return t[i].offset > start }) // the first that begins later
	if k == 0 || (k == 1 && t[0].offset == start) {
		return t
	}
	out := append(epochTable(nil), t[k-1:]...)
	out[0].offset = start
	return out
}

// at returns the epoch that wrote offset, -1 if that is not known.
func (t epochTable) at(offset int64) int32 {
	k := sort.Search(len(t), func(i int) bool { return t[i].offset > offset })
	if k == 0 {
		return -1
	}
	return t[k-1].epoch
}

// sound tells whether a stored batch says the epoch that wrote it: of all its bytes
// no checksum and no order covers these. What the table does not know of passes.
func (t epochTable) sound(b record.Batch) error {
	want := t.at(b.LastOffset()) // the first one may lie before the log's start
	if got := b.PartitionLeaderEpoch(); want >= 0 && got != want {
		return fmt.Errorf("%w: the batch at offset %d says leader epoch %d, epoch %d wrote it", segment.ErrCorrupt, b.BaseOffset(), got, want)
	}
	return nil
}

// allSound is sound for whole batches one after the other.
func (t epochTable) allSound(b []byte) error {
	for len(b) > 0 {
		h, err := record.Header(b)
		if err != nil {
			return err
		}
		if err := t.sound(h); err != nil {
			return err
		}
		b = b[h.Size():]
	}
	return nil
}

// end finds the largest epoch at or below the asked one, and the offset it ended
// at, as Kafka's leaders answer (KIP-101, KIP-279). current is the epoch of the
// leader, whose batches go on at next. (-1, -1): asked is in the future.
func (t epochTable) end(asked, current int32, next int64) (epoch int32, offset int64) {
	if asked < 0 || asked > current {
		return -1, -1
	}
	if asked == current {
		return current, next
	}
	k := sort.Search(len(t), func(i int) bool { return t[i].epoch > asked })
	end := next
	if k < len(t) {
		end = t[k].offset
	}
	if k == 0 {
		return asked, end // older than anything kept
	}
	return t[k-1].epoch, end
}
