package segment

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"chronik/internal/record"
)

// scanner walks the batches of a file from pos to end through one buffer. A
// batch whose bytes are not asked for is stepped over without being read.
type scanner struct {
	r    io.ReaderAt
	path string
	pos  int64 // of the batch to come
	end  int64 // no batch goes beyond
	want int64 // the base offset it must have

	buf []byte // buf[:n] are the file's bytes from at
	at  int64
	n   int

	h     record.Batch // the current batch's header
	start int64        // its position
}

// newScanner reads in steps of chunk bytes. want is the base offset at pos.
func newScanner(r io.ReaderAt, path string, pos, end, want int64, chunk int) *scanner {
	return &scanner{r: r, path: path, pos: pos, end: end, want: want, buf: make([]byte, min(int64(chunk), max(end-pos, record.HeaderSize)))}
}

// next steps to the next batch: io.EOF at end, else ErrCorrupt with file and byte.
func (s *scanner) next() error {
	if s.pos >= s.end {
		return io.EOF
	}
	b, err := s.bytes(s.pos, record.HeaderSize)
	if err != nil {
		return err
	}
	h, err := checkHeader(s.path, s.pos, b, s.end, s.want)
	if err != nil {
		return err
	}
	s.h, s.start = h, s.pos
	s.pos += int64(h.Size())
	s.want = h.NextOffset()
	return nil
}

// batch returns the current batch's bytes, valid until the next call.
func (s *scanner) batch() ([]byte, error) { return s.bytes(s.start, s.h.Size()) }

// checked is batch with the CRC verified.
func (s *scanner) checked() ([]byte, error) {
	b, err := s.batch()
	if err != nil {
		return nil, err
	}
	return b, checkCRC(s.path, s.start, b)
}

// bytes returns n bytes at pos. pos+n <= end holds for every caller, so the
// buffer never outgrows the file.
func (s *scanner) bytes(pos int64, n int) ([]byte, error) {
	if pos+int64(n) > s.end {
		return nil, corrupt(s.path, pos, errShort(n, s.end-pos))
	}
	if off := pos - s.at; off >= 0 && off+int64(n) <= int64(s.n) {
		return s.buf[off : off+int64(n)], nil
	}
	if n > len(s.buf) {
		s.buf = make([]byte, n)
	}
	s.at, s.n = pos, 0
	m := int(min(int64(len(s.buf)), s.end-pos))
	got, err := s.r.ReadAt(s.buf[:m], pos)
	s.n = got
	if got < n {
		return nil, readError(s.path, pos, n, got, err)
	}
	return s.buf[:n], nil
}

// checkHeader reads a batch header at pos of a file whose batches end at end.
// want is the base offset it must carry.
func checkHeader(path string, pos int64, b []byte, end, want int64) (record.Batch, error) {
	h, err := record.Header(b)
	if err != nil {
		return h, corrupt(path, pos, err)
	}
	if size := int64(h.Size()); size > end-pos {
		return h, corrupt(path, pos, errShort(int(size), end-pos))
	}
	if h.BaseOffset() != want {
		return h, corrupt(path, pos, fmt.Errorf("base offset %d, want %d", h.BaseOffset(), want))
	}
	if h.NextOffset() <= want {
		return h, corrupt(path, pos, fmt.Errorf("offset overflow at %d", want))
	}
	return h, nil
}

// checkCRC verifies the one batch in b, which lies at pos.
func checkCRC(path string, pos int64, b []byte) error {
	_, n, err := record.ParseBatch(b)
	if err == nil && n != len(b) {
		err = errShort(n, int64(len(b)))
	}
	if err != nil {
		return corrupt(path, pos, err)
	}
	return nil
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func errShort(want int, have int64) error {
	return fmt.Errorf("batch of %d bytes, %d are there", want, have)
}

func corrupt(path string, pos int64, err error) error {
	return fmt.Errorf("%w: %s: byte %d: %w", ErrCorrupt, path, pos, err)
}

// readError tells a file that is too short (corrupt) from a device that fails.
func readError(path string, pos int64, want, got int, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return corrupt(path, pos+int64(got), fmt.Errorf("file ends: %d of %d bytes", got, want))
	}
	return fmt.Errorf("read %s: byte %d: %w", path, pos, err)
}
