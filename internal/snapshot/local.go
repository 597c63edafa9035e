package snapshot

import (
	"context"
	"fmt"
)

// A pin to node 0 is this node's own, for the object store. It keeps the files
// and nothing else: it holds no log (Live does not count it), takes no slot from
// receivers, and does not expire; whoever made it ends it. It is under the rate limit.
func (p *Pin) local() bool { return p.To == 0 }

// hold keeps a pin's files open without asking for a slot; release it. nil: there is no such pin.
func (s *Server) hold(id uint64) *servedPin {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pins[id]
	if p != nil {
		p.inflight++
	}
	return p
}

// ReadPinned fills b with a pinned file's bytes from off, no faster than the rate limit.
func (s *Server) ReadPinned(ctx context.Context, id uint64, name string, b []byte, off int64) error {
	p := s.hold(id)
	if p == nil {
		return ErrPinGone
	}
	defer s.release(p)
	f := p.file(name)
	if f == nil || off < 0 || off+int64(len(b)) > f.size {
		return fmt.Errorf("pinned snapshot of group %d: file %s has no %d bytes at byte %d", p.Group, name, len(b), off)
	}
	for len(b) > 0 {
		n := s.throttle(ctx, len(b))
		if n < 0 {
			return fmt.Errorf("wait for the rate limit: %w", context.DeadlineExceeded)
		}
		if err := s.read(p, f, b[:n], off); err != nil {
			return fmt.Errorf("file %s: %w", name, err)
		}
		s.credit(p, n)
		b, off = b[n:], off+int64(n)
	}
	return ctx.Err()
}
