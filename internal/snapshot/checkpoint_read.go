package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"slices"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"chronik/internal/vfs"
)

// File is an open checkpoint file. Header and footer are checked; the blob is
// checked as it is read.
type File struct {
	Checkpoint
	Codec     Codec
	RawBytes  int64
	FileBytes int64

	f         vfs.File
	name      string
	headBytes int64
	foot      footer
}

// Open opens dir's checkpoint. It returns ErrNoCheckpoint if there is none.
func Open(fs vfs.FS, dir string) (*File, error) {
	return OpenFile(fs, path.Join(dir, CheckpointName))
}

// OpenFile opens a checkpoint file by its own name.
func OpenFile(fs vfs.FS, name string) (*File, error) {
	f, err := fs.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: %w", name, ErrNoCheckpoint, err)
	}
	if err != nil {
		return nil, err
	}
	file, err := newFile(f, name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return file, nil
}

func newFile(f vfs.File, name string) (*File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := st.Size()
	if size < headMinBytes+footBytes {
		return nil, fmt.Errorf("%w: %d bytes are too short for a checkpoint", ErrCorrupt, size)
	}
	start, err := readAt(f, 0, headFixed)
	if err != nil {
		return nil, err
	}
	n, err := headerLength(start)
	if err != nil {
		return nil, err
	}
	if int64(n) > size-footBytes {
		return nil, fmt.Errorf("%w: header length %d at byte 12, the file has %d", ErrCorrupt, n, size)
	}
	head, err := readAt(f, 0, n)
	if err != nil {
		return nil, err
	}
	ck, codec, err := decodeHeader(head)
	if err != nil {
		return nil, err
	}
	end, err := readAt(f, size-footBytes, footBytes)
	if err != nil {
		return nil, err
	}
	foot, err := decodeFooter(end, binary.BigEndian.Uint32(head[n-4:]), size-footBytes-int64(n))
	if err != nil {
		return nil, fmt.Errorf("footer at byte %d: %w", size-footBytes, err)
	}
	return &File{
		Checkpoint: ck, Codec: codec, RawBytes: foot.raw, FileBytes: size,
		f: f, name: name, headBytes: int64(n), foot: foot,
	}, nil
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// ReadBlob returns the whole blob, decompressed and checked. What it allocates
// is bounded by what it has decoded, not by the declared length alone.
func (f *File) ReadBlob() ([]byte, error) {
	first := min(f.foot.raw, 64*f.foot.stored+writeBlock)
	b := make([]byte, 0, first)
	err := f.decode(func(p []byte) {
		if need := len(b) + len(p); need > cap(b) {
			b = slices.Grow(b, int(min(f.foot.raw, 2*int64(need)))-len(b))
		}
		b = append(b, p...)
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Verify decodes the blob and checks its length and checksum.
func (f *File) Verify() error { return f.decode(func([]byte) {}) }

// decode streams the raw blob to emit in blocks and checks it at the end.
func (f *File) decode(emit func([]byte)) error {
	in := io.NewSectionReader(f.f, f.headBytes, f.foot.stored)
	dec, err := newDecompressor(in, f.Codec)
	if err != nil {
		return f.blobError(0, err)
	}
	defer func() { _ = dec.Close() }() // frees memory only
	buf := make([]byte, writeBlock)
	var n int64
	var crc uint32
	for {
		k, err := dec.Read(buf)
		if n+int64(k) > f.foot.raw {
			return f.blobError(n, fmt.Errorf("more than the declared %d raw bytes", f.foot.raw))
		}
		crc = crc32.Update(crc, castagnoli, buf[:k])
		n += int64(k)
		emit(buf[:k])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return f.blobError(n, err)
		}
	}
	if n != f.foot.raw {
		return f.blobError(n, fmt.Errorf("declared raw length is %d", f.foot.raw))
	}
	if crc != f.foot.crc {
		return f.blobError(n, fmt.Errorf("blob CRC %08x, computed %08x", f.foot.crc, crc))
	}
	return nil
}

func (f *File) blobError(raw int64, err error) error {
	return fmt.Errorf("%s: %w: blob in bytes %d to %d, after %d raw bytes: %w",
		f.name, ErrCorrupt, f.headBytes, f.headBytes+f.foot.stored, raw, err)
}

func newDecompressor(r io.Reader, codec Codec) (io.ReadCloser, error) {
	switch codec {
	case None:
		return io.NopCloser(r), nil
	case Gzip:
		return gzip.NewReader(r)
	case Zstd:
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	default:
		return nil, fmt.Errorf("unknown %s", codec)
	}
}

// Read returns dir's checkpoint and its blob. It returns ErrNoCheckpoint if there is none.
func Read(fs vfs.FS, dir string) (Checkpoint, []byte, error) {
	f, err := Open(fs, dir)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	blob, err := f.ReadBlob()
	if err = errors.Join(err, f.Close()); err != nil {
		return Checkpoint{}, nil, err
	}
	return f.Checkpoint, blob, nil
}

// ReadHeader returns dir's checkpoint without its blob.
func ReadHeader(fs vfs.FS, dir string) (Checkpoint, error) {
	f, err := Open(fs, dir)
	if err != nil {
		return Checkpoint{}, err
	}
	return f.Checkpoint, f.Close()
}

// readAt returns exactly n bytes from off.
func readAt(f vfs.File, off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	return b, readFullAt(f, b, off)
}

// readFullAt fills b from off.
func readFullAt(f vfs.File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at byte %d: got %d: %w", len(b), off, n, err)
}

// removeIfThere removes a file; it is no error if there is none.
func removeIfThere(fs vfs.FS, name string) error {
	if err := fs.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
