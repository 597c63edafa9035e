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

// pinManifest is computed once a pin. ready is closed when the rest is set.
type pinManifest struct {
	ready   chan struct{}
	encoded []byte
	id      ManifestID
	err     error
}

// manifest returns p's manifest, waiting a while for it: the first call starts
// the work. p is held by the caller.
func (s *Server) manifest(ctx context.Context, p *servedPin) (*pinManifest, error) {
	s.mu.Lock()
	if p.man == nil {
		if s.closed || p.ended {
			s.mu.Unlock()
			return nil, ErrClosed
		}
		p.man = &pinManifest{ready: make(chan struct{})}
		p.inflight++ // the files stay open while they are hashed
		s.wg.Add(1)
		go s.computeManifest(p, p.man)
	}
	m := p.man
	s.mu.Unlock()

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
		hashes, err := s.hashFile(p, f, buf)
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
func (s *Server) hashFile(p *servedPin, f *pinnedFile, buf []byte) ([]byte, error) {
	key := path.Join(p.dir, f.name)
	n, whole := chunkCount(f.size), int(f.size/ChunkBytes)
	hashes := make([]byte, 0, n*sha256.Size)
	if f.name != CheckpointName {
		hashes = append(hashes, s.hashes.get(key, whole)...)
	}
	known := len(hashes) / sha256.Size
	mf := ManifestFile{Size: f.size}
	for i := known; i < n; i++ {
		select {
		case <-p.done:
			return nil, ErrPinGone
		default:
		}
		off, k := mf.Range(i)
		if err := readFullAt(f.f, buf[:k], off); err != nil {
			return nil, err
		}
		sum := sha256.Sum256(buf[:k])
		hashes = append(hashes, sum[:]...)
		s.worked.Add(1)
	}
	if f.name != CheckpointName && whole > known {
		s.hashes.put(key, hashes[:whole*sha256.Size:whole*sha256.Size])
	}
	return hashes, nil
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
