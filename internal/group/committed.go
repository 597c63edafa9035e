package group

import "iter"

// Committed is a group's committed offset of one partition.
type Committed struct {
	Group, Topic string
	Partition    int32
	Offset       int64
}

// Committed iterates over all committed offsets of the shard as they are now, by
// group, topic and partition, if this replica leads; for metrics of lag.
func (c *Coordinator) Committed() iter.Seq[Committed] {
	return func(yield func(Committed) bool) {
		if !c.Ready() {
			return
		}
		c.sm.view().offsets.Scan(func(k string, o *Offset) bool {
			key := decodeKey(k)
			return yield(Committed{key.group, key.topic, key.partition, o.Offset})
		})
	}
}
