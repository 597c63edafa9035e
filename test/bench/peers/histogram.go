package main

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram counts durations in buckets a 64th of their power of two wide: an
// error of at most 1.6 %. The zero value is empty; goroutines may add at once.
type histogram struct {
	buckets [64 * 40]atomic.Int64 // up to 2^40 microseconds
}

const histogramBits = 6

func bucketOf(us uint64) int {
	if us < 1<<histogramBits {
		return int(us)
	}
	shift := bits.Len64(us) - histogramBits - 1
	return (shift+1)<<histogramBits + int(us>>shift) - 1<<histogramBits
}

// bucketTop is the highest value of a bucket.
func bucketTop(i int) uint64 {
	if i < 1<<histogramBits {
		return uint64(i)
	}
	shift := i>>histogramBits - 1
	return uint64(i&(1<<histogramBits-1)+1<<histogramBits+1)<<shift - 1
}

func (h *histogram) add(d time.Duration) {
	us := uint64(max(0, d.Microseconds()))
	h.buckets[min(bucketOf(us), len(h.buckets)-1)].Add(1)
}

// quantile is 0 if nothing was counted.
func (h *histogram) quantile(q float64) time.Duration {
	var total int64
	for i := range h.buckets {
		total += h.buckets[i].Load()
	}
	if total == 0 {
		return 0
	}
	rank, seen := int64(q*float64(total-1)), int64(0)
	for i := range h.buckets {
		if seen += h.buckets[i].Load(); seen > rank {
			return time.Duration(bucketTop(i)) * time.Microsecond
		}
	}
	return 0
}
