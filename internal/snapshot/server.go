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

	"golang.org/x/time/rate"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// ServerOptions configures a Server. Zero fields take the defaults named here.
type ServerOptions struct {
	FS vfs.FS
	// MaxConcurrent is how many pins are read at the same time (2), small ones
	// counting an eighth; others are told to wait.
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
	Logger         *slog.Logger
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
	// burstPart is the part of a second whose bytes a rate limit lets go at once.
	burstPart = 16
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
	slots  int          // free shares
	files  int
	bytes  int64
	finder Finder
	// onSpoilt is told of files that cannot be given; nil: nobody is.
	onSpoilt func(Spoilt)
	timer    *time.Timer // runs expire at the earliest deadline; nil without pins
	closed   bool
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
		slots:   shares * opt.MaxConcurrent,
	}
	if r := opt.MaxBytesPerSecond; r > 0 {
		// A burst of a sixteenth of a second: more would go out at once after each rest.
		s.limiter = rate.NewLimiter(rate.Limit(r), int(max(r/burstPart, leastReply)))
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

// Live lists the indexes of a group's offered pins: the raft log after each is still
// needed (TrimInput.Pinned). Pins that receivers opened on another node than the one
// that offers hold files only, and so do the node's own.
func (s *Server) Live(group ident.GroupID) []ident.Index {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at []ident.Index
	for _, p := range s.pins {
		if p.Group == group && !p.opened && !p.local() {
			at = append(at, p.Point.Index)
		}
	}
	slices.Sort(at)
	return at
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
			Started: p.started, Attempts: max(p.attempts, 1),
		})
	}
	sortTransfers(ts)
	return ts
}

// Handle answers a call whose method starts with MethodPrefix. What goes wrong
// with a pin travels inside the reply; the error is for calls that are no
// requests at all.
func (s *Server) Handle(ctx context.Context, method string, req []byte) ([]byte, error) {
	switch method {
	case MethodOpen:
		r, err := decodeOpenRequest(req)
		if err != nil {
			return nil, err
		}
		return s.openReply(ctx, r), nil
	case MethodPrefixHash:
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
	case MethodFiles:
		return s.filesReply(ctx, r), nil
	case MethodHashes:
		return s.hashesReply(ctx, r), nil
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

// turnOf is a request's hold on a pin and its slot, to be released; without it, the
// reply that says why.
func (s *Server) turnOf(ctx context.Context, pin uint64) (*servedPin, []byte) {
	switch p := s.acquire(ctx, pin); {
	case p == nil:
		return nil, goneReply(pin)
	case p.waiting:
		return nil, waitReply(s.worked.Add(1)) // queued: being told so is life
	default:
		return p.servedPin, nil
	}
}

func (s *Server) manifestReply(ctx context.Context, r request) []byte {
	p, refusal := s.turnOf(ctx, r.pin)
	if p == nil {
		return refusal
	}
	defer s.release(p)
	m, err := s.manifest(ctx, p)
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
	s.credit(p, n)
	return manifestPage{total: total, id: m.id, data: m.encoded[r.offset:][:n]}.encode()
}

func (s *Server) chunkReply(ctx context.Context, r request) []byte {
	p, refusal := s.turnOf(ctx, r.pin)
	if p == nil {
		return refusal
	}
	defer s.release(p)
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
	b := chunkReplies.Get().(*chunkReplyBuf)[:1+n]
	b[0] = byte(statusOK)
	if err := s.read(p, f, b[1:], r.offset); err != nil {
		return textReply(statusError, fmt.Sprintf("file %s: %s", r.name, err))
	}
	s.credit(p, n)
	return b
}

// chunkReplyBuf is a reply to MethodChunk: the status and the bytes.
type chunkReplyBuf [1 + ChunkBytes]byte

var chunkReplies = sync.Pool{New: func() any { return new(chunkReplyBuf) }}

// Sent gives back a reply of Handle that the network needs no more, so that a
// transfer does not make a megabyte of garbage with every chunk. Calling it is
// optional, once for each reply.
func (s *Server) Sent(method string, reply []byte) {
	if method == MethodChunk && cap(reply) == len(chunkReplyBuf{}) {
		chunkReplies.Put((*chunkReplyBuf)(reply[:cap(reply)]))
	}
}

// throttle waits for the rate limit and returns how many of n bytes may be
// sent: under a limit replies get shorter rather than late. -1 means that the
// caller's time does not suffice.
func (s *Server) throttle(ctx context.Context, n int) int {
	if s.limiter == nil || n == 0 {
		return n
	}
	n = min(n, int(max(s.opt.MaxBytesPerSecond/burstPart, leastReply)))
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
