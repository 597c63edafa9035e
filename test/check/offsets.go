package check

import (
	"fmt"
	"maps"
	"sync"
)

// Offsets holds what a group has committed to what was promised of it: an offset that was
// acknowledged, or that was told once, is never below that again.
type Offsets struct {
	Group string

	mu    sync.Mutex
	floor map[int32]int64
}

// Acknowledged notes that a commit of offset was acknowledged.
func (o *Offsets) Acknowledged(partition int32, offset int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.floor == nil {
		o.floor = map[int32]int64{}
	}
	o.floor[partition] = max(o.floor[partition], offset)
}

// Floor is what an answer to a question asked from now on must not be below.
func (o *Offsets) Floor() map[int32]int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.floor)
}

// Told judges an answer to a question that was asked when floor was taken. What is missing in it counts as 0.
func (o *Offsets) Told(floor, answer map[int32]int64) []Violation {
	r := &report{place: "group " + o.Group}
	for p, least := range floor {
		if answer[p] < least {
			r.add(Backward, "partition %d: committed %d, was %d before", p, answer[p], least)
		}
	}
	for p, at := range answer {
		o.Acknowledged(p, at)
	}
	return r.done()
}

// Reached tells whether everything up to ends is committed.
func (o *Offsets) Reached(ends map[int32]int64) error {
	floor := o.Floor()
	for p, end := range ends {
		if floor[p] != end {
			return fmt.Errorf("partition %d: committed %d of %d", p, floor[p], end)
		}
	}
	return nil
}
