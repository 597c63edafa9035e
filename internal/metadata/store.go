package metadata

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"chronik/internal/ident"
)

// Store holds the node's current Image. The Image only moves forward: when the
// metadata replica is replaced and starts over, the newer Image stays until the
// new replica has passed it.
type Store struct {
	img atomic.Pointer[Image]

	publishing sync.Mutex // held over the watchers' calls: they see changes in order

	mu       sync.Mutex // guards what follows
	watchers []*watcher
	changed  chan struct{} // closed at the next publication; nil = nobody waits
}

type watcher struct{ fn func(old, cur *Image) }

// NewStore returns a Store with an empty Image.
func NewStore() *Store {
	s := &Store{}
	s.img.Store(emptyImage())
	return s
}

func emptyImage() *Image {
	return &Image{NextGroup: ident.MetaGroup + 1, NextReplica: 1}
}

// Image returns the current Image, never nil. It takes no lock.
func (s *Store) Image() *Image { return s.img.Load() }

// Watch calls fn after each change with the Image before and after it, on the
// goroutine that applies: fn must not block nor call Watch or stop. Changes may
// be folded into one call. The returned func ends it; a call under way may still finish.
func (s *Store) Watch(fn func(old, cur *Image)) (stop func()) {
	w := &watcher{fn: fn}
	s.mu.Lock()
	s.watchers = append(slices.Clip(s.watchers), w)
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.watchers = slices.DeleteFunc(slices.Clone(s.watchers), func(o *watcher) bool { return o == w })
	}
}

// Changed returns a channel that is closed at the next change. Take it before
// reading Image, else a change in between is missed.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// WaitFor waits until the Image's Index has reached index and returns it.
func (s *Store) WaitFor(ctx context.Context, index ident.Index) (*Image, error) {
	return s.WaitUntil(ctx, func(i *Image) bool { return i.Index >= index })
}

// WaitUntil waits until cond holds for the current Image and returns that.
func (s *Store) WaitUntil(ctx context.Context, cond func(*Image) bool) (*Image, error) {
	for {
		if img := s.Image(); cond(img) {
			return img, nil
		}
		changed := s.Changed()
		if img := s.Image(); cond(img) {
			return img, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// publish makes img current unless what is current is newer.
func (s *Store) publish(img *Image) {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	s.mu.Lock()
	old := s.img.Load()
	if img.Index <= old.Index {
		s.mu.Unlock()
		return
	}
	s.img.Store(img)
	watchers := s.watchers
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
	s.mu.Unlock()
	for _, w := range watchers {
		w.fn(old, img)
	}
}
