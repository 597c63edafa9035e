package kafka

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// Options are what a Handler needs.
type Options struct {
	// Cluster is the node and, through it, the cluster. Required.
	Cluster Cluster
	// Metrics counts requests and errors; nil counts nothing.
	Metrics *Metrics
	// Wall tells the date that records' times are held against, or get; nil: time.Now.
	Wall func() time.Time
	// Logger gets what a client cannot be told; nil discards.
	Logger *slog.Logger
}

// maxReads is how many reads of records run at a time: enough for a disk, and a turn of
// all of them is short.
const maxReads = 8

// Handler answers Kafka requests. It implements wire.Handler.
type Handler struct {
	cluster Cluster
	config  Config // the cluster's, which does not change
	metrics *Metrics
	wall    func() time.Time
	log     *slog.Logger
	// reads has room for the reads of records that run at a time. Some hundred fetches that
	// come together would else be that many goroutines that want a processor, and a raft
	// worker would wait for its turn among them for longer than an election timeout.
	reads chan struct{}
	// sessions are the incremental fetch sessions.
	sessions *fetchSessions

	// producerIDs is the rest of the block of producer ids this node holds.
	producerIDs struct {
		sync.Mutex
		next, end int64
	}
}

var _ wire.Handler = (*Handler)(nil)

// NewHandler returns a Handler over a cluster.
func NewHandler(opt Options) *Handler {
	h := &Handler{cluster: opt.Cluster, config: opt.Cluster.Config(), metrics: opt.Metrics, wall: opt.Wall, log: opt.Logger, reads: make(chan struct{}, maxReads)}
	h.sessions = newFetchSessions(h.config.MaxFetchSessions, opt.Metrics)
	if h.wall == nil {
		h.wall = time.Now
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	return h
}

// Versions returns the range of versions of an API key that are answered.
func (h *Handler) Versions(key int16) (minVersion, maxVersion int16, ok bool) {
	a := lookup(key)
	if a == nil {
		return 0, 0, false
	}
	return a.min, a.max, true
}

// Serve answers one request. It is called on the connection's reading goroutine
// and calls reply exactly once, now or later, from any goroutine. ctx ends with
// the connection.
func (h *Handler) Serve(ctx context.Context, req *wire.Request, reply func(kmsg.Response)) {
	a := lookup(req.Key)
	if a == nil || req.Version < a.min || req.Version > a.max {
		// wire refuses these; nothing that could be encoded exists for them.
		h.log.Warn("request refused: no such version", "key", req.Key, "version", req.Version)
		reply(nil)
		return
	}
	if h.metrics == nil {
		a.serve(h, ctx, req, reply)
		return
	}
	received := req.Received
	if received.IsZero() {
		received = time.Now()
	}
	a.serve(h, ctx, req, func(resp kmsg.Response) {
		h.metrics.observe(a.slot, time.Since(received))
		reply(resp)
	})
}

// serveFunc answers a request, now or later.
type serveFunc func(h *Handler, ctx context.Context, req *wire.Request, reply func(kmsg.Response))

// answer makes a serveFunc of a handler that has its response when it returns.
func answer[R kmsg.Request](f func(*Handler, context.Context, *wire.Request, R) kmsg.Response) serveFunc {
	return func(h *Handler, ctx context.Context, req *wire.Request, reply func(kmsg.Response)) {
		if body, ok := bodyOf[R](h, req, reply); ok {
			reply(f(h, ctx, req, body))
		}
	}
}

// bounded returns a context that ends after a client's timeout, kept between a
// floor (zero and negative timeouts mean "at once", which nothing replicated can
// do) and a ceiling.
func bounded(ctx context.Context, timeoutMillis int32) (context.Context, context.CancelFunc) {
	const floor, ceiling = 500 * time.Millisecond, 2 * time.Minute
	d := time.Duration(timeoutMillis) * time.Millisecond
	return context.WithTimeout(ctx, min(max(d, floor), ceiling))
}
