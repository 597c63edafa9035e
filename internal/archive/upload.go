package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"chronik/internal/bucket"
	"chronik/internal/invariant"
	"chronik/internal/snapshot"
)

// maxPieces is how many extents a chunk may be made of; a chunk that would have
// more is uploaded whole.
const maxPieces = 16

// errSlow ends an upload that takes longer than half the grace time.
var errSlow = errors.New("upload took longer than half the grace time")

// Pinned is a checkpoint that cannot go away while it is uploaded.
type Pinned interface {
	// ReadPinned fills p with a file's bytes from off.
	ReadPinned(ctx context.Context, file string, p []byte, off int64) error
}

// Uploaded says what an upload did.
type Uploaded struct {
	Ref Ref
	// BytesSent went to the object store, the manifest not included; BytesReused were there.
	BytesSent, BytesReused int64
	ObjectsSent            int
	Took                   time.Duration
}

// upload is one in the making.
type upload struct {
	cl   *Claim
	src  Pinned
	man  *Manifest
	base *Manifest // nil: there is none that is whole
	// there is what the store has; index says which of man.Objects has a sum.
	there map[Sum]int64
	index map[Sum]uint32
	out   Uploaded

	pack []byte   // the object being filled
	hole []placed // who waits for its number
}

// placed is an extent of the object being filled: its place among a file's extents.
type placed struct{ file, extent int }

// Upload brings a pinned checkpoint of which sm is the manifest into the store.
// info.Cluster, Group and LeaderTerm are the claim's.
func (cl *Claim) Upload(ctx context.Context, info Info, sm *snapshot.Manifest, src Pinned) (Uploaded, error) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	info.Cluster, info.Group, info.LeaderTerm = cl.c.id, cl.group, cl.term
	u := &upload{cl: cl, src: src, man: &Manifest{Info: info}, index: map[Sum]uint32{}}
	if err := u.run(ctx, sm); err != nil {
		return u.out, fmt.Errorf("upload %s at index %d: %w", info.Name, info.Index, err)
	}
	return u.out, nil
}

func (u *upload) run(ctx context.Context, sm *snapshot.Manifest) error {
	began := time.Now()
	if err := u.man.check(); err != nil {
		return err
	}
	// Only what was there, or was sent, less than half the grace time before the
	// manifest counts.
	short, cancel := context.WithDeadlineCause(ctx, began.Add(u.cl.opt.Grace/2), errSlow)
	defer cancel()
	if err := u.write(short, sm); err != nil {
		if errors.Is(context.Cause(short), errSlow) {
			err = errors.Join(errSlow, err)
		}
		return err
	}
	invariant.Point("archive.upload.manifest")
	if err := u.cl.c.Check(ctx, u.man); err != nil {
		return err
	}
	u.out.Took = time.Since(began)
	return nil
}

// write stores the objects, then the manifest.
func (u *upload) write(ctx context.Context, sm *snapshot.Manifest) error {
	if _, err := u.cl.fence(ctx); err != nil {
		return err
	}
	if err := u.findBase(ctx); err != nil {
		return err
	}
	for i := range sm.Files {
		if err := u.addFile(ctx, &sm.Files[i]); err != nil {
			return fmt.Errorf("file %s: %w", sm.Files[i].Name, err)
		}
	}
	if err := u.flush(ctx); err != nil {
		return err
	}
	invariant.Point("archive.upload.objects")
	if _, err := u.cl.fence(ctx); err != nil {
		return err
	}
	return u.writeManifest(ctx)
}

// findBase lists what is there and reads the newest snapshot that is whole.
func (u *upload) findBase(ctx context.Context) error {
	c, g := u.cl.c, u.cl.group
	refs, err := c.Snapshots(ctx, g)
	if err != nil {
		return err
	}
	if u.there, err = c.objects(ctx, g); err != nil {
		return err
	}
	for _, r := range refs {
		m, err := c.Manifest(ctx, r)
		if err != nil && !isDamage(err) {
			return err
		}
		if err != nil {
			continue
		}
		if _, gone := missing(m, u.there); !gone {
			u.base = m
			return nil
		}
	}
	return nil
}

// addFile adds a file: what the base has is named, the rest is sent.
func (u *upload) addFile(ctx context.Context, mf *snapshot.ManifestFile) error {
	u.man.Files = append(u.man.Files, File{ManifestFile: *mf})
	var old *File
	if u.base != nil {
		old = u.base.file(mf.Name)
	}
	var cur cursor
	if old != nil {
		cur.extents = old.Extents
	}
	var buf []byte
	for i := range mf.Chunks() {
		off, n := mf.Range(i)
		var have []Extent // the base's of the first k bytes of this chunk
		k := 0
		if old != nil && i < old.Chunks() {
			if _, k = old.Range(i); k <= n {
				have = cur.take(nil, off, k)
			}
		}
		if k == n && bytes.Equal(old.Hash(i), mf.Hash(i)) {
			u.reuse(have, n)
			continue
		}
		if buf == nil {
			buf = make([]byte, snapshot.ChunkBytes)
		}
		b := buf[:n]
		if err := u.src.ReadPinned(ctx, mf.Name, b, off); err != nil {
			return err
		}
		if sum := sha256.Sum256(b); !bytes.Equal(sum[:], mf.Hash(i)) {
			return fmt.Errorf("%w: bytes %d to %d changed since they were hashed", ErrCorrupt, off, off+int64(n))
		}
		// The beginning of a chunk that grew is not sent again.
		if len(have) > 0 && k < n && len(have) < maxPieces {
			if sum := sha256.Sum256(b[:k]); bytes.Equal(sum[:], old.Hash(i)) {
				u.reuse(have, k)
				b = b[k:]
			}
		}
		if err := u.send(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// reuse names extents of the base for the next n bytes of the file.
func (u *upload) reuse(extents []Extent, n int) {
	f := &u.man.Files[len(u.man.Files)-1]
	for _, e := range extents {
		f.Extents = addExtent(f.Extents, Extent{u.object(u.base.Objects[e.Object]), e.Off, e.Len})
	}
	u.out.BytesReused += int64(n)
}

// object returns the number of an object in the manifest.
func (u *upload) object(o Object) uint32 {
	if i, ok := u.index[o.Sum]; ok {
		return i
	}
	i := uint32(len(u.man.Objects))
	u.man.Objects = append(u.man.Objects, o)
	u.index[o.Sum] = i
	return i
}

// filling stands for the object that has no name yet.
const filling = ^uint32(0)

// send puts bytes into the object being filled.
func (u *upload) send(ctx context.Context, b []byte) error {
	if len(u.pack)+len(b) > u.cl.opt.ObjectBytes && len(u.pack) > 0 {
		if err := u.flush(ctx); err != nil {
			return err
		}
	}
	if u.pack == nil {
		u.pack = make([]byte, 0, min(u.cl.opt.ObjectBytes, u.room()))
	}
	fi := len(u.man.Files) - 1
	f := &u.man.Files[fi]
	before := len(f.Extents)
	f.Extents = addExtent(f.Extents, Extent{filling, uint32(len(u.pack)), uint32(len(b))})
	if len(f.Extents) > before {
		u.hole = append(u.hole, placed{fi, before})
	}
	u.pack = append(u.pack, b...)
	return nil
}

// room guesses how much is still to come: small snapshots take small buffers.
func (u *upload) room() int {
	const most = 1 << 30
	n := int64(0)
	f := &u.man.Files[len(u.man.Files)-1]
	n += f.Size
	return int(min(max(n, 64<<10), most))
}

// flush stores the object being filled, unless it is there, and gives its number
// to the extents that wait for it.
func (u *upload) flush(ctx context.Context) error {
	if len(u.pack) == 0 {
		return nil
	}
	o := Object{Sum: sha256.Sum256(u.pack), Size: uint32(len(u.pack))}
	size, there := u.there[o.Sum]
	there = there && size == int64(o.Size)
	if there && time.Now().Before(u.cl.safe) {
		// Garbage, which an earlier leader may be about to remove. It knows of this
		// claim by then.
		if err := sleep(ctx, time.Until(u.cl.safe)); err != nil {
			return err
		}
		there = false
	}
	if there {
		u.out.BytesReused += int64(o.Size)
	} else {
		invariant.Point("archive.upload.object")
		if err := u.cl.c.b.Put(ctx, u.cl.c.objectName(u.cl.group, o.Sum), u.pack); err != nil {
			return err
		}
		u.there[o.Sum] = int64(o.Size)
		u.out.BytesSent += int64(o.Size)
		u.out.ObjectsSent++
	}
	n := u.object(o)
	for _, p := range u.hole {
		u.man.Files[p.file].Extents[p.extent].Object = n
	}
	u.hole = u.hole[:0]
	u.pack = u.pack[:0] // after a success nobody reads it any more
	return nil
}

func (u *upload) writeManifest(ctx context.Context) error {
	b := u.man.Append(nil)
	if len(b) > MaxManifestBytes {
		return fmt.Errorf("manifest of %d bytes, at most %d", len(b), MaxManifestBytes)
	}
	sum := b[len(b)-sha256.Size:]
	m := u.man
	u.out.Ref = Ref{
		Group: m.Group, Index: m.Index, LeaderTerm: m.LeaderTerm, ManifestBytes: int64(len(b)), Modified: time.Now(),
		Object: u.cl.c.groupDir(m.Group) + manifestsDir + refName(m.Index, m.LeaderTerm, sum),
	}
	err := u.cl.c.b.PutIfAbsent(ctx, u.out.Ref.Object, b)
	if !errors.Is(err, bucket.ErrExists) {
		return err
	}
	// Its name is made of its hash: this very manifest is there. Only if it is
	// damaged it is written over.
	if _, err = u.cl.c.Manifest(ctx, u.out.Ref); isDamage(err) {
		return u.cl.c.b.Put(ctx, u.out.Ref.Object, b)
	}
	return err
}

// sleep waits for d or for ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
