package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"chronik/internal/vfs"
)

// A data file only grows, so of a chunk that differs as a whole the beginning is
// often here: the chunk in which the local file ends. The receiver names lengths at
// which the common part may end, the source answers with the hash of each, the
// longest that fits is taken from the local file and the rest is fetched. The
// manifest's hash of the whole chunk decides in the end, so that a wrong answer
// costs bytes and nothing else.
const (
	// maxPrefixes bounds the lengths of one request.
	maxPrefixes = 8
	// maxPrefixFiles bounds the local files that are tried for a chunk.
	maxPrefixFiles = 4
	// leastGuess is the shortest length worth a guess.
	leastGuess = 1 << 10
	// prefixTries is how often a source may fail to answer before a Fetch asks it no more.
	prefixTries = 2
	// prefixPatience is the part of the progress timeout that an answer may take:
	// the chunk itself must be asked for before the watchdog ends the Fetch.
	prefixPatience = 4
	// prefixBlock is how much a source reads at a time.
	prefixBlock = 64 << 10
)

// prefixRequest asks for the SHA-256 of the first bytes of a chunk, once for
// each length: 1 version, 8 pin, 4 chunk, 1 name length, name, 1 number of
// lengths, 4 each. Lengths ascend strictly, from 1 to ChunkBytes.
type prefixRequest struct {
	pin     uint64
	chunk   uint32
	name    string
	lengths []int
}

func (r prefixRequest) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, 0, 15+len(r.name)+4*len(r.lengths))
	b = append(b, reqVersion)
	b = be.AppendUint64(b, r.pin)
	b = be.AppendUint32(b, r.chunk)
	b = appendName(b, r.name)
	b = append(b, byte(len(r.lengths)))
	for _, n := range r.lengths {
		b = be.AppendUint32(b, uint32(n))
	}
	return b
}

func decodePrefixRequest(b []byte) (prefixRequest, error) {
	d := decoder{buf: b}
	d.version(reqVersion)
	r := prefixRequest{pin: d.u64("pin"), chunk: d.u32("chunk"), name: d.name("file name")}
	count := int(d.u8("length count"))
	if d.err == nil && (count == 0 || count > maxPrefixes) {
		d.off--
		d.fail(fmt.Sprintf("%d lengths, not 1 to %d", count, maxPrefixes))
	}
	last := 0
	for range count {
		n := d.u32("length")
		if d.err == nil && (n > ChunkBytes || int(n) <= last) {
			d.off -= 4
			d.fail(fmt.Sprintf("length %d after %d, at most %d", n, last, ChunkBytes))
		}
		if d.err != nil {
			break
		}
		last = int(n)
		r.lengths = append(r.lengths, last)
	}
	if err := d.end(); err != nil {
		return prefixRequest{}, fmt.Errorf("snapshot request: %w", err)
	}
	return r, nil
}

// prefixReply hashes the beginning of a chunk. What lies behind the size that
// the checkpoint names is never read: it is no part of the snapshot.
func (s *Server) prefixReply(ctx context.Context, r prefixRequest) []byte {
	p, refusal := s.turnOf(ctx, r.pin)
	if p == nil {
		return refusal
	}
	defer s.release(p)
	f := p.file(r.name)
	if f == nil {
		return textReply(statusError, fmt.Sprintf("snapshot has no file %q", r.name))
	}
	off, longest := int64(r.chunk)*ChunkBytes, r.lengths[len(r.lengths)-1]
	if off+int64(longest) > f.size {
		return textReply(statusError, fmt.Sprintf("file %s has %d bytes, asked for %d from %d", r.name, f.size, longest, off))
	}
	n := len(r.lengths) * sha256.Size
	if s.throttle(ctx, n) != n { // never shortened: leastReply is more
		return waitReply(s.worked.Load())
	}
	b, err := hashPrefixes(make([]byte, 1, 1+n), f.f, off, r.lengths)
	if err != nil {
		s.heed(p, f, err)
		return textReply(statusError, fmt.Sprintf("file %s: %s", r.name, err))
	}
	s.credit(p, n)
	return b
}

// hashPrefixes appends the hash of each prefix of f from off to dst, reading
// every byte once.
func hashPrefixes(dst []byte, f vfs.File, off int64, lengths []int) ([]byte, error) {
	h := sha256.New()
	buf := make([]byte, min(prefixBlock, lengths[len(lengths)-1]))
	at := 0
	for _, length := range lengths {
		for at < length {
			b := buf[:min(len(buf), length-at)]
			if err := readFullAt(f, b, off+int64(at)); err != nil {
				return nil, err
			}
			h.Write(b)
			at += len(b)
		}
		dst = h.Sum(dst)
	}
	return dst, nil
}

// localFile is a file on this node that may begin like a file of the snapshot.
type localFile struct {
	name string
	size int64
	// kept is the length its checkpoint names, 0 if unknown: what lies behind may
	// be remains of a crash.
	kept int64
}

// cut says in which chunk a shorter copy of f that has end bytes ends, and with
// how many bytes of it. ok is false if no chunk is cut.
func (f *ManifestFile) cut(end int64) (chunk, n int, ok bool) {
	if end <= 0 || end >= f.Size {
		return 0, 0, false
	}
	chunk, n = int(end/ChunkBytes), int(end%ChunkBytes)
	return chunk, n, n > 0
}

// addLocal notes a file that ends, or whose checkpointed part ends, within a
// chunk that nobody here has.
func (p *filePlan) addLocal(l localFile) {
	if len(p.locals) == maxPrefixFiles {
		return
	}
	for _, end := range [...]int64{l.size, min(l.kept, l.size)} {
		if chunk, _, ok := p.mf.cut(end); ok && !p.have[chunk] {
			p.locals = append(p.locals, l)
			return
		}
	}
}

// keptBytes is the length of a file that the checkpoint in dir names, 0 if
// there is none. Only the planner calls it.
func (t *transfer) keptBytes(dir, name string) int64 {
	kept, ok := t.kept[dir]
	if !ok {
		t.progress()
		ck, err := ReadHeader(t.r.opt.FS, dir)
		if err != nil && !errors.Is(err, ErrNoCheckpoint) {
			t.unreadable(dir, err)
		}
		kept = make(map[string]int64)
		for _, f := range ck.Files {
			if _, ok := t.space[f.Name]; ok {
				kept[f.Name] = f.Size
			}
		}
		t.kept[dir] = kept
	}
	return kept[name]
}

// prefixLengths lists where the common part of chunk and the local files may end,
// ascending. The ends of the files come first; halves of the longest fill the room
// that is left, so that damage near the end does not cost the whole.
func prefixLengths(mf *ManifestFile, chunk int, locals []localFile) []int {
	var lengths []int
	add := func(n int) {
		if len(lengths) < maxPrefixes && !slices.Contains(lengths, n) {
			lengths = append(lengths, n)
		}
	}
	for _, l := range locals {
		for _, end := range [...]int64{l.size, min(l.kept, l.size)} {
			if c, n, ok := mf.cut(end); ok && c == chunk {
				add(n)
			}
		}
	}
	if len(lengths) == 0 {
		return nil
	}
	for n := slices.Max(lengths) / 2; n >= leastGuess && len(lengths) < maxPrefixes; n /= 2 {
		add(n)
	}
	slices.Sort(lengths)
	return lengths
}

// localPrefix fills buf with the longest beginning of a chunk that is on this
// node and that the source confirms, and returns its length. Whatever fails,
// the chunk can be fetched whole.
func (t *transfer) localPrefix(j job, buf []byte) int {
	lengths := prefixLengths(j.f.mf, j.chunk, j.f.locals)
	if len(lengths) == 0 {
		return 0
	}
	sums := t.askPrefixes(j, lengths)
	if sums == nil {
		return 0
	}
	off, _ := j.f.mf.Range(j.chunk)
	for i, n := range slices.Backward(lengths) {
		want := sums[i*sha256.Size:][:sha256.Size]
		for _, l := range j.f.locals {
			if l.size < off+int64(n) {
				continue
			}
			if t.localWork() != nil {
				return 0
			}
			if err := t.readLocal(l.name, buf[:n], off); err != nil {
				t.unreadable(l.name, err)
				continue
			}
			if sum := sha256.Sum256(buf[:n]); slices.Equal(sum[:], want) {
				return n
			}
		}
	}
	return 0
}

func (t *transfer) readLocal(name string, b []byte, off int64) error {
	f, err := t.r.opt.FS.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(readFullAt(f, b, off), f.Close())
}

// askPrefixes asks one source, once. nil is no answer; a source that gives none
// again and again, for it may not know the question, is not asked any more.
func (t *transfer) askPrefixes(j job, lengths []int) []byte {
	i := t.nextSource(0)
	if i < 0 || t.sources[i].prefixFailures.Load() >= prefixTries {
		return nil
	}
	req := prefixRequest{pin: t.offer.Sources[i].Pin, chunk: uint32(j.chunk), name: j.f.mf.Name, lengths: lengths}
	b, err := t.exchange(i, MethodPrefixHash, req.encode(), nil, t.r.opt.ProgressTimeout/prefixPatience)
	if err == nil && len(b) != len(lengths)*sha256.Size {
		err = fmt.Errorf("%w: %d bytes of hashes for %d lengths", ErrCorrupt, len(b), len(lengths))
	}
	if err != nil {
		if t.ctx.Err() == nil && !errors.Is(err, ErrPinGone) {
			t.sources[i].prefixFailures.Add(1)
			t.r.opt.Logger.Info("Failed to compare prefixes, fetching the whole chunk", "group", t.offer.Group,
				"peer", t.offer.Sources[i].Node, "file", j.f.mf.Name, "err", err)
		}
		return nil
	}
	t.count(len(b), t.sources[i].name)
	return b
}
