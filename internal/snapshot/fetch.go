package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chronik/internal/vfs"
)

const (
	// renewEvery is how often a source hears from a Fetch that asks it for nothing.
	renewEvery = 30 * time.Second
	// A call asks for as many bytes as come back in reasonable time, so that a slow
	// link shows progress: firstAsk, doubled while fast, down to leastAsk.
	firstAsk = 16 << 10
	leastAsk = 4 << 10
	fastCall = 250 * time.Millisecond
	slowCall = 2 * time.Second
	// leastPause separates requests of which the source said to wait.
	leastPause = 100 * time.Millisecond
)

// transfer is one Fetch.
type transfer struct {
	r       *Receiver
	offer   Offer
	opt     FetchOptions
	src     Source
	staging string
	started time.Time

	attempts int
	reserved int64 // guarded by Receiver.mu

	// ctx ends with the caller's, or with the first failure as its cause.
	ctx      context.Context
	cancel   context.CancelCauseFunc
	watchdog *time.Timer

	ask         atomic.Int64
	lastContact atomic.Int64  // Unix nanoseconds of the last call to a source
	sources     []sourceState // as offer.Sources
	others      []*other      // first opt.More, then the offer's peers
	jobs        chan job      // from the planner to the workers
	hashing     sync.WaitGroup
	unnamed     atomic.Int64 // bytes of complete files whose names may not be durable
	// The planner's own.
	open  []*stagedFile
	space map[string]int64            // disk space reserved for each file of the manifest
	kept  map[string]map[string]int64 // by directory and name: file lengths in its checkpoint

	mu                            sync.Mutex
	state                         string
	total, done, reused, received int64
	from                          ledger // of received
	meter                         meter
}

// sourceState is what the calls have learned of a source.
type sourceState struct {
	name string
	gone atomic.Bool   // the pin is not there any more
	seen atomic.Uint64 // progress counter of its last wait reply
	// prefixFailures counts how often it did not answer MethodPrefixHash.
	prefixFailures atomic.Int32
}

// job is a chunk to fetch.
type job struct {
	f     *stagedFile
	chunk int
}

func newTransfer(ctx context.Context, r *Receiver, offer Offer, opt FetchOptions, src Source) *transfer {
	t := &transfer{
		r: r, offer: offer, opt: opt, src: src,
		staging: StagingDir(opt.Base, opt.Next),
		started: time.Now(),
		sources: make([]sourceState, len(offer.Sources)),
		jobs:    make(chan job),
		kept:    make(map[string]map[string]int64),
		state:   StateQueued,
		total:   offer.Bytes,
	}
	for i, s := range offer.Sources {
		t.sources[i].name = "node " + s.Node.String()
	}
	for _, src := range opt.More {
		t.others = append(t.others, &other{ChunkSource: src})
	}
	for _, node := range offer.Peers {
		req := openRequest{group: offer.Group, index: offer.Index, node: opt.Node}
		t.others = append(t.others, &other{ChunkSource: newPeerSource(src, node, req)})
	}
	t.ctx, t.cancel = context.WithCancelCause(ctx)
	t.ask.Store(firstAsk)
	t.lastContact.Store(t.started.UnixNano())
	return t
}

func (t *transfer) run() (*Staged, error) {
	if err := vfs.MkdirAllSync(t.r.opt.FS, t.opt.Base); err != nil {
		return nil, t.explain(err)
	}
	if err := t.r.reserve(t, 0); err != nil {
		return nil, err
	}
	takes := sharesOf(t.offer.Bytes)
	err := t.r.slots.acquire(t.ctx, t.opt.Priority, takes, renewEvery, t.renew)
	if err != nil {
		return nil, err
	}
	defer t.r.slots.release(takes)

	timeout := t.r.opt.ProgressTimeout
	t.watchdog = time.AfterFunc(timeout, func() {
		t.cancel(fmt.Errorf("%w for %s", ErrStalled, timeout))
	})
	defer t.watchdog.Stop()

	t.setState(StateManifest)
	defer t.hashing.Wait()
	defer t.cancel(nil) // ends what is behind
	l, err := t.fetchListing()
	if err != nil {
		return nil, t.explain(err)
	}
	ck, err := t.fetchFiles(l)
	if err != nil {
		return nil, t.explain(err)
	}
	t.setState(StateFinishing)
	if err := t.publish(); err != nil {
		return nil, t.explain(err)
	}
	s := t.status()
	return &Staged{
		Dir: GenDir(t.opt.Base, t.opt.Next), Generation: t.opt.Next, Checkpoint: *ck, Manifest: sha256.Sum256(l.man.Append(nil)),
		Files: len(l.man.Files), BytesReceived: s.BytesReceived, From: s.From, BytesReused: s.BytesReused, Took: time.Since(t.started),
	}, nil
}

// explain prefers the reason why the transfer was cancelled to the error that
// the cancellation caused, and marks a full disk.
func (t *transfer) explain(err error) error {
	if t.ctx.Err() != nil {
		err = context.Cause(t.ctx)
	}
	if vfs.IsNoSpace(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// progress says that something got done: the watchdog starts anew.
func (t *transfer) progress() { t.watchdog.Reset(t.r.opt.ProgressTimeout) }

// localWork says that n bytes on this node's disk were worked through. A source
// that hears nothing for long is told that we live.
func (t *transfer) localWork() error {
	t.progress()
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	if time.Since(time.Unix(0, t.lastContact.Load())) >= renewEvery {
		_ = t.renew() // a pin that is gone shows when bytes are asked of it
	}
	return nil
}

// renew extends the pins, in less time than the watchdog takes. It fails only
// if all are gone.
func (t *transfer) renew() error {
	t.lastContact.Store(time.Now().UnixNano())
	ctx, cancel := context.WithTimeout(t.ctx, t.r.opt.ProgressTimeout/2)
	defer cancel()
	for i, s := range t.offer.Sources {
		if t.sources[i].gone.Load() {
			continue
		}
		b, err := t.src.Call(ctx, s.Node, MethodRenew, request{pin: s.Pin}.encode())
		if err == nil && len(b) > 0 && status(b[0]) == statusGone {
			t.sources[i].gone.Store(true)
		}
	}
	if t.nextSource(0) < 0 {
		return ErrPinGone
	}
	return nil
}

// nextSource is the first source at or after i, in the offer's ring, whose pin
// is not known to be gone; -1 is none.
func (t *transfer) nextSource(i int) int {
	for k := range t.sources {
		if j := (i + k) % len(t.sources); !t.sources[j].gone.Load() {
			return j
		}
	}
	return -1
}

// call sends a request to source i, with its pin. The answer may be in reply.
func (t *transfer) call(i int, method string, req request, reply []byte) ([]byte, error) {
	req.pin = t.offer.Sources[i].Pin
	return t.exchange(i, method, req.encode(), reply, t.r.opt.ProgressTimeout)
}

// exchange sends an encoded request to source i until it is answered with
// something else than wait, and returns the body of an ok reply. Each try may
// take timeout.
func (t *transfer) exchange(i int, method string, enc, reply []byte, timeout time.Duration) ([]byte, error) {
	s := t.offer.Sources[i]
	for {
		start := time.Now()
		t.lastContact.Store(start.UnixNano())
		ctx, cancel := context.WithTimeout(t.ctx, timeout)
		b, err := callInto(ctx, t.src, s.Node, method, enc, reply)
		late := ctx.Err() // whatever a network makes of it
		cancel()
		if err != nil {
			err = errors.Join(late, err)
			return nil, fmt.Errorf("%s at %s: %w", method, t.sources[i].name, err)
		}
		b, err = replyBody(b, method, t.sources[i].name)
		var wait *waitError
		switch {
		case err == nil:
			t.progress()
			return b, nil
		case errors.As(err, &wait):
			if t.sources[i].seen.Swap(wait.progress) != wait.progress {
				t.progress()
			}
			if err := t.pause(leastPause - time.Since(start)); err != nil {
				return nil, err
			}
		case errors.Is(err, ErrPinGone):
			t.sources[i].gone.Store(true)
			return nil, err
		default:
			return nil, err
		}
	}
}

// pause waits d, or fails with the transfer.
func (t *transfer) pause(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
}

// timedCall is call for a range of bytes: it asks for as much as comes back in
// reasonable time.
func (t *transfer) timedCall(i int, method string, req request, reply []byte) ([]byte, error) {
	ask := t.ask.Load()
	req.length = int(min(int64(req.length), ask))
	start := time.Now()
	b, err := t.call(i, method, req, reply)
	switch took := time.Since(start); {
	case err != nil && errors.Is(err, context.DeadlineExceeded):
		t.ask.CompareAndSwap(ask, max(ask/4, leastAsk))
	case err != nil:
	case took < fastCall:
		t.ask.CompareAndSwap(ask, min(ask*2, ChunkBytes))
	case took > slowCall:
		t.ask.CompareAndSwap(ask, max(ask/2, leastAsk))
	}
	return b, err
}

// retry runs try with one source after another until it succeeds. A call that
// only timed out may be repeated for as long as the watchdog allows; other
// failures have their number.
func (t *transfer) retry(try func(source int) error) error {
	failures := 0
	for i := 0; ; i++ {
		i = t.nextSource(i)
		if i < 0 {
			return ErrPinGone
		}
		err := try(i)
		if err == nil || t.ctx.Err() != nil {
			return err
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrPinGone) {
			continue // to the next source, or to this one with a smaller request
		}
		t.r.opt.Logger.Warn("Failed snapshot request", "group", t.offer.Group,
			"peer", t.offer.Sources[i].Node, "index", t.offer.Index, "err", err)
		limit := len(t.sources) // once more, or each other source once
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrSource) {
			limit += 2 // a connection may come back
		}
		if failures++; failures > limit {
			return err
		}
		if err := t.pause(leastPause << min(failures, 4)); err != nil {
			return err
		}
	}
}

// fetchChunk returns chunk i of f, verified. The result may be buf or in reply. buf's
// first prefix bytes are taken to be right: reused says how many of them proved so,
// all or none.
func (t *transfer) fetchChunk(f *ManifestFile, i int, buf []byte, reply *replyBuf, prefix int) (chunk []byte, reused int, err error) {
	if prefix == 0 {
		if chunk = t.fromOthers(f, i, buf); chunk != nil {
			return chunk, 0, nil
		}
	} else if t.restFromPeers(f, i, buf, prefix) {
		_, n := f.Range(i)
		return buf[:n], prefix, nil
	}
	chunk, reused, err = t.fromOffer(f, i, buf, reply, prefix)
	if err != nil && prefix > 0 && t.ctx.Err() == nil {
		if chunk = t.fromOthers(f, i, buf); chunk != nil {
			return chunk, 0, nil
		}
	}
	return chunk, reused, err
}

// fromOffer is fetchChunk from the offer's own sources.
func (t *transfer) fromOffer(f *ManifestFile, i int, buf []byte, reply *replyBuf, prefix int) (chunk []byte, reused int, err error) {
	err = t.retry(func(source int) error {
		b, err := t.readChunk(source, f, i, buf, reply, prefix)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		if prefix > 0 && !slices.Equal(sum[:], f.Hash(i)) {
			prefix = 0 // it, or the rest: the whole chunk tells
			if b, err = t.readChunk(source, f, i, buf, reply, 0); err != nil {
				return err
			}
			sum = sha256.Sum256(b)
		}
		if !slices.Equal(sum[:], f.Hash(i)) {
			off, n := f.Range(i)
			return fmt.Errorf("file %s bytes %d to %d from %s: %w: hash differs from the manifest's",
				f.Name, off, off+int64(n), t.sources[source].name, ErrCorrupt)
		}
		chunk, reused = b, prefix
		return nil
	})
	return chunk, reused, err
}

// readChunk gets chunk i of f from a source, without its first got bytes, which
// are in buf.
func (t *transfer) readChunk(source int, f *ManifestFile, i int, buf []byte, reply *replyBuf, got int) ([]byte, error) {
	off, n := f.Range(i)
	for got < n {
		b, err := t.timedCall(source, MethodChunk, request{offset: off + int64(got), length: n - got, name: f.Name}, reply[:])
		if err != nil {
			return nil, err
		}
		if len(b) == 0 || len(b) > n-got {
			return nil, fmt.Errorf("file %s byte %d from %s: %w: reply of %d bytes, asked for %d",
				f.Name, off+int64(got), t.sources[source].name, ErrCorrupt, len(b), n-got)
		}
		t.count(len(b), t.sources[source].name)
		if len(b) == n {
			return b, nil // in reply
		}
		got += copy(buf[got:n], b)
	}
	return buf[:n], nil
}

// count books n bytes that came over the network.
func (t *transfer) count(n int, source string) {
	t.r.received(source, int64(n))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.received += int64(n)
	t.from.add(source, int64(n))
	t.meter.add(time.Now(), int64(n))
}

// place books n bytes of the snapshot that are in staging now.
func (t *transfer) place(n int64, reused bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done += n
	if reused {
		t.reused += n
		t.r.bytesReused.Add(n)
	}
}

func (t *transfer) setState(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = s
}

func (t *transfer) status() Transfer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Transfer{
		Group: t.offer.Group, Direction: Incoming, State: t.state,
		Peer: t.offer.Sources[0].Node, Pin: t.offer.Sources[0].Pin,
		Index: t.offer.Index, Term: t.offer.Term,
		BytesDone: t.done, BytesTotal: t.total, BytesReused: t.reused, BytesReceived: t.received, From: slices.Clone(t.from), Rate: t.meter.rate(time.Now()),
		Started: t.started, Attempts: t.attempts,
	}
}
