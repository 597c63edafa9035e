package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// WriteInfo says what Write made.
type WriteInfo struct {
	FileBytes   int64 // the whole checkpoint file
	RawBytes    int64 // the blob as it was given
	StoredBytes int64 // the blob as it is stored
}

const (
	writeBlock = 256 << 10
	// startEvery is how many bytes a checkpoint's writer gathers before the kernel
	// is asked to begin to write them.
	startEvery = 1 << 20
	// syncEvery bounds what a background writer leaves to one sync, and what a power
	// loss takes of a transfer. By then the kernel has begun to write all but the last
	// startEvery: a sync of so much at once would make the raftlog's fdatasync wait.
	syncEvery = 8 << 20
)

// Write replaces dir's checkpoint by ck with the blob that writeBlob streams:
// all or nothing, also across a crash, and durable when it returns. The
// caller has synced every byte of ck.Files (Capture.Sync) before. writeBlob
// returns how many bytes it wrote.
func Write(fs vfs.FS, dir string, ck Checkpoint, codec Codec, writeBlob func(io.Writer) (int64, error)) (WriteInfo, error) {
	if err := ck.check(); err != nil {
		return WriteInfo{}, fmt.Errorf("write checkpoint in %s: %w", dir, err)
	}
	name := path.Join(dir, CheckpointName)
	tmp := name + ckptTmpSuffix
	info, err := writeTmp(fs, tmp, &ck, codec, writeBlob)
	if err != nil {
		return WriteInfo{}, errors.Join(fmt.Errorf("write %s: %w", tmp, err), removeIfThere(fs, tmp))
	}
	invariant.Point("snapshot.checkpoint.rename")
	if err := fs.Rename(tmp, name); err != nil {
		return WriteInfo{}, fmt.Errorf("write %s: %w", name, err)
	}
	invariant.Point("snapshot.checkpoint.renamed")
	if err := vfs.SyncDir(fs, dir); err != nil {
		return WriteInfo{}, fmt.Errorf("write %s: sync directory: %w", name, err)
	}
	invariant.Point("snapshot.checkpoint.durable")
	return info, nil
}

func writeTmp(fs vfs.FS, tmp string, ck *Checkpoint, codec Codec, writeBlob func(io.Writer) (int64, error)) (info WriteInfo, err error) {
	invariant.Point("snapshot.checkpoint.create")
	f, err := fs.Create(tmp, vfs.CategorySnapshot)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	invariant.Point("snapshot.checkpoint.created")

	head := appendHeader(nil, ck, codec)
	headCRC := binary.BigEndian.Uint32(head[len(head)-4:])
	block := blocks.Get().(*[]byte)
	defer blocks.Put(block)
	out := &blockWriter{f: f, buf: (*block)[:0]}
	if _, err := out.Write(head); err != nil {
		return info, err
	}
	raw, crc, err := compressBlob(out, codec, writeBlob)
	if err != nil {
		return info, err
	}
	foot := footer{stored: out.n - int64(len(head)), raw: raw, crc: crc}
	if _, err := out.Write(appendFooter(nil, foot, headCRC)); err != nil {
		return info, err
	}
	if err := out.flush(); err != nil {
		return info, err
	}
	invariant.Point("snapshot.checkpoint.sync")
	if err := f.Sync(); err != nil {
		return info, err
	}
	invariant.Point("snapshot.checkpoint.synced")
	return WriteInfo{FileBytes: out.n, RawBytes: raw, StoredBytes: foot.stored}, nil
}

// blocks are kept: to clear one costs more than a small checkpoint takes to encode.
var blocks = sync.Pool{New: func() any { b := make([]byte, 0, writeBlock); return &b }}

// encoders are kept: making one clears a few MiB, which costs more than a small blob.
var encoders = sync.Pool{New: func() any {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	invariant.Check(err == nil, "zstd: %v", err) // only by wrong options
	return z
}}

// compressBlob streams the blob through the codec to out.
func compressBlob(out io.Writer, codec Codec, writeBlob func(io.Writer) (int64, error)) (raw int64, crc uint32, err error) {
	var enc io.WriteCloser
	switch codec {
	case None:
		enc = nopCloser{out}
	case Gzip:
		enc = gzip.NewWriter(out)
	case Zstd:
		z := encoders.Get().(*zstd.Encoder)
		defer encoders.Put(z)
		z.Reset(out)
		enc = z
	default:
		return 0, 0, fmt.Errorf("unknown %s", codec)
	}
	t := &rawWriter{w: enc, pace: pace{began: time.Now()}}
	said, err := writeBlob(t)
	if err = errors.Join(err, enc.Close()); err != nil {
		return 0, 0, fmt.Errorf("blob at byte %d: %w", t.n, err)
	}
	if said != t.n {
		return 0, 0, fmt.Errorf("blob: %d bytes written, %d reported", t.n, said)
	}
	return t.n, t.crc, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// rawWriter counts and checksums the blob before compression.
type rawWriter struct {
	w    io.Writer
	n    int64
	crc  uint32
	pace pace
}

// paceEvery is after how many bytes of a blob its writer rests for as long as
// they took, at most paceMost. Encoding and compressing a million offsets keeps a core
// busy for half a second; whoever applies entries shares that core and, on a
// loaded machine, pays for the time slice that the encoder has used up.
const (
	paceEvery = 128 << 10
	paceMost  = 5 * time.Millisecond
)

// pace is when and where the writer last rested.
type pace struct {
	began time.Time
	at    int64
}

func (p *pace) rest(n int64) {
	if n-p.at < paceEvery {
		return
	}
	time.Sleep(min(time.Since(p.began), paceMost))
	p.began, p.at = time.Now(), n
}

func (t *rawWriter) Write(p []byte) (int, error) {
	if t.n+int64(len(p)) > MaxBlobBytes {
		return 0, fmt.Errorf("%w: blob above %d bytes", ErrTooLarge, int64(MaxBlobBytes))
	}
	n, err := t.w.Write(p)
	t.crc = crc32.Update(t.crc, castagnoli, p[:n])
	t.n += int64(n)
	t.pace.rest(t.n)
	return n, err
}

// blockWriter gathers small writes to blocks of its own (a vfs.File may scribble
// over what it is given) and syncs every syncEvery bytes.
type blockWriter struct {
	f      vfs.File
	buf    []byte
	n      int64 // bytes accepted
	begun  int64 // bytes the kernel was asked to write
	synced int64 // bytes accepted at the last sync
}

func (b *blockWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		k := min(len(p), cap(b.buf)-len(b.buf))
		b.buf = append(b.buf, p[:k]...)
		p, written, b.n = p[k:], written+k, b.n+int64(k)
		if len(b.buf) == cap(b.buf) {
			if err := b.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (b *blockWriter) flush() error {
	if _, err := b.f.Write(b.buf); err != nil {
		return err
	}
	b.buf = b.buf[:0]
	if b.n-b.begun >= startEvery {
		vfs.StartWriteBack(b.f, b.begun, b.n-b.begun)
		b.begun = b.n
	}
	if b.n-b.synced < syncEvery {
		return nil
	}
	b.synced = b.n
	return b.f.SyncData()
}
