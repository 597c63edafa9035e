package raftlog

import (
	"chronik/internal/vfs"
)

const (
	// maxBatchBytes ends a batch early, so that the buffer stays bounded.
	maxBatchBytes = 16 << 20
	// keepBuffer is the largest buffer kept between batches whatever they need. A
	// larger one, up to twice maxBatchBytes, is kept while batches fill an eighth
	// of it: under load each batch would pay for a new one.
	keepBuffer = 1 << 20
	// slackBatches is how many smaller batches in a row give a large buffer up.
	slackBatches = 64
)

// batch holds the frames of the batch at work. It is written in whole blocks, so
// that the write may go past the page cache: buf begins where a block does, in the
// file and in memory. Its first lead bytes are durable already, the last frames' end
// in that block; they are written again as they are, which is what the page
// cache would do. Behind the frames, zeros fill the last block.
type batch struct {
	buf   []byte
	lead  int
	slack int // batches in a row that needed less than an eighth of buf
}

// frames is how many bytes the batch adds to the file.
func (b *batch) frames() int64 { return int64(len(b.buf) - b.lead) }

// grow makes room for n more bytes.
func (b *batch) grow(n int) {
	if len(b.buf)+n <= cap(b.buf) {
		return
	}
	larger := vfs.Blocks(max(len(b.buf)+n, min(2*cap(b.buf), 2*maxBatchBytes)))
	b.buf = append(larger, b.buf...)
}

// blocks returns the whole blocks to write.
func (b *batch) blocks() []byte {
	n := (len(b.buf) + vfs.BlockBytes - 1) &^ (vfs.BlockBytes - 1)
	whole := b.buf[:n]
	clear(whole[len(b.buf):])
	return whole
}

// next begins the batch behind this one: its lead is what this one has of an unfinished block.
func (b *batch) next() {
	whole := len(b.buf) &^ (vfs.BlockBytes - 1)
	tail := b.buf[whole:]
	b.slack++
	if len(b.buf) >= cap(b.buf)/8 {
		b.slack = 0
	}
	b.lead = len(tail)
	if c := cap(b.buf); c > 2*maxBatchBytes || c > keepBuffer && b.slack >= slackBatches {
		b.buf, b.slack = append(vfs.Blocks(vfs.BlockBytes), tail...), 0
		return
	}
	b.buf = b.buf[:copy(b.buf, tail)]
}

// restart begins a batch where a block of a file begins.
func (b *batch) restart() { b.buf, b.lead = b.buf[:0], 0 }
