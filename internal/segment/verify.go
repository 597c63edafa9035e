package segment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"chronik/internal/record"
	"chronik/internal/vfs"
)

// Verify reads every batch of the log, checks order and CRC, and what each says of
// it, which may be nil. The error is ErrCorrupt with file and byte, or that of ctx.
func (l *Log) Verify(ctx context.Context, each func(record.Batch) error) error {
	for _, s := range *l.list.Load() {
		if s.pub.Load().size == 0 {
			continue
		}
		if err := l.verifySegment(ctx, s, each); err != nil && !(errors.Is(err, ErrOutOfRange) && s.dropped.Load()) {
			return err
		}
	}
	return nil
}

func (l *Log) verifySegment(ctx context.Context, s *segment, each func(record.Batch) error) error {
	h, err := l.open(s)
	if err != nil {
		return err
	}
	defer l.handles.release(h)
	p := s.pub.Load()
	sc := newScanner(h.file, s.path, 0, p.size, s.base, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := sc.next()
		if errors.Is(err, io.EOF) {
			break
		}
		var b []byte
		if err == nil {
			b, err = sc.checked()
		}
		if err != nil {
			return err
		}
		if each == nil {
			continue
		}
		h, err := record.Header(b)
		if err == nil {
			err = each(h)
		}
		if err != nil {
			return corrupt(s.path, sc.start, err)
		}
	}
	if sc.want != p.next {
		return corrupt(s.path, sc.start, fmt.Errorf("ends at offset %d, want %d", sc.want, p.next))
	}
	return nil
}

// Dump writes what is in a segment or index file, one batch or entry a line, for
// people. It stops at the first byte that is wrong and returns ErrCorrupt: behind
// the length a checkpoint knows, that is the ordinary remains of a crash.
func Dump(fs vfs.FS, path string, w io.Writer) error {
	name := fs.PathBase(path)
	if digits, ok := strings.CutSuffix(name, idxSuffix); ok {
		base, ok := ParseFileName(digits + segSuffix)
		if !ok {
			return fmt.Errorf("%s: not a segment index's name", path)
		}
		return dumpIndex(fs, path, base, w)
	}
	base, ok := ParseFileName(name)
	if !ok {
		return fmt.Errorf("%s: not a segment's name (%s)", path, FileName(0))
	}
	f, err := fs.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	st, err := f.Stat()
	if err != nil {
		return err
	}
	sc := newScanner(f, path, 0, st.Size(), base, 1<<20)
	var batches, records int64
	for {
		err := sc.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		b, err := sc.checked()
		if err != nil {
			return err
		}
		h, err := record.Header(b) // the scanner's own lies where checked may have read something else
		if err != nil {
			return err
		}
		batches++
		records += int64(h.NumRecords())
		if err := dumpBatch(w, sc.start, h); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(w, "%s: %d bytes, %d batches, %d records, offsets [%d,%d)\n", name, st.Size(), batches, records, base, sc.want)
	return err
}

func dumpBatch(w io.Writer, pos int64, h record.Batch) error {
	kind := ""
	if h.IsTransactional() {
		kind += " transactional"
	}
	if h.IsControl() {
		kind += " control"
	}
	_, err := fmt.Fprintf(w, "byte %d: offsets [%d,%d) epoch %d size %d records %d codec %s timestamps [%d,%d] type %d producer %d/%d sequence %d crc %08x%s\n",
		pos, h.BaseOffset(), h.NextOffset(), h.PartitionLeaderEpoch(), h.Size(), h.NumRecords(), h.Codec(),
		h.FirstTimestamp(), h.MaxTimestamp(), h.TimestampType(), h.ProducerID(), h.ProducerEpoch(), h.BaseSequence(), h.CRC(), kind)
	return err
}

func dumpIndex(fs vfs.FS, path string, base int64, w io.Writer) error {
	index, size, next, err := readIndexFile(fs, path, base)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, e := range index {
		if _, err := fmt.Fprintf(w, "offset %d byte %d max timestamp before %d\n", e.offset, e.pos, e.maxBefore); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(w, "%s: %d entries for %d bytes, offsets [%d,%d)\n", fs.PathBase(path), len(index), size, base, next)
	return err
}
