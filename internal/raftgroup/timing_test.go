package raftgroup

import (
	"testing"
	"time"
)

// A duration lies in the first bucket whose bound is not below it.
func TestTimingBuckets(t *testing.T) {
	for i := range TimingBuckets - 2 {
		lo, hi := TimingBound(i), TimingBound(i+1)
		if lo >= hi {
			t.Fatalf("bound %d is %v, the next %v", i, lo, hi)
		}
		for d, want := range map[time.Duration]int{lo: i, lo + 1: i + 1, hi: i + 1} {
			if got := timingBucket(d); got != want {
				t.Errorf("%v lies in bucket %d, want %d (bounds %v and %v)", d, got, want, lo, hi)
			}
		}
	}
	var tm timing
	for _, d := range []time.Duration{0, time.Nanosecond, 3 * time.Microsecond, time.Millisecond, time.Hour} {
		tm.observe(d)
	}
	v := tm.get()
	if v.Count != 5 || v.Max != time.Hour || v.Buckets[0] != 2 || v.Buckets[TimingBuckets-1] != 1 {
		t.Errorf("%+v", v)
	}
}
