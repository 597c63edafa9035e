package snapshot

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"sync"
	"time"
)

// errNotReady says that a manifest is still being computed.
var errNotReady = errors.New("manifest not ready")

// pinManifest is computed once a pin, file by file. ready is closed when the rest
// is set; the hashes known so far are handed out before.
type pinManifest struct {
	ready   chan struct{}
	encoded []byte
	id      ManifestID
	err     error

	mu     sync.Mutex
	hashes [][]byte      // by file: those of its first chunks
	grown  chan struct{} // closed and replaced when hashes have grown
}

// set says that file i's hashes are these, and wakes who waits for them. The slice
// may grow behind its end later, but does not change.
func (m *pinManifest) set(i int, hashes []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hashes[i] = hashes
	close(m.grown)
	m.grown = make(chan struct{})
}

func (m *pinManifest) get(i int) (hashes []byte, grown <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hashes[i], m.grown
}

// startManifest returns p's manifest, perhaps still being computed: the first call
// starts the work. p is held by the caller.
func (s *Server) startManifest(p *servedPin) (*pinManifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.man == nil {
		if s.closed || p.ended {
			return nil, ErrClosed
		}
		p.man = &pinManifest{ready: make(chan struct{}), hashes: make([][]byte, len(p.files)), grown: make(chan struct{})}
		p.inflight++ // the files stay open while they are hashed
		s.wg.Add(1)
		go s.computeManifest(p, p.man)
	}
	return p.man, nil
}

// manifest returns p's manifest, waiting a while for it. p is held by the caller.
func (s *Server) manifest(ctx context.Context, p *servedPin) (*pinManifest, error) {
	m, err := s.startManifest(p)
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(longPoll)
	defer timer.Stop()
	select {
	case <-m.ready:
		return m, m.err
	case <-p.done:
		return nil, ErrPinGone
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, errNotReady
	}
}

// Manifest returns a pin's manifest, waiting for it, without a slot. For the
// object store and tests; receivers get it through Handle.
func (s *Server) Manifest(ctx context.Context, id uint64) (*Manifest, ManifestID, error) {
	for {
		p := s.hold(id)
		if p == nil {
			return nil, ManifestID{}, ErrPinGone
		}
		m, err := s.manifest(ctx, p)
		s.release(p)
		if errors.Is(err, errNotReady) {
			continue
		}
		if err != nil {
			return nil, ManifestID{}, err
		}
		man, err := DecodeManifest(m.encoded)
		return man, m.id, err
	}
}

func (s *Server) computeManifest(p *servedPin, m *pinManifest) {
	defer s.wg.Done()
	defer s.release(p)
	defer close(m.ready)
	select {
	case s.hashing <- struct{}{}:
		defer func() { <-s.hashing }()
	case <-p.done:
		m.err = ErrPinGone
		return
	}
	man := Manifest{Files: make([]ManifestFile, 0, len(p.files))}
	buf := make([]byte, ChunkBytes)
	for i := range p.files {
		f := &p.files[i]
		hashes, err := s.hashFile(p, f, buf, func(known []byte) { m.set(i, known) })
		if err != nil {
			m.err = fmt.Errorf("manifest: file %s: %w", path.Join(p.dir, f.name), err)
			return
		}
		man.Files = append(man.Files, ManifestFile{Name: f.name, Size: f.size, Hashes: hashes})
	}
	m.encoded = man.Append(nil)
	m.id = sha256.Sum256(m.encoded)
}

// hashFile returns the hashes of f's chunks. Those of whole chunks are
// remembered by path: within one process a path in a generation directory is
// never another file's, and a data file only grows. The checkpoint file is
// replaced by its successor and so not remembered.
func (s *Server) hashFile(p *servedPin, f *pinnedFile, buf []byte, known func([]byte)) ([]byte, error) {
	key := path.Join(p.dir, f.name)
	n, whole := chunkCount(f.size), int(f.size/ChunkBytes)
	hashes := make([]byte, 0, n*sha256.Size)
	if f.name != CheckpointName {
		hashes = append(hashes, s.hashes.get(key, whole)...)
	}
	cached := len(hashes) / sha256.Size
	mf := ManifestFile{Size: f.size}
	for i := cached; i < n; i++ {
		if (i-cached)%tellEvery == tellEvery-1 {
			known(hashes)
		}
		select {
		case <-p.done:
			return nil, ErrPinGone
		default:
		}
		off, k := mf.Range(i)
		if err := s.read(p, f, buf[:k], off); err != nil {
			return nil, err
		}
		sum := sha256.Sum256(buf[:k])
		hashes = append(hashes, sum[:]...)
		s.worked.Add(1)
	}
	known(hashes)
	if f.name != CheckpointName && whole > cached {
		s.hashes.put(key, hashes[:whole*sha256.Size:whole*sha256.Size])
	}
	return hashes, nil
}

const (
	// tellEvery is after how many chunks the hashes so far are handed out.
	tellEvery = 32
	// maxHashes bounds one reply.
	maxHashes = ChunkBytes / sha256.Size
)

// filesReply lists a pin's files at once: a receiver reserves space and begins
// with the first file while the source hashes the next.
func (s *Server) filesReply(ctx context.Context, r request) []byte {
	p, refusal := s.turnOf(ctx, r.pin)
	if p == nil {
		return refusal
	}
	defer s.release(p)
	if _, err := s.startManifest(p); err != nil {
		return goneReply(r.pin)
	}
	out := openedPin{pin: p.ID, index: p.Point.Index}
	for _, f := range p.files {
		out.files = append(out.files, DataFile{Name: f.name, Size: f.size})
	}
	b := out.encode()
	s.credit(p, len(b)-1)
	return b
}

// hashesReply hands out the hashes of a file's chunks that are known, after waiting
// a while for the first.
func (s *Server) hashesReply(ctx context.Context, r request) []byte {
	p, refusal := s.turnOf(ctx, r.pin)
	if p == nil {
		return refusal
	}
	defer s.release(p)
	i, ok := p.byName[r.name]
	if !ok {
		return textReply(statusError, fmt.Sprintf("snapshot has no file %q", r.name))
	}
	chunks := chunkCount(p.files[i].size)
	if r.length == 0 || r.offset >= int64(chunks) {
		return textReply(statusError, fmt.Sprintf("file %s has %d chunks, asked for %d from %d", r.name, chunks, r.length, r.offset))
	}
	known, err := s.awaitHashes(ctx, p, i, int(r.offset))
	switch {
	case errors.Is(err, errNotReady):
		s.renew(r.pin)
		return waitReply(s.worked.Load())
	case errors.Is(err, ErrPinGone), errors.Is(err, ErrClosed):
		return goneReply(r.pin)
	case err != nil:
		return textReply(statusError, err.Error())
	}
	n := min(len(known)/sha256.Size, r.length, maxHashes)
	n = s.throttle(ctx, n*sha256.Size) / sha256.Size
	if n <= 0 {
		return waitReply(s.worked.Load())
	}
	b := append([]byte{byte(statusOK)}, known[:n*sha256.Size]...)
	s.credit(p, len(b)-1)
	return b
}

// awaitHashes returns the known hashes of file i's chunks from one on, at least
// that one's.
func (s *Server) awaitHashes(ctx context.Context, p *servedPin, i, from int) ([]byte, error) {
	m, err := s.startManifest(p)
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(longPoll)
	defer timer.Stop()
	for {
		known, grown := m.get(i)
		if len(known) > from*sha256.Size {
			return known[from*sha256.Size:], nil
		}
		select {
		case <-grown:
		case <-m.ready:
			if m.err != nil {
				return nil, m.err
			}
		case <-p.done:
			return nil, ErrPinGone
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
			return nil, errNotReady
		}
	}
}

// Forget drops the remembered hashes of a directory's files. Call it when data
// files were repaired in place.
func (s *Server) Forget(dir string) { s.hashes.forget(dir) }

// hashCacheBytes bounds the remembered hashes: 8 MiB stand for 256 GiB of files.
const hashCacheBytes = 8 << 20

// hashCache remembers the hashes of whole chunks by path, least recently used
// files first out.
type hashCache struct {
	mu    sync.Mutex
	bytes int
	files map[string]*list.Element
	order list.List // of *cachedHashes, most recently used first
}

type cachedHashes struct {
	key    string
	hashes []byte
}

// get returns the hashes of at most the first chunks chunks.
func (c *hashCache) get(key string, chunks int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.files[key]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	h := e.Value.(*cachedHashes).hashes
	return h[:min(len(h), chunks*sha256.Size)]
}

func (c *hashCache) put(key string, hashes []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.files == nil {
		c.files = make(map[string]*list.Element)
	}
	if e := c.files[key]; e != nil {
		c.removeLocked(e)
	}
	c.files[key] = c.order.PushFront(&cachedHashes{key: key, hashes: hashes})
	c.bytes += len(hashes)
	for c.bytes > hashCacheBytes {
		c.removeLocked(c.order.Back())
	}
}

func (c *hashCache) removeLocked(e *list.Element) {
	h := c.order.Remove(e).(*cachedHashes)
	delete(c.files, h.key)
	c.bytes -= len(h.hashes)
}

func (c *hashCache) forget(dir string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.files {
		if path.Dir(key) == path.Clean(dir) {
			c.removeLocked(e)
		}
	}
}
