package group

import "iter"

// CommittedOffset is an offset that a group has committed.
type CommittedOffset struct {
	Group, Topic string
	Partition    int32
	Offset       int64
}

// Committed iterates over all committed offsets by group, topic and partition, as of
// the call, and numbers them; over nothing unless the Coordinator serves.
func (c *Coordinator) Committed() iter.Seq2[int, CommittedOffset] {
	return func(yield func(int, CommittedOffset) bool) {
		if !c.Ready() {
			return
		}
		n := 0
		c.sm.view().offsets.Scan(func(key string, o *Offset) bool {
			k := decodeKey(key)
			n++
			return yield(n-1, CommittedOffset{k.group, k.topic, k.partition, o.Offset})
		})
	}
}
