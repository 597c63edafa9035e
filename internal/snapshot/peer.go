package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"chronik/internal/ident"
)

// peerSource is a caught-up follower as ChunkSource. It opens its pin when it is
// first asked for a chunk.
type peerSource struct {
	src  Source
	node ident.NodeID // the follower
	req  openRequest
	name string

	// gate holds the token of whoever opens the pin.
	gate chan struct{}
	open atomic.Pointer[peerPin] // nil: not open, or the pin was lost
}

// peerPin is an open pin.
type peerPin struct {
	pin   uint64
	sizes map[string]int64
}

func newPeerSource(src Source, node ident.NodeID, req openRequest) *peerSource {
	return &peerSource{src: src, node: node, req: req, name: "node " + node.String(), gate: make(chan struct{}, 1)}
}

// Name implements ChunkSource.
func (p *peerSource) Name() string { return p.name }

// ReadChunk implements ChunkSource.
func (p *peerSource) ReadChunk(ctx context.Context, f *ManifestFile, i int, buf []byte) ([]byte, error) {
	return p.readChunk(ctx, f, i, buf, 0)
}

// readChunk is ReadChunk without the chunk's first got bytes, which are in buf.
func (p *peerSource) readChunk(ctx context.Context, f *ManifestFile, i int, buf []byte, got int) ([]byte, error) {
	if f.Name == CheckpointName {
		return nil, ErrNoChunk // each replica's own
	}
	pin, err := p.pinned(ctx)
	if err != nil {
		return nil, err
	}
	off, n := f.Range(i)
	if pin.sizes[f.Name] < off+int64(n) {
		return nil, ErrNoChunk
	}
	reply := replyBufs.Get().(*replyBuf)
	defer replyBufs.Put(reply)
	for got < n {
		b, err := p.call(ctx, MethodChunk, request{pin: pin.pin, offset: off + int64(got), length: n - got, name: f.Name}.encode(), reply[:])
		if errors.Is(err, ErrPinGone) {
			p.open.CompareAndSwap(pin, nil)
		}
		if err != nil {
			return nil, err
		}
		if len(b) == 0 || len(b) > n-got {
			return nil, fmt.Errorf("file %s byte %d from %s: %w: reply of %d bytes, asked for %d",
				f.Name, off+int64(got), p.name, ErrCorrupt, len(b), n-got)
		}
		got += copy(buf[got:n], b)
	}
	return buf[:n], nil
}

// pinned returns the pin, opened if need be by one caller for all.
func (p *peerSource) pinned(ctx context.Context) (*peerPin, error) {
	if pin := p.open.Load(); pin != nil {
		return pin, nil
	}
	select {
	case p.gate <- struct{}{}:
		defer func() { <-p.gate }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if pin := p.open.Load(); pin != nil {
		return pin, nil
	}
	b, err := p.call(ctx, MethodOpen, p.req.encode(), nil)
	if err != nil {
		return nil, err
	}
	o, err := decodeOpenedPin(b)
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", MethodOpen, p.name, err)
	}
	pin := &peerPin{pin: o.pin, sizes: make(map[string]int64, len(o.files))}
	for _, f := range o.files {
		pin.sizes[f.Name] = f.Size
	}
	p.open.Store(pin)
	return pin, nil
}

// call returns the body of an ok reply. A source that has no slot is not waited
// for: others have the same bytes.
func (p *peerSource) call(ctx context.Context, method string, enc, reply []byte) ([]byte, error) {
	b, err := callInto(ctx, p.src, p.node, method, enc, reply)
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", method, p.name, errors.Join(ctx.Err(), err))
	}
	return replyBody(b, method, p.name)
}

// replyBody takes the status from a reply: the body of ok, else an error.
func replyBody(b []byte, method, source string) ([]byte, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%s at %s: %w: empty reply", method, source, ErrCorrupt)
	}
	body := b[1:]
	switch status(b[0]) {
	case statusOK:
		return body, nil
	case statusWait:
		if len(body) != 8 {
			return nil, fmt.Errorf("%s at %s: %w: wait reply of %d bytes", method, source, ErrCorrupt, len(b))
		}
		return nil, &waitError{binary.BigEndian.Uint64(body)}
	case statusGone:
		return nil, fmt.Errorf("%s at %s: %w: %.*s", method, source, ErrPinGone, errorTextBytes, body)
	case statusError:
		return nil, fmt.Errorf("%s at %s: %w: %.*s", method, source, ErrSource, errorTextBytes, body)
	default:
		return nil, fmt.Errorf("%s at %s: %w: reply status %d", method, source, ErrCorrupt, b[0])
	}
}

// waitError says that a source wants to be asked again. It is errBusySource to
// whoever has other sources.
type waitError struct{ progress uint64 }

// Error implements error.
func (e *waitError) Error() string { return errBusySource.Error() }

// Is makes it an errBusySource.
func (e *waitError) Is(target error) bool { return target == errBusySource }

// Close implements ChunkSource: the follower need not keep the files.
func (p *peerSource) Close() {
	pin := p.open.Swap(nil)
	if pin == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_, _ = p.src.Call(ctx, p.node, MethodDone, request{pin: pin.pin}.encode()) // it expires by itself otherwise
}

// closeTimeout bounds the wait for a source that is told that it is not needed.
const closeTimeout = time.Second
