package record

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// maxZstdWindows bounds the windows of all frames of a batch that are larger than those
// before them: for each of them the decoder makes new memory. A client writes one frame.
const maxZstdWindows = maxZstdWindow + maxZstdWindow/4

// checkWindows walks the frames in src by their headers and those of their blocks
// (RFC 8878). It returns ErrTooLarge if their windows rise too often. What is no frame
// ends the walk: the decoder says what is wrong with it.
func checkWindows(src []byte) error {
	largest, sum := uint64(0), uint64(0)
	for len(src) > 0 {
		var h zstd.Header
		if h.Decode(src) != nil || h.HeaderSize > len(src) {
			return nil
		}
		src = src[h.HeaderSize:]
		if h.Skippable {
			if uint64(h.SkippableSize) > uint64(len(src)) {
				return nil
			}
			src = src[h.SkippableSize:]
			continue
		}
		window := h.WindowSize
		if h.SingleSegment {
			window = h.FrameContentSize
		}
		if window > largest && window <= maxZstdWindow { // above: refused by itself
			largest = window
			if sum += window; sum > maxZstdWindows {
				return fmt.Errorf("%w: zstd frames with windows of %d bytes in all", ErrTooLarge, sum)
			}
		}
		var ok bool
		if src, ok = skipBlocks(src); !ok {
			return nil
		}
		if h.HasCheckSum {
			src = src[min(4, len(src)):]
		}
	}
	return nil
}

// skipBlocks returns what stands behind a frame's blocks. A block's header has three
// bytes, little endian: last, two bits of type, the size.
func skipBlocks(b []byte) ([]byte, bool) {
	for len(b) >= 3 {
		head := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
		size := head >> 3
		if head>>1&3 == 1 {
			size = 1 // one byte, repeated
		}
		if size > len(b)-3 {
			return nil, false
		}
		b = b[3+size:]
		if head&1 == 1 {
			return b, true
		}
	}
	return nil, false
}
