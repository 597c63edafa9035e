package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Scratch is a file system in memory whose files may begin with bytes of another
// one that is only read: what is written behind them stays in memory. It answers
// what a change would come to without making it.
type Scratch struct {
	*MemFS
	under FS

	mu       sync.Mutex
	borrowed map[string]*borrowing
}

// borrowing is the first size bytes of a file below, and what was written behind them.
type borrowing struct {
	from string
	size int64

	mu    sync.Mutex
	extra []byte
}

// NewScratch returns an empty Scratch over under.
func NewScratch(under FS) *Scratch {
	return &Scratch{MemFS: vfs.NewMem(), under: under, borrowed: map[string]*borrowing{}}
}

// Borrow makes name begin with the first size bytes of from, a file below.
func (s *Scratch) Borrow(from, name string, size int64) error {
	st, err := s.under.Stat(from)
	if err != nil {
		return err
	}
	if st.Size() < size {
		return fmt.Errorf("%s: %d bytes, want %d: %w", from, st.Size(), size, io.ErrUnexpectedEOF)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.borrowed[path.Clean(name)] = &borrowing{from: from, size: size}
	return nil
}

func (s *Scratch) find(name string) *borrowing {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.borrowed[path.Clean(name)]
}

// Open implements FS.
func (s *Scratch) Open(name string, opts ...vfs.OpenOption) (File, error) {
	if b := s.find(name); b != nil {
		return s.open(b)
	}
	return s.MemFS.Open(name, opts...)
}

// OpenReadWrite implements FS.
func (s *Scratch) OpenReadWrite(name string, cat WriteCategory, opts ...vfs.OpenOption) (File, error) {
	if b := s.find(name); b != nil {
		return s.open(b)
	}
	return s.MemFS.OpenReadWrite(name, cat, opts...)
}

func (s *Scratch) open(b *borrowing) (File, error) {
	f, err := s.under.Open(b.from)
	if err != nil {
		return nil, err
	}
	return &scratchFile{File: f, b: b}, nil
}

// Stat implements FS.
func (s *Scratch) Stat(name string) (vfs.FileInfo, error) {
	b := s.find(name)
	if b == nil {
		return s.MemFS.Stat(name)
	}
	st, err := s.under.Stat(b.from)
	if err != nil {
		return nil, err
	}
	return sizedInfo{st, b.len()}, nil
}

// Remove implements FS.
func (s *Scratch) Remove(name string) error {
	s.mu.Lock()
	_, ok := s.borrowed[path.Clean(name)]
	delete(s.borrowed, path.Clean(name))
	s.mu.Unlock()
	if ok {
		return nil
	}
	return s.MemFS.Remove(name)
}

// Forget drops everything: what is made later starts with nothing.
func (s *Scratch) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.borrowed = map[string]*borrowing{}
	s.MemFS = vfs.NewMem()
}

func (b *borrowing) len() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size + int64(len(b.extra))
}

// sizedInfo is a file's info with another size.
type sizedInfo struct {
	vfs.FileInfo
	size int64
}

func (i sizedInfo) Size() int64 { return i.size }

// scratchFile is an open borrowed file. Reads below the borrowed size go to the file below.
type scratchFile struct {
	File
	b   *borrowing
	pos int64 // of Read; a file is read by one goroutine at a time
}

var errReadOnly = fmt.Errorf("below the borrowed bytes: %w", fs.ErrPermission)

// ReadAt implements File.
func (f *scratchFile) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < f.b.size {
		m := min(int64(len(p)), f.b.size-off)
		k, err := f.File.ReadAt(p[:m], off)
		if n = k; int64(k) < m {
			return n, err
		}
	}
	if n == len(p) {
		return n, nil
	}
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	if at := off + int64(n) - f.b.size; at < int64(len(f.b.extra)) {
		n += copy(p[n:], f.b.extra[at:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Read implements File.
func (f *scratchFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// WriteAt implements File. Borrowed bytes cannot be changed.
func (f *scratchFile) WriteAt(p []byte, off int64) (int, error) {
	if off < f.b.size {
		return 0, &os.PathError{Op: "write", Path: f.b.from, Err: errReadOnly}
	}
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	end := off - f.b.size + int64(len(p))
	if grow := end - int64(len(f.b.extra)); grow > 0 {
		f.b.extra = append(f.b.extra, make([]byte, grow)...)
	}
	return copy(f.b.extra[off-f.b.size:], p), nil
}

// Write implements File.
func (f *scratchFile) Write(p []byte) (int, error) { return f.WriteAt(p, f.b.len()) }

// Stat implements File.
func (f *scratchFile) Stat() (vfs.FileInfo, error) {
	st, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	return sizedInfo{st, f.b.len()}, nil
}

// What is only in memory needs no sync; the file below is not written.

// Sync implements File.
func (f *scratchFile) Sync() error { return nil }

// SyncData implements File.
func (f *scratchFile) SyncData() error { return nil }

// SyncTo implements File.
func (f *scratchFile) SyncTo(int64) (bool, error) { return true, nil }

// Preallocate implements File.
func (f *scratchFile) Preallocate(int64, int64) error { return nil }

// Fd implements File: nobody may bypass this file.
func (f *scratchFile) Fd() uintptr { return vfs.InvalidFd }
