package segment

import (
	"sync"

	"chronik/internal/vfs"
)

// DefaultHandles is how many segment files a Handles keeps open for reading.
const DefaultHandles = 512

// writeBackSlots is how many files of a node are being written back at once.
const writeBackSlots = 2

// Handles is the node's cache of segment files open for reading, with the
// indexes of the sealed ones. Least recently used ones are closed. All logs of a
// node share one. Safe for concurrent use.
type Handles struct {
	// writeBack holds the free slots. No slot free: the step is left to the next append.
	writeBack chan struct{}

	mu   sync.Mutex
	max  int
	open map[*segment]*handle
	// head and tail of the list by use, most recent first. A handle is in it as
	// long as it is in open.
	head, tail *handle
}

// handle is an open segment file. mu of Handles guards refs, cached and the links.
type handle struct {
	seg        *segment
	prev, next *handle
	refs       int
	cached     bool // in Handles.open; a handle that is not closes with its last user

	openOnce sync.Once
	file     vfs.File
	err      error

	indexOnce sync.Once
	index     []entry
	indexErr  error
}

// NewHandles returns a cache of at most limit files (files in use may exceed it);
// 0 is DefaultHandles.
func NewHandles(limit int) *Handles {
	if limit <= 0 {
		limit = DefaultHandles
	}
	c := &Handles{max: limit, open: make(map[*segment]*handle), writeBack: make(chan struct{}, writeBackSlots)}
	return c
}

// Len is how many files are cached.
func (c *Handles) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

// acquire returns seg's open file; the caller releases it. The file is opened
// outside the lock; who comes second waits for the first.
func (c *Handles) acquire(fs vfs.FS, seg *segment) (*handle, error) {
	c.mu.Lock()
	h := c.open[seg]
	var evicted []*handle
	if h == nil {
		h = &handle{seg: seg, cached: true}
		c.open[seg] = h
		c.pushFront(h)
		h.refs++
		evicted = c.evict()
	} else {
		h.refs++
		if c.head != h {
			c.unlink(h)
			c.pushFront(h)
		}
	}
	c.mu.Unlock()
	closeAll(evicted)

	h.openOnce.Do(func() { h.file, h.err = fs.Open(seg.path) })
	if h.err != nil {
		err := h.err
		c.forget(seg, h)
		c.release(h)
		return nil, err
	}
	return h, nil
}

func (c *Handles) release(h *handle) {
	c.mu.Lock()
	h.refs--
	idle := h.refs == 0 && !h.cached
	c.mu.Unlock()
	if idle {
		h.close()
	}
}

// forget takes seg out of the cache, if h (nil: any) is what is cached for it.
func (c *Handles) forget(seg *segment, h *handle) {
	c.mu.Lock()
	cur := c.open[seg]
	if cur == nil || (h != nil && cur != h) {
		c.mu.Unlock()
		return
	}
	c.uncache(cur)
	idle := cur.refs == 0
	c.mu.Unlock()
	if idle {
		cur.close()
	}
}

// evict uncaches handles beyond the limit, least recently used first, and
// returns those nobody uses. mu is held.
func (c *Handles) evict() (idle []*handle) {
	for h := c.tail; h != nil && len(c.open) > c.max; {
		prev := h.prev
		if h.refs == 0 {
			c.uncache(h)
			idle = append(idle, h)
		}
		h = prev
	}
	return idle
}

func (c *Handles) uncache(h *handle) {
	delete(c.open, h.seg)
	c.unlink(h)
	h.cached = false
}

func (c *Handles) pushFront(h *handle) {
	h.prev, h.next = nil, c.head
	if c.head != nil {
		c.head.prev = h
	}
	c.head = h
	if c.tail == nil {
		c.tail = h
	}
}

func (c *Handles) unlink(h *handle) {
	if h.prev != nil {
		h.prev.next = h.next
	} else {
		c.head = h.next
	}
	if h.next != nil {
		h.next.prev = h.prev
	} else {
		c.tail = h.prev
	}
	h.prev, h.next = nil, nil
}

func closeAll(hs []*handle) {
	for _, h := range hs {
		h.close()
	}
}

// close closes a file only read from: no error of it matters.
func (h *handle) close() {
	if h.file != nil {
		_ = h.file.Close()
	}
}
