package segment

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync/atomic"

	"chronik/internal/vfs"
)

const (
	segSuffix = ".seg"
	idxSuffix = ".idx"
	tmpSuffix = ".tmp"
	// baseDigits is the length of a file name before its suffix: enough for any int64.
	baseDigits = 20
)

// FileName is the name of the segment file whose first offset is base.
func FileName(base int64) string { return fmt.Sprintf("%0*d%s", baseDigits, base, segSuffix) }

// ParseFileName is the inverse of FileName.
func ParseFileName(name string) (base int64, ok bool) {
	digits, ok := strings.CutSuffix(name, segSuffix)
	if !ok || len(digits) != baseDigits {
		return 0, false
	}
	base, err := strconv.ParseInt(digits, 10, 64)
	return base, err == nil && base >= 0 && FileName(base) == name
}

func idxName(segName string) string { return strings.TrimSuffix(segName, segSuffix) + idxSuffix }

// Info describes one segment file as a checkpoint keeps it.
type Info struct {
	BaseOffset int64 // of the first batch
	NextOffset int64 // behind the last batch
	Size       int64 // bytes that belong to the log; the file may be longer
	// FirstTimestamp is the max timestamp of the first batch: rolls by time count from it.
	FirstTimestamp int64
	MaxTimestamp   int64 // of all batches
}

// Name is the segment's file name.
func (i Info) Name() string { return FileName(i.BaseOffset) }

// segment is one file. Only the apply goroutine appends to it and only while it
// is the last of the list; everybody reads through pub.
type segment struct {
	base int64
	name string // within the log's directory
	path string

	// pub is what readers may see. The apply goroutine replaces it after each
	// write; once the segment is sealed the syncer replaces it to give the index free.
	pub atomic.Pointer[published]

	// w is the write handle: opened by the first write, closed by the sync that
	// follows sealing (until then an error of write-back is reported to it).
	w atomic.Pointer[refFile]

	// synced is how many bytes are known durable. Only the syncer moves it, under
	// Log.syncMu. Invariant: synced <= pub.size.
	synced atomic.Int64
	// indexed is the size the file .idx covers, 0 if there is none. Syncer's.
	indexed atomic.Int64
	// started is up to where write-back was asked for. Apply goroutine's.
	started int64

	// rebuilt: the index was built again because it contradicted the batches. Once
	// is enough: what is still wrong then is the file.
	rebuilt atomic.Bool

	dropped atomic.Bool
	dropSeq uint64 // Log.seq of the drop; under Log.mu
}

// published is a consistent view of a segment. Immutable; the array behind index
// is shared with later views, which only write behind this one's length.
type published struct {
	size      int64 // bytes that may be read
	next      int64 // offset behind them
	firstTime int64 // max timestamp of the first batch
	maxTime   int64 // of all batches
	index     []entry
	// indexOnDisk: index is nil and to be loaded from the .idx file, or rebuilt.
	indexOnDisk bool
}

func newSegment(fs vfs.FS, dir string, base int64) *segment {
	s := &segment{base: base, name: FileName(base)}
	s.path = fs.PathJoin(dir, s.name)
	s.pub.Store(&published{next: base, firstTime: math.MinInt64, maxTime: math.MinInt64})
	return s
}

func (s *segment) info() Info {
	p := s.pub.Load()
	return Info{BaseOffset: s.base, NextOffset: p.next, Size: p.size, FirstTimestamp: p.firstTime, MaxTimestamp: p.maxTime}
}

// refFile is an open file that closes when the last of its users is done.
type refFile struct {
	vfs.File
	refs atomic.Int32
}

// newRefFile returns f with one reference, the owner's.
func newRefFile(f vfs.File) *refFile {
	r := &refFile{File: f}
	r.refs.Store(1)
	return r
}

// acquire takes a reference, or says the file is closed already.
func (r *refFile) acquire() bool {
	for {
		n := r.refs.Load()
		if n == 0 {
			return false
		}
		if r.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release gives a reference back. Errors of close are of no use: what must be
// durable was synced before.
func (r *refFile) release() {
	if r.refs.Add(-1) == 0 {
		_ = r.Close()
	}
}
