package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sort"

	"chronik/internal/vfs"
)

// The index file: a header, entries, and a CRC-32C of all that precedes it.
const (
	idxMagic      = "CHRKIDX1"
	idxHeaderSize = 8 + 8 + 8 + 8 + 4
	idxEntrySize  = 8 + 8 + 8
	idxCRCSize    = 4
	// maxIdxBytes bounds what is read as an index: a full segment of the smallest
	// entries' distance, with room.
	maxIdxBytes = idxHeaderSize + (MaxSegmentBytes/indexInterval+2)*idxEntrySize + idxCRCSize
)

// indexInterval is how many bytes of batches lie between two index entries, at
// least. A read starts at an entry, so it reads at most this much (and one batch) in vain.
const indexInterval = 4 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errIndex: an index file is not usable; it is rebuilt.
var errIndex = errors.New("unusable index")

// entry points at a batch. Entries ascend strictly in offset and pos, and never
// descend in maxBefore.
type entry struct {
	offset int64 // base offset of the batch at pos
	pos    int64
	// maxBefore is the max timestamp of all batches in front of pos; the least
	// int64 for the first entry.
	maxBefore int64
}

// findOffset returns the last entry at or before offset and the position the next
// entry points at (size if it is the last).
func findOffset(index []entry, offset, size int64) (e entry, nextPos int64) {
	i := sort.Search(len(index), func(i int) bool { return index[i].offset > offset })
	if i == 0 {
		return entry{}, size
	}
	nextPos = size
	if i < len(index) {
		nextPos = index[i].pos
	}
	return index[i-1], nextPos
}

// findTimestamp returns the last entry in front of which every batch is older than ts.
func findTimestamp(index []entry, ts int64) entry {
	i := sort.Search(len(index), func(i int) bool { return index[i].maxBefore >= ts })
	return index[max(i-1, 0)]
}

// encodeIndex writes the index of a segment's first size bytes.
func encodeIndex(base int64, p *published) []byte {
	b := make([]byte, 0, idxHeaderSize+len(p.index)*idxEntrySize+idxCRCSize)
	b = append(b, idxMagic...)
	b = binary.BigEndian.AppendUint64(b, uint64(base))
	b = binary.BigEndian.AppendUint64(b, uint64(p.size))
	b = binary.BigEndian.AppendUint64(b, uint64(p.next))
	b = binary.BigEndian.AppendUint32(b, uint32(len(p.index)))
	for _, e := range p.index {
		b = binary.BigEndian.AppendUint64(b, uint64(e.offset))
		b = binary.BigEndian.AppendUint64(b, uint64(e.pos))
		b = binary.BigEndian.AppendUint64(b, uint64(e.maxBefore))
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeIndex reads what encodeIndex wrote. size and next say how much of the
// segment the index covers.
func decodeIndex(b []byte, base int64) (index []entry, size, next int64, err error) {
	if len(b) < idxHeaderSize+idxCRCSize || string(b[:8]) != idxMagic {
		return nil, 0, 0, fmt.Errorf("%w: no header", errIndex)
	}
	body := b[:len(b)-idxCRCSize]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[len(body):]) {
		return nil, 0, 0, fmt.Errorf("%w: CRC", errIndex)
	}
	u64 := func(at int) int64 { return int64(binary.BigEndian.Uint64(body[at:])) }
	size, next = u64(16), u64(24)
	n := int64(binary.BigEndian.Uint32(body[32:]))
	if n*idxEntrySize != int64(len(body)-idxHeaderSize) {
		return nil, 0, 0, fmt.Errorf("%w: %d entries in %d bytes", errIndex, n, len(body))
	}
	if u64(8) != base || size <= 0 || next <= base || n == 0 {
		return nil, 0, 0, fmt.Errorf("%w: base %d, size %d, next offset %d", errIndex, u64(8), size, next)
	}
	index = make([]entry, n)
	last := entry{offset: base - 1, pos: -1, maxBefore: math.MinInt64}
	for i := range index {
		at := idxHeaderSize + i*idxEntrySize
		e := entry{offset: u64(at), pos: u64(at + 8), maxBefore: u64(at + 16)}
		if e.offset <= last.offset || e.pos <= last.pos || e.maxBefore < last.maxBefore || e.pos >= size || e.offset >= next {
			return nil, 0, 0, fmt.Errorf("%w: entry %d out of order", errIndex, i)
		}
		index[i], last = e, e
	}
	if index[0] != (entry{offset: base, maxBefore: math.MinInt64}) {
		return nil, 0, 0, fmt.Errorf("%w: first entry", errIndex)
	}
	return index, size, next, nil
}

// readIndexFile loads a segment's index file. It may cover fewer bytes than the segment has.
func readIndexFile(fs vfs.FS, path string, base int64) (index []entry, size, next int64, err error) {
	b, err := vfs.ReadFile(fs, path, maxIdxBytes)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("%w: %w", errIndex, err)
	}
	return decodeIndex(b, base)
}

// writeIndexFile replaces a segment's index file. It is not synced: its CRC tells
// after a crash whether it can be used.
func writeIndexFile(fs vfs.FS, path string, base int64, p *published) error {
	f, err := fs.Create(path+tmpSuffix, vfs.CategorySegment)
	if err != nil {
		return err
	}
	_, err = f.Write(encodeIndex(base, p))
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, fs.Remove(path+tmpSuffix))
	}
	return fs.Rename(path+tmpSuffix, path)
}

// indexer adds batches to a growing view of a segment.
type indexer struct{ published }

// add takes in the batch of bytes bytes at the end of the view.
func (x *indexer) add(base, next, maxTime, bytes int64) {
	if n := len(x.index); n == 0 || x.size-x.index[n-1].pos >= indexInterval {
		x.index = append(x.index, entry{offset: base, pos: x.size, maxBefore: x.maxTime})
	}
	if x.size == 0 {
		x.firstTime = maxTime
	}
	x.size += bytes
	x.next = next
	x.maxTime = max(x.maxTime, maxTime)
}
