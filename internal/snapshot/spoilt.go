package snapshot

import (
	"errors"
	"io"
	"os"
	"path"
	"syscall"

	"chronik/internal/ident"
)

// Spoilt is a file of a checkpoint here that cannot be given to others: it is missing, short, not what its
// format demands, or the disk does not read it. Who needs it would ask for it again and again.
type Spoilt struct {
	Replica ident.ReplicaID
	Dir     string // the generation
	// Name is CheckpointName if the owner can write the file anew.
	Name string
	Err  error
}

// SetSpoilt names who is told of spoilt files, on the goroutine that found them; nil ends that.
func (s *Server) SetSpoilt(f func(Spoilt)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onSpoilt = f
}

func (s *Server) tellSpoilt(r ident.ReplicaID, dir, name string, err error) {
	s.mu.Lock()
	f := s.onSpoilt
	s.mu.Unlock()
	if f != nil {
		f(Spoilt{Replica: r, Dir: dir, Name: name, Err: err})
	}
}

// isSpoilt tells whether it is the file that is to blame, and not the want of descriptors or memory.
func isSpoilt(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, os.ErrNotExist) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EIO)
}

// read fills b from off of a pinned file.
func (s *Server) read(p *servedPin, f *pinnedFile, b []byte, off int64) error {
	err := readFullAt(f.f, b, off)
	s.heed(p, f, err)
	return err
}

// heed tells of a pinned file that could not be read.
func (s *Server) heed(p *servedPin, f *pinnedFile, err error) {
	if err != nil && isSpoilt(err) {
		s.tellSpoilt(p.Replica, p.dir, f.name, &os.PathError{Op: "read", Path: path.Join(p.dir, f.name), Err: err})
	}
}
