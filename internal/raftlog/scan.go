package raftlog

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"chronik/internal/ident"
)

// badSpot is a place where a frame should be and no valid one is.
type badSpot struct {
	off int64
	lsn uint64 // the LSN expected there
	// told: the frame's header is intact, and names the owner and where the next one is.
	told    bool
	kind    uint8
	group   ident.GroupID
	replica ident.ReplicaID
	// started: the bytes begin like a frame of this file's present use. Else
	// the log may simply end here.
	started bool
	what    string
}

// scanResult is what a file's bytes tell by themselves. Frames and bad spots are
// in LSN order; behind the last bad spot there may be valid frames.
type scanResult struct {
	frames []frame
	bad    []badSpot // the last one is the end of the frames, if nothing valid follows
	// durable is the highest durable_upto of any valid frame.
	durable uint64
}

// end returns where the file's frames end: where the final bad spot is.
func (s *scanResult) end() int64 { return s.bad[len(s.bad)-1].off }

// lastLSN returns the highest LSN seen, 0 if there is none.
func (s *scanResult) lastLSN() uint64 {
	if n := len(s.frames); n > 0 {
		return s.frames[n-1].lsn
	}
	return 0
}

// scan reads a file's bytes frame by frame. Where a frame is bad it goes on: at the
// next one if the header is intact, else at the next place where a valid
// frame with a later LSN begins.
func scan(data []byte, h *fileHeader) scanResult {
	var res scanResult
	off, lsn := int64(dataOffset), h.firstLSN
	for {
		var b []byte
		if off < int64(len(data)) {
			b = data[off:]
		}
		f, err := decodeFrame(b, h.epoch, false)
		if err == nil && f.lsn == lsn {
			f.off = off
			res.frames = append(res.frames, f)
			res.durable = max(res.durable, f.durable)
			off, lsn = f.end(), lsn+1
			continue
		}
		spot := badSpot{off: off, lsn: lsn, started: startsFrame(b, h.epoch)}
		if err == nil {
			err = fmt.Errorf("%w: frame %d where %d belongs", errFormat, f.lsn, lsn)
		} else if head, _, herr := decodeFrameHeader(b, h.epoch); herr == nil && head.lsn == lsn {
			spot.told, spot.kind, spot.group, spot.replica = true, head.kind, head.group, head.replica
			off, lsn = off+head.size, lsn+1
		}
		spot.what = err.Error()
		res.bad = append(res.bad, spot)
		if spot.told {
			continue
		}
		next := resync(data, off, lsn, h.epoch)
		if next < 0 {
			return res
		}
		off = next
		lsn = binary.BigEndian.Uint64(data[off+16:])
	}
}

// startsFrame tells whether b begins like a frame with this epoch.
func startsFrame(b []byte, epoch uint64) bool {
	return len(b) >= frameHeaderBytes && (binary.BigEndian.Uint32(b) == frameMagic && binary.BigEndian.Uint64(b[32:]) == epoch)
}

// resync returns the offset of the first valid frame behind off with an LSN of at
// least lsn, or -1. The epoch, random and inside the checksum, makes a false
// find as good as impossible; it is also what is searched for.
func resync(data []byte, off int64, lsn uint64, epoch uint64) int64 {
	const epochAt = 32
	pattern := binary.BigEndian.AppendUint64(nil, epoch)
	for from := off + frameAlign + epochAt; from < int64(len(data)); {
		i := bytes.Index(data[from:], pattern)
		if i < 0 {
			return -1
		}
		at := from + int64(i) - epochAt
		if at%frameAlign == 0 {
			f, err := decodeFrame(data[at:], epoch, false)
			if err == nil && f.lsn >= lsn {
				return at
			}
		}
		from += int64(i) + 1
	}
	return -1
}
