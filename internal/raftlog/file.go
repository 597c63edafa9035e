package raftlog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"

	"chronik/internal/format"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

const (
	logSuffix  = ".log"
	freeSuffix = ".free" // emptied, to be used again
	newSuffix  = ".new"  // being made
)

// logFile is one file of the log. Only the sync loop changes it.
type logFile struct {
	fileHeader
	path string
	f    vfs.File
	// direct takes the frames' writes past the page cache; nil where that is not
	// possible, and once the file is sealed. Only the sync loop uses it.
	direct *vfs.Direct
	// end is where the next frame goes. dataOffset <= end <= size.
	end int64
	// written is up to where the blocks have been written once: size in a reused
	// file. Behind it they are only allocated, and the first write to one changes
	// the file system's own records (see zeroAhead). Not kept: it only costs speed.
	written int64
	// pins counts live things in the file: entry references, and the latest
	// records of replicas and of the node. live is about how many bytes they take,
	// that is, what relocating them costs. A file is free when pins is 0 and all
	// files before it are gone.
	pins int
	live int64
	// touched holds every replica that ever had a pin here (and maybe has none now).
	touched map[*replica]struct{}
	// users is 1 for the log and 1 for each reader; the last one out closes f.
	users atomic.Int32
}

func newLogFile(path string, f vfs.File, h fileHeader) *logFile {
	lf := &logFile{fileHeader: h, path: path, f: f, end: dataOffset, touched: make(map[*replica]struct{})}
	lf.users.Store(1)
	return lf
}

// acquire adds a user unless the file is closed.
func (f *logFile) acquire() bool {
	for {
		n := f.users.Load()
		if n == 0 {
			return false
		}
		if f.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (f *logFile) release() error {
	if f.users.Add(-1) == 0 {
		return f.f.Close()
	}
	return nil
}

// writeBlocks writes whole blocks. A file that refuses direct writes gets none.
func (f *logFile) writeBlocks(b []byte, off int64) error {
	if f.direct != nil {
		_, err := f.direct.WriteAt(b, off)
		if !errors.Is(err, vfs.ErrNotDirect) {
			return err
		}
		if err := f.endDirect(); err != nil {
			return err
		}
	}
	_, err := f.f.WriteAt(b, off)
	return err
}

func (f *logFile) endDirect() error {
	d := f.direct
	if f.direct = nil; d == nil {
		return nil
	}
	return d.Close()
}

func (f *logFile) corrupt(off int64, what string) error {
	return &CorruptError{File: f.path, Offset: off, What: what}
}

// readAt fills b from off. A file that ends before is corrupt: callers read what was durable.
func (f *logFile) readAt(b []byte, off int64) error {
	n, err := f.f.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return f.corrupt(off+int64(n), "file ends")
	default:
		return fmt.Errorf("raftlog: read %s at byte %d: %w", f.path, off, err)
	}
}

// readFrame reads and verifies one frame.
func (f *logFile) readFrame(off, size int64, entries bool) (frame, error) {
	b := make([]byte, size)
	if err := f.readAt(b, off); err != nil {
		return frame{}, err
	}
	return f.decodeAt(b, off, entries)
}

// decodeAt decodes the frame at the start of b, which was read from off.
func (f *logFile) decodeAt(b []byte, off int64, entries bool) (frame, error) {
	fr, err := decodeFrame(b, f.epoch, entries)
	if err != nil {
		return fr, f.corrupt(off, err.Error())
	}
	fr.off = off
	return fr, nil
}

func fileName(number uint64, suffix string) string { return fmt.Sprintf("%08d%s", number, suffix) }

// parseFileName returns the number of a name with the suffix.
func parseFileName(name, suffix string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n > 0 && fileName(n, suffix) == name
}

// newEpoch is random, not counted: a count could repeat after a crash in which a
// file's use was forgotten and its blocks were not.
func newEpoch() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}

// makeFile creates the file h describes, from spare (a path) unless that is "".
// When it returns, the file is durable under its name; before, there is none of that name.
func makeFile(fs vfs.FS, dir string, h fileHeader, spare string) (*logFile, error) {
	path := fs.PathJoin(dir, fileName(h.number, logSuffix))
	tmp := spare
	var f vfs.File
	var err error
	if spare != "" {
		f, err = fs.OpenReadWrite(spare, vfs.CategoryLog)
	} else {
		tmp = fs.PathJoin(dir, fileName(h.number, newSuffix))
		if f, err = fs.Create(tmp, vfs.CategoryLog); err == nil {
			// Create's handle may be write-only on some file systems.
			err = f.Close()
		}
		if err == nil {
			f, err = fs.OpenReadWrite(tmp, vfs.CategoryLog)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("raftlog: make %s: %w", path, err)
	}
	if err := layOut(f, h); err != nil {
		err = errors.Join(fmt.Errorf("raftlog: make %s: %w", path, err), f.Close())
		if spare == "" { // it may have taken a part of the room
			err = errors.Join(err, fs.Remove(tmp))
		}
		if vfs.IsNoSpace(err) {
			err = errors.Join(err, errNoRoom)
		}
		return nil, err
	}
	if err := nameFile(fs, dir, f, tmp, path); err != nil {
		return nil, errors.Join(fmt.Errorf("raftlog: make %s: %w", path, err), f.Close())
	}
	lf := newLogFile(path, f, h)
	lf.direct = vfs.OpenDirect(fs, path)
	if spare != "" {
		lf.written = h.size
	}
	return lf, nil
}

// errNoRoom says that there was no room for a file, of which nothing is left. No sync has failed:
// it may be made again.
var errNoRoom = errors.New("no room for the next file")

// layOut takes the room for a file and writes its header.
func layOut(f vfs.File, h fileHeader) error {
	// A file system without preallocation only costs speed.
	if err := f.Preallocate(0, h.size); vfs.IsNoSpace(err) {
		return err
	}
	_, err := f.WriteAt(h.encode(), 0)
	return err
}

// nameFile does makeFile's durable steps in their order: sync, name, directory.
func nameFile(fs vfs.FS, dir string, f vfs.File, tmp, path string) error {
	invariant.Point("raftlog/file-header-written")
	if err := f.Sync(); err != nil {
		return err
	}
	invariant.Point("raftlog/file-header-synced")
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	invariant.Point("raftlog/file-named")
	if err := vfs.SyncDir(fs, dir); err != nil {
		return err
	}
	invariant.Point("raftlog/file-durable")
	return nil
}

// openFile opens a named file and reads its header.
func openFile(fs vfs.FS, dir string, number uint64) (*logFile, error) {
	path := fs.PathJoin(dir, fileName(number, logSuffix))
	f, err := fs.OpenReadWrite(path, vfs.CategoryLog)
	if err != nil {
		return nil, fmt.Errorf("raftlog: open %s: %w", path, err)
	}
	lf := newLogFile(path, f, fileHeader{})
	b := make([]byte, fileHeaderBytes)
	if err = lf.readAt(b, 0); err == nil {
		lf.fileHeader, err = decodeFileHeader(b)
		if err == nil && lf.number != number {
			err = fmt.Errorf("%w: header of file %d", errFormat, lf.number)
		}
		if errors.Is(err, format.ErrNewer) {
			err = fmt.Errorf("raftlog: %s: %w", path, err) // whole, and not to be lost
		} else if err != nil {
			err = lf.corrupt(0, err.Error())
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return lf, nil
}
