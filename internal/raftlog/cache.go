package raftlog

import "chronik/internal/ident"

// entryOverhead is what a cached entry costs besides its payload.
const entryOverhead = 48

// copyUpTo is how many bytes of payload of a received append are copied into the cache.
// A larger one is at least a quarter of the chunk that it lies in, and copying all would
// cost the sync loop most of a second a GB.
const copyUpTo = 16 << 10

// tailCache keeps the newest entries of all replicas in memory, oldest out first.
// The entries hang on their replicas, each a contiguous run up to the last
// index; the cache keeps the order and the sum. Only the sync loop changes
// it, holding the mutex of the replica concerned.
type tailCache struct {
	limit, bytes int64
	// order has one element a frame, from head on. Elements of entries gone by other
	// ways stay until sift; they evict nothing, or newer entries of the same index early.
	order []cachedRun
	head  int
	left  int // elements that the last sift left
}

type cachedRun struct {
	r    *replica
	last ident.Index
}

// gone tells that its entries have left the cache.
func (e *cachedRun) gone() bool { return len(e.r.cache) == 0 || e.r.cache[0].Index > e.last }

func cacheCost(entries []Entry) (n int64) {
	for i := range entries {
		n += entryOverhead + int64(len(entries[i].Data))
	}
	return n
}

// add caches entries, r's newest. If they overlap what is there (a conflict was
// truncated, which is rare) they replace it all. own: they share no memory. r.mu is held.
func (c *tailCache) add(r *replica, entries []Entry, own bool) {
	n := len(r.cache)
	if n > 0 && r.cache[n-1].Index+1 != entries[0].Index {
		c.clear(r)
		n = 0
	}
	r.cache = append(r.cache, entries...)
	cost := cacheCost(entries)
	if size := cost - entryOverhead*int64(len(entries)); !own && size <= copyUpTo {
		detach(r.cache[n:], size)
	}
	c.bytes += cost
	c.order = append(c.order, cachedRun{r, entries[len(entries)-1].Index})
}

// detach gives entries of size bytes memory of their own: what was received lies in a
// chunk or frame with other groups' entries, which the cache would keep as long as these.
func detach(entries []Entry, size int64) {
	b := make([]byte, 0, size)
	for i := range entries {
		n := len(b)
		b = append(b, entries[i].Data...)
		entries[i].Data = b[n:len(b):len(b)]
	}
}

// dropTo forgets entries up to i. r.mu is held.
func (c *tailCache) dropTo(r *replica, i ident.Index) {
	if len(r.cache) == 0 || r.cache[0].Index > i {
		return
	}
	k := len(r.cache)
	if d := i - r.cache[0].Index; d < ident.Index(k) {
		k = int(d) + 1
	}
	c.bytes -= cacheCost(r.cache[:k])
	clear(r.cache[:k])
	if r.cache = r.cache[k:]; len(r.cache) == 0 {
		r.cache = nil
	}
}

func (c *tailCache) clear(r *replica) {
	c.bytes -= cacheCost(r.cache)
	clear(r.cache)
	r.cache = nil
}

// shrink evicts until the limit holds. No replica's mutex is held.
func (c *tailCache) shrink() {
	for c.bytes > c.limit && c.head < len(c.order) {
		run := c.order[c.head]
		c.order[c.head] = cachedRun{}
		c.head++
		run.r.mu.Lock()
		c.dropTo(run.r, run.last)
		run.r.mu.Unlock()
	}
	if c.head > 1024 && c.head > len(c.order)/2 || len(c.order)-c.head > max(1024, 2*c.left) {
		c.sift()
	}
}

// sift drops the elements of entries that are gone: below the limit nothing else does.
func (c *tailCache) sift() {
	kept := c.order[:0]
	for _, e := range c.order[c.head:] {
		if !e.gone() {
			kept = append(kept, e)
		}
	}
	clear(c.order[len(kept):])
	c.order, c.head, c.left = kept, 0, len(kept)
}
