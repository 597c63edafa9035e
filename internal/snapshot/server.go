package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// ServerOptions configures a Server. Zero fields take the defaults named here.
type ServerOptions struct {
	FS vfs.FS
	// MaxConcurrent is how many pins are read at the same time (2); others are told to wait.
	MaxConcurrent int
	// MaxBytesPerSecond limits what this node sends; 0 is no limit.
	MaxBytesPerSecond int64
	// PinExpiry ends a pin without progress (2 min).
	PinExpiry time.Duration
	// MinBytesPerSecond is the slowest reader that keeps its pin (1 KiB/s).
	MinBytesPerSecond int64
	// MaxPins (1024) and MaxPinnedFiles (16384, each is an open file) are caps.
	MaxPins        int
	MaxPinnedFiles int
	// MaxPinnedBytes caps what all pins together keep from being freed; 0 is no cap.
	// One pin is always admitted.
	MaxPinnedBytes int64
	// OnPinEnd, if set, is called after a pin of the group has ended, however it
	// did: the log may be trimmed further. It runs without locks held on whatever
	// goroutine ended the pin, Unpin's caller included, and must not block.
	OnPinEnd func(ident.GroupID)
	Logger   *slog.Logger
}

const (
	// longPoll is how long a request waits for a slot or a manifest before it is told to ask again.
	longPoll = 2 * time.Second
	// slotIdle takes the slot of a pin that asks for nothing while others wait.
	slotIdle = 15 * time.Second
	// maxInflight bounds the replies in memory for one pin.
	maxInflight = 8
	// leastReply is the shortest reply a rate limit makes.
	leastReply = 4 << 10
)

// Server hands out the bytes of pinned checkpoints. Safe for concurrent use.
type Server struct {
	opt     ServerOptions
	limiter *rate.Limiter // nil: no limit
	hashes  hashCache
	hashing chan struct{} // one manifest is computed at a time
	// worked moves whenever the source does something a waiting receiver may take as life.
	worked atomic.Uint64
	wg     sync.WaitGroup

	bytesSent  atomic.Int64
	pinsMade   atomic.Int64
	pinsLapsed atomic.Int64

	mu     sync.Mutex
	pins   map[uint64]*servedPin
	queue  []*servedPin // waiting for a slot, in order of first asking
	slots  int          // free
	files  int
	bytes  int64
	timer  *time.Timer // runs expire at the earliest deadline; nil without pins
	closed bool
}

// NewServer returns a Server; Close it.
func NewServer(opt ServerOptions) *Server {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&opt.MaxConcurrent, 2)
	def(&opt.MaxPins, 1024)
	def(&opt.MaxPinnedFiles, 16384)
	if opt.PinExpiry <= 0 {
		opt.PinExpiry = 2 * time.Minute
	}
	if opt.MinBytesPerSecond <= 0 {
		opt.MinBytesPerSecond = 1 << 10
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		opt:     opt,
		hashing: make(chan struct{}, 1),
		pins:    make(map[uint64]*servedPin),
		slots:   opt.MaxConcurrent,
	}
	if r := opt.MaxBytesPerSecond; r > 0 {
		s.limiter = rate.NewLimiter(rate.Limit(r), int(max(r, leastReply)))
	}
	return s
}

// ServerStats are counters since start, and gauges.
type ServerStats struct {
	BytesSent   int64
	PinsMade    int64
	PinsExpired int64
	Pins        int // live
	PinnedBytes int64
	PinnedFiles int
}

// Stats returns a copy.
func (s *Server) Stats() ServerStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ServerStats{
		BytesSent: s.bytesSent.Load(), PinsMade: s.pinsMade.Load(), PinsExpired: s.pinsLapsed.Load(),
		Pins: len(s.pins), PinnedBytes: s.bytes, PinnedFiles: s.files,
	}
}

// Live says how many pins of a group are live and the lowest index among them:
// the raft log after it is still needed (TrimInput.Pinned). The node's own do not count.
func (s *Server) Live(group ident.GroupID) (lowest ident.Index, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pins {
		if p.Group != group || p.local() {
			continue
		}
		if n == 0 || p.Point.Index < lowest {
			lowest = p.Point.Index
		}
		n++
	}
	return lowest, n
}

// Transfers lists the pins that have been asked for bytes.
func (s *Server) Transfers() []Transfer {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ts []Transfer
	for _, p := range s.pins {
		if p.started.IsZero() {
			continue
		}
		state := StateQueued
		if p.slot {
			state = StateTransferring
		}
		ts = append(ts, Transfer{
			Group: p.Group, Direction: Outgoing, State: state, Peer: p.To, Pin: p.ID,
			Index: p.Point.Index, Term: p.Point.Term,
			BytesDone: min(p.served, p.Bytes), BytesTotal: p.Bytes, Rate: p.meter.rate(time.Now()),
			Started: p.started, Attempts: 1,
		})
	}
	sortTransfers(ts)
	return ts
}

// Handle answers a call whose method starts with MethodPrefix. What goes wrong
// with a pin travels inside the reply; the error is for calls that are no
// requests at all.
func (s *Server) Handle(ctx context.Context, method string, req []byte) ([]byte, error) {
	if method == MethodPrefixHash {
		r, err := decodePrefixRequest(req)
		if err != nil {
			return nil, err
		}
		return s.prefixReply(ctx, r), nil
	}
	r, err := decodeRequest(req)
	if err != nil {
		return nil, err
	}
	switch method {
	case MethodManifest:
		return s.manifestReply(ctx, r), nil
	case MethodChunk:
		return s.chunkReply(ctx, r), nil
	case MethodRenew:
		if !s.renew(r.pin) {
			return goneReply(r.pin), nil
		}
		return []byte{byte(statusOK)}, nil
	case MethodDone:
		s.Unpin(r.pin)
		return []byte{byte(statusOK)}, nil
	default:
		return nil, fmt.Errorf("snapshot request: unknown method %q", method)
	}
}

func goneReply(pin uint64) []byte {
	return textReply(statusGone, fmt.Sprintf("pin %016x is not here", pin))
}

func (s *Server) manifestReply(ctx context.Context, r request) []byte {
	p := s.acquire(ctx, r.pin)
	switch {
	case p == nil:
		return goneReply(r.pin)
	case p.waiting:
		return waitReply(s.worked.Add(1)) // queued: being told so is life
	}
	defer s.release(p.servedPin)
	m, err := s.manifest(ctx, p.servedPin)
	switch {
	case errors.Is(err, errNotReady):
		s.renew(r.pin)
		return waitReply(s.worked.Load())
	case errors.Is(err, ErrPinGone):
		return goneReply(r.pin)
	case err != nil:
		return textReply(statusError, err.Error())
	}
	total := int64(len(m.encoded))
	if r.offset > total {
		return textReply(statusError, fmt.Sprintf("manifest has %d bytes, asked from %d", total, r.offset))
	}
	n := s.throttle(ctx, int(min(int64(r.length), total-r.offset)))
	if n < 0 {
		return waitReply(s.worked.Load())
	}
	s.credit(p.servedPin, n)
	return manifestPage{total: total, id: m.id, data: m.encoded[r.offset:][:n]}.encode()
}

func (s *Server) chunkReply(ctx context.Context, r request) []byte {
	p := s.acquire(ctx, r.pin)
	switch {
	case p == nil:
		return goneReply(r.pin)
	case p.waiting:
		return waitReply(s.worked.Add(1))
	}
	defer s.release(p.servedPin)
	f := p.file(r.name)
	if f == nil {
		return textReply(statusError, fmt.Sprintf("snapshot has no file %q", r.name))
	}
	if r.length == 0 || r.offset >= f.size {
		return textReply(statusError, fmt.Sprintf("file %s has %d bytes, asked for %d from %d", r.name, f.size, r.length, r.offset))
	}
	n := s.throttle(ctx, int(min(int64(r.length), f.size-r.offset)))
	if n < 0 {
		return waitReply(s.worked.Load())
	}
	b := make([]byte, 1+n) // status OK is 0
	if err := readFullAt(f.f, b[1:], r.offset); err != nil {
		return textReply(statusError, fmt.Sprintf("file %s: %s", r.name, err))
	}
	s.credit(p.servedPin, n)
	return b
}

// throttle waits for the rate limit and returns how many of n bytes may be
// sent: under a limit replies get shorter rather than late. -1 means that the
// caller's time does not suffice.
func (s *Server) throttle(ctx context.Context, n int) int {
	if s.limiter == nil || n == 0 {
		return n
	}
	n = min(n, int(max(s.opt.MaxBytesPerSecond/4, leastReply)))
	if err := s.limiter.WaitN(ctx, n); err != nil { // only by ctx: n is within the burst
		return -1
	}
	return n
}

// Close ends all pins and waits for background work. Requests are then refused.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	ids := make([]uint64, 0, len(s.pins))
	for id := range s.pins {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.Unpin(id)
	}
	s.wg.Wait()
	return nil
}
