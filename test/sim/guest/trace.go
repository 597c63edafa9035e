package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/fnv"
	"sync"
	"time"
)

// trace is a hash of all that happened, in order, with its time: two runs with one trace were the same run.
type trace struct {
	mu     sync.Mutex
	h      hash.Hash64
	began  time.Time
	buf    [32]byte
	frames int64 // delivered between nodes
	bytes  int64 // delivered on all connections
	chunks int64
	ops    int64 // of disks
}

func newTrace() *trace { return &trace{h: fnv.New64a(), began: time.Now()} }

func (t *trace) add(kind byte, a, b, c int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf[0] = kind
	binary.LittleEndian.PutUint64(t.buf[1:], uint64(time.Since(t.began)))
	binary.LittleEndian.PutUint32(t.buf[9:], uint32(a))
	binary.LittleEndian.PutUint32(t.buf[13:], uint32(b))
	binary.LittleEndian.PutUint32(t.buf[17:], uint32(c))
	_, _ = t.h.Write(t.buf[:21]) // a hash does not fail
	switch kind {
	case 'd':
		t.chunks++
		t.bytes += int64(c)
	case 'f':
		t.frames++
	case 'o':
		t.ops++
	}
}

func (t *trace) delivered(w way, n int)         { t.add('d', w.from, w.to, n) }
func (t *trace) frame(from, to, n int)          { t.add('f', from, to, n) }
func (t *trace) disk(node, op, n int)           { t.add('o', node, op, n) }
func (t *trace) acked(partition int, off int64) { t.add('a', partition, int(off>>32), int(off)) }

func (t *trace) call(from, to int, method string, n int) { t.add('c', from, to, n); t.text(method) }

func (t *trace) text(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = fmt.Fprintf(t.h, "%s@%d;", s, time.Since(t.began)) // a hash does not fail
}

func (t *trace) sum() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return hex.EncodeToString(t.h.Sum(nil))
}
