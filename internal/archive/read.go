package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"chronik/internal/bucket"
	"chronik/internal/ident"
	"chronik/internal/snapshot"
)

// readers is how many chunks are read at a time.
const readers = 4

// readExtents fills buf from extents of m's objects.
func (c *Cluster) readExtents(ctx context.Context, m *Manifest, extents []Extent, buf []byte) error {
	for _, e := range extents {
		name := c.objectName(m.Group, m.Objects[e.Object].Sum)
		n, err := c.b.ReadAt(ctx, name, buf[:e.Len], int64(e.Off))
		switch {
		case errors.Is(err, bucket.ErrNotFound):
			return fmt.Errorf("%w: %w", ErrIncomplete, err)
		case err != nil:
			return err
		case n < int(e.Len):
			return c.corrupt(name, "it ends at byte %d of %d", int64(e.Off)+int64(n), m.Objects[e.Object].Size)
		}
		buf = buf[e.Len:]
	}
	return nil
}

// readChunk reads chunk i of f into buf and judges it by its hash.
func (c *Cluster) readChunk(ctx context.Context, m *Manifest, f *File, i int, buf []byte) ([]byte, error) {
	_, n := f.Range(i)
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	extents := f.chunkExtents(i)
	var err error
	for range 2 { // what came wrong over the wire is no damage yet: it costs a whole snapshot
		if err = c.readExtents(ctx, m, extents, buf); err != nil && !errors.Is(err, ErrCorrupt) {
			break
		}
		if sum := sha256.Sum256(buf); err == nil && bytes.Equal(sum[:], f.Hash(i)) {
			return buf, nil
		}
	}
	if err == nil {
		err = c.blame(ctx, m, extents)
	}
	return nil, fmt.Errorf("file %s, chunk %d: %w", f.Name, i, err)
}

// blame finds which of the objects that make up a bad chunk is not what its name
// says. The place is as exact as the hashes are: the chunk's part of the object.
func (c *Cluster) blame(ctx context.Context, m *Manifest, extents []Extent) error {
	for _, e := range extents {
		o := m.Objects[e.Object]
		name := c.objectName(m.Group, o.Sum)
		buf := make([]byte, o.Size)
		n, err := c.b.ReadAt(ctx, name, buf, 0)
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(buf[:n]); sum != o.Sum || n != int(o.Size) {
			return c.corrupt(name, "bytes %d to %d are not what their SHA-256 says", e.Off, e.Off+e.Len)
		}
	}
	e := extents[0]
	return c.corrupt(c.objectName(m.Group, m.Objects[e.Object].Sum),
		"bytes %d to %d were wrong when read before, or the manifest's hash of them is", e.Off, e.Off+e.Len)
}

// chunkRef is chunk i of m.Files[file].
type chunkRef struct{ file, i int }

// eachChunk reads every chunk and calls do from several goroutines with its
// bytes, or with why it could not be had. It ends with do's first error.
func (c *Cluster) eachChunk(ctx context.Context, m *Manifest, do func(r chunkRef, b []byte, err error) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	jobs := make(chan chunkRef)
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			buf := make([]byte, snapshot.ChunkBytes)
			for r := range jobs {
				if ctx.Err() != nil {
					continue
				}
				b, err := c.readChunk(ctx, m, &m.Files[r.file], r.i, buf)
				if err := do(r, b, err); err != nil {
					cancel(err)
				}
			}
		})
	}
	for fi := range m.Files {
		for i := range m.Files[fi].Chunks() {
			select {
			case jobs <- chunkRef{fi, i}:
			case <-ctx.Done():
			}
		}
	}
	close(jobs)
	wg.Wait()
	return context.Cause(ctx)
}

// Damage is a part of a snapshot that is not what it should be.
type Damage struct {
	File  string
	Chunk int
	// Err names the object and the bytes.
	Err error
}

// Verified is what Verify has read.
type Verified struct {
	Files, Chunks, Objects int
	Bytes                  int64
	Damaged                int
}

// Verify reads every byte of a snapshot and compares it with its hash. found
// hears of what is wrong, one call at a time; Verify goes on behind it. The
// error is for a store that does not answer.
func (c *Cluster) Verify(ctx context.Context, m *Manifest, found func(Damage)) (Verified, error) {
	v := Verified{Files: len(m.Files), Objects: len(m.Objects)}
	var mu sync.Mutex
	err := c.eachChunk(ctx, m, func(r chunkRef, b []byte, err error) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			v.Chunks++
			v.Bytes += int64(len(b))
		case !isDamage(err):
			return err
		default:
			v.Damaged++
			found(Damage{File: m.Files[r.file].Name, Chunk: r.i, Err: err})
		}
		return nil
	})
	return v, err
}

// Source returns the group's newest snapshots as a source of chunks, nil if the
// store has none that can be read.
func (c *Cluster) Source(ctx context.Context, g ident.GroupID) (snapshot.ChunkSource, error) {
	refs, err := c.Snapshots(ctx, g)
	if err != nil {
		return nil, err
	}
	s := &source{c: c}
	for _, r := range refs {
		m, err := c.Manifest(ctx, r)
		if isDamage(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// The next one helps where the newest is damaged.
		if s.manifests = append(s.manifests, m); len(s.manifests) == 2 {
			break
		}
	}
	if len(s.manifests) == 0 {
		return nil, nil
	}
	return s, nil
}

// source implements snapshot.ChunkSource.
type source struct {
	c         *Cluster
	manifests []*Manifest // newest first
}

// Name implements snapshot.ChunkSource.
func (s *source) Name() string { return "object store" }

// Close implements snapshot.ChunkSource.
func (s *source) Close() {}

// ReadChunk implements snapshot.ChunkSource. A chunk is looked for in the same
// place of the same file: data files only grow.
func (s *source) ReadChunk(ctx context.Context, f *snapshot.ManifestFile, i int, buf []byte) ([]byte, error) {
	_, n := f.Range(i)
	var errs []error
	for _, m := range s.manifests {
		have := m.file(f.Name)
		if have == nil || i >= have.Chunks() {
			continue
		}
		if _, k := have.Range(i); k != n || !bytes.Equal(have.Hash(i), f.Hash(i)) {
			continue
		}
		b, err := s.c.readChunk(ctx, m, have, i, buf)
		if err == nil {
			return b, nil
		}
		errs = append(errs, err)
		if !isDamage(err) {
			break
		}
	}
	if len(errs) == 0 {
		return nil, snapshot.ErrNoChunk
	}
	return nil, errors.Join(errs...)
}
