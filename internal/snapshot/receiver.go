package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// Source carries requests to other nodes. Call must return soon after ctx ends.
type Source interface {
	Call(ctx context.Context, node ident.NodeID, method string, req []byte) ([]byte, error)
}

// intoSource is what a Source may be besides: the answer is in buf if cap(buf)
// exceeds its length.
type intoSource interface {
	CallInto(ctx context.Context, node ident.NodeID, method string, req, buf []byte) ([]byte, error)
}

// callInto calls src, with the reply in buf if it fits and src can.
func callInto(ctx context.Context, src Source, node ident.NodeID, method string, req, buf []byte) ([]byte, error) {
	if s, ok := src.(intoSource); ok {
		return s.CallInto(ctx, node, method, req, buf)
	}
	return src.Call(ctx, node, method, req)
}

// replyBuf holds a reply to MethodChunk: the transport's byte, the status and the chunk.
type replyBuf [2 + ChunkBytes + 1]byte

// replyBufs are those of workers, and of peers' for a moment each.
var replyBufs = sync.Pool{New: func() any { return new(replyBuf) }}

// ReceiverOptions configures a Receiver. Zero fields take the defaults named here.
type ReceiverOptions struct {
	FS vfs.FS
	// MaxConcurrent is how many Fetches run at a time (2), small ones counting an
	// eighth; the others queue.
	MaxConcurrent int
	// Parallel is how many calls one Fetch has in flight (4).
	Parallel int
	// ProgressTimeout fails a Fetch that gets nothing done (10 s). There is no
	// limit on a Fetch's duration.
	ProgressTimeout time.Duration
	Logger          *slog.Logger
}

// FetchOptions says where a snapshot goes.
type FetchOptions struct {
	// Base is the replica's directory; the result is GenDir(Base, Next).
	Base string
	// Live is the generation the raftlog names, whose files are used where they
	// match. Next is above it.
	Live, Next uint64
	// Donors are further directories whose files are used where they match.
	Donors []string
	// Reserve is how many bytes of the disk the Fetch must leave free.
	Reserve int64
	// Priority orders the wait for a slot.
	Priority Priority
	// Node is this node: without it peers give no pins.
	Node ident.NodeID
	// More are asked for chunks first, in this order, before the offer's peers and
	// its sources. They must return soon after their context ends; the caller
	// closes them.
	More []ChunkSource
}

// Staged is a complete generation: every file was synced, read back and
// hashed, and the directory is durable.
type Staged struct {
	Dir        string
	Generation uint64
	Checkpoint Checkpoint
	Manifest   ManifestID
	Files      int
	// BytesReceived came over the network in this Fetch; BytesReused were on this
	// node already, an earlier Fetch's staging included.
	BytesReceived, BytesReused int64
	// From says where BytesReceived came from.
	From []SourceBytes
	Took time.Duration
}

// Receiver fetches offered snapshots. Safe for concurrent use.
type Receiver struct {
	opt   ReceiverOptions
	slots slots

	bytesReused, completed, failed atomic.Int64

	mu       sync.Mutex
	from     ledger               // what came over the network
	live     map[string]*transfer // by Base
	attempts map[ident.GroupID]int
	reserved int64           // bytes that running Fetches will still write
	unsynced map[string]bool // paths whose sync failed, marked on the disk, too
}

// NewReceiver returns a Receiver.
func NewReceiver(opt ReceiverOptions) *Receiver {
	if opt.MaxConcurrent <= 0 {
		opt.MaxConcurrent = 2
	}
	if opt.Parallel <= 0 {
		opt.Parallel = 4
	}
	if opt.ProgressTimeout <= 0 {
		opt.ProgressTimeout = 10 * time.Second
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	return &Receiver{
		opt:      opt,
		slots:    slots{free: shares * opt.MaxConcurrent},
		live:     make(map[string]*transfer),
		attempts: make(map[ident.GroupID]int),
		unsynced: make(map[string]bool),
	}
}

// ReceiverStats are counters since start.
type ReceiverStats struct {
	BytesReceived, BytesReused int64
	From                       []SourceBytes // of BytesReceived
	Completed, Failed          int64
	Live                       int // running or queued now
}

// Stats returns a copy.
func (r *Receiver) Stats() ReceiverStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := ReceiverStats{
		BytesReused: r.bytesReused.Load(), From: slices.Clone(r.from),
		Completed: r.completed.Load(), Failed: r.failed.Load(), Live: len(r.live),
	}
	for _, s := range st.From {
		st.BytesReceived += s.Bytes
	}
	return st
}

// received books n bytes that came from a source.
func (r *Receiver) received(source string, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.from.add(source, n)
}

// Transfers lists the Fetches that run or queue.
func (r *Receiver) Transfers() []Transfer {
	r.mu.Lock()
	defer r.mu.Unlock()
	ts := make([]Transfer, 0, len(r.live))
	for _, t := range r.live {
		ts = append(ts, t.status())
	}
	sortTransfers(ts)
	return ts
}

// Fetch brings the offered snapshot into GenDir(Base, Next). It blocks, may
// queue for long, and ends by ctx, by success, or by an error that names what
// went wrong; then the staging is kept and the next Fetch goes on from it.
func (r *Receiver) Fetch(ctx context.Context, offer Offer, opt FetchOptions, src Source) (*Staged, error) {
	staged, err := r.fetch(ctx, offer, opt, src)
	if err != nil {
		return nil, fmt.Errorf("fetch snapshot of group %d at index %d: %w", offer.Group, offer.Index, err)
	}
	return staged, nil
}

func (r *Receiver) fetch(ctx context.Context, offer Offer, opt FetchOptions, src Source) (*Staged, error) {
	if len(offer.Sources) == 0 {
		return nil, errors.New("offer has no source")
	}
	if opt.Next <= opt.Live {
		return nil, fmt.Errorf("next generation %d is not above the live one, %d", opt.Next, opt.Live)
	}
	t, err := r.begin(ctx, offer, opt, src)
	if err != nil {
		return nil, err
	}
	staged, err := t.run()
	r.end(t, err)
	if err != nil {
		return nil, t.failed(err)
	}
	return staged, nil
}

func (r *Receiver) begin(ctx context.Context, offer Offer, opt FetchOptions, src Source) (*transfer, error) {
	t := newTransfer(ctx, r, offer, opt, src)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[opt.Base] != nil {
		t.cancel(nil)
		return nil, fmt.Errorf("%s: %w", opt.Base, ErrBusy)
	}
	r.live[opt.Base] = t
	r.attempts[offer.Group]++
	t.attempts = r.attempts[offer.Group]
	return t, nil
}

func (r *Receiver) end(t *transfer, err error) {
	t.cancel(nil)
	for _, o := range t.others[len(t.opt.More):] {
		o.Close()
	}
	if err == nil {
		r.completed.Add(1)
	} else {
		r.failed.Add(1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, t.opt.Base)
	r.reserved -= t.reserved
	if err == nil {
		delete(r.attempts, t.offer.Group)
	}
}

// Done tells the sources of an offer that their pins are not needed any more:
// the snapshot is installed, or not wanted.
func (r *Receiver) Done(ctx context.Context, offer Offer, src Source) error {
	var errs []error
	for _, s := range offer.Sources {
		_, err := src.Call(ctx, s.Node, MethodDone, request{pin: s.Pin}.encode())
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// KeepPins renews the pins of an offer until stop is called: for who works on what was
// fetched, while the sources are to keep the log behind it. stop waits for the last call.
func (r *Receiver) KeepPins(ctx context.Context, offer Offer, src Source) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(renewEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.renew(ctx, offer, src)
			case <-ctx.Done():
				return
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// renew tells the sources of an offer once that the receiver lives. A pin that is gone is no
// matter here: the source offers another if the log behind it is gone, too.
func (r *Receiver) renew(ctx context.Context, offer Offer, src Source) {
	ctx, cancel := context.WithTimeout(ctx, r.opt.ProgressTimeout)
	defer cancel()
	for _, s := range offer.Sources {
		_, _ = src.Call(ctx, s.Node, MethodRenew, request{pin: s.Pin}.encode())
	}
}

// Discard removes what was fetched for a replica and never became live. It
// returns ErrBusy while a Fetch into base runs.
func (r *Receiver) Discard(group ident.GroupID, base string, live uint64) error {
	r.mu.Lock()
	busy := r.live[base] != nil
	if !busy {
		delete(r.attempts, group)
	}
	r.mu.Unlock()
	if busy {
		return fmt.Errorf("discard staging in %s: %w", base, ErrBusy)
	}
	return DiscardStaging(r.opt.FS, base, live)
}

// reserve refuses n more bytes for t unless the disk holds them beside the
// reserve and what the running Fetches will still write.
func (r *Receiver) reserve(t *transfer, n int64) error {
	du, err := r.opt.FS.GetDiskUsage(t.opt.Base)
	if errors.Is(err, pebblevfs.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("disk usage of %s: %w", t.opt.Base, err)
	}
	avail := int64(min(du.AvailBytes, uint64(maxFileBytes)))
	r.mu.Lock()
	defer r.mu.Unlock()
	if need := t.opt.Reserve + r.reserved + n; need > avail {
		return fmt.Errorf("%w: %d bytes are missing here, %d more are under way and %d reserved, %s has %d",
			ErrNoSpace, n, r.reserved, t.opt.Reserve, t.opt.Base, avail)
	}
	r.reserved += n
	t.reserved += n
	return nil
}

// unreserve gives back up to n of t's reservation: the bytes are written, or not needed.
func (r *Receiver) unreserve(t *transfer, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = min(n, t.reserved)
	t.reserved -= n
	r.reserved -= n
}
