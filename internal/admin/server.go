package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// ErrNotFound is what a Source answers about a topic, partition or replica it does not have: 404.
var ErrNotFound = errors.New("not found")

// ErrUnavailable is what a Source answers when it cannot act yet, and may later: 503.
var ErrUnavailable = errors.New("unavailable")

// Source is the node that a Server tells about.
type Source interface {
	// Ready returns nil once the node serves and its groups make progress, else what it waits for.
	Ready() error
	Cluster() Cluster
	Replicas() Replicas
	Transfers() []Transfer
	// Digest hashes the batches with offsets in [from, to); -1 means from the log start, to the high watermark.
	Digest(topic string, partition int32, from, to int64) (Digest, error)
	Checkpoints() []Checkpoint
	// Archived lists the cluster's snapshots in the object store.
	Archived(ctx context.Context) Archived
	// TakeCheckpoint takes checkpoints of a topic's partition, of a topic (-1), or
	// of all groups (""), here, and waits until they are durable. With upload it
	// also brings those of the groups this node leads into the object store. What
	// went wrong with one stands in its row.
	TakeCheckpoint(ctx context.Context, topic string, partition int32, upload bool) ([]Checkpoint, error)
	// Rebalance begins moves of replicas that even out their number over the nodes, as
	// many as may be under way. With dryRun it begins none.
	Rebalance(ctx context.Context, dryRun bool) (Rebalance, error)
}

// Server serves a Source over HTTP.
type Server struct {
	http *http.Server
	log  *slog.Logger
}

// NewServer makes a server that takes its metrics from reg.
func NewServer(src Source, reg *prometheus.Registry, log *slog.Logger) *Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := src.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /v1/cluster", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, src.Cluster()) })
	mux.HandleFunc("GET /v1/replicas", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, src.Replicas()) })
	mux.HandleFunc("GET /v1/transfers", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]any{"transfers": src.Transfers()})
	})
	mux.HandleFunc("GET /v1/digest", func(w http.ResponseWriter, r *http.Request) { digest(w, r, src) })
	mux.HandleFunc("GET /v1/snapshots", func(w http.ResponseWriter, r *http.Request) { snapshots(w, r, src) })
	mux.HandleFunc("POST /v1/snapshots", func(w http.ResponseWriter, r *http.Request) { takeCheckpoint(w, r, src) })
	mux.HandleFunc("POST /v1/cluster/rebalance", func(w http.ResponseWriter, r *http.Request) { rebalance(w, r, src) })
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return &Server{
		http: &http.Server{
			Handler: patient(mux), ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 64 << 10, IdleTimeout: time.Minute,
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		log: log,
	}
}

// writeWait is how long a client may take nothing of an answer.
const writeWait = time.Minute

// patient lets an answer take as long as it takes to make, an upload or a digest for hours, and
// bounds how long each write of it waits for the client.
func patient(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		h.ServeHTTP(&writer{w, rc}, r)
		_ = rc.SetWriteDeadline(time.Now().Add(writeWait)) // for what is buffered; a test's recorder has none
	})
}

type writer struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func (w *writer) Write(b []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(writeWait))
	return w.ResponseWriter.Write(b)
}

func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// maxConnections bounds what is open at a time: the files of a node are for its log and its clients. Who
// comes beyond waits until another goes, a minute after its last word at the latest.
const maxConnections = 256

// Serve answers on l until Close.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(netutil.LimitListener(l, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin: serve %s: %w", l.Addr(), err)
	}
	return nil
}

// Close stops accepting and waits for answers under way until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client went away: nothing to tell it
}

// intParam reads a query parameter within [lo, hi]; def when it is absent.
func intParam(r *http.Request, name string, def, lo, hi int64) (int64, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return def, nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < lo || v > hi {
		return 0, fmt.Errorf("%s=%q: want a number from %d to %d", name, s, lo, hi)
	}
	return v, nil
}

// boolParam reads a query parameter that is true or false; false when it is absent.
func boolParam(r *http.Request, name string) (bool, error) {
	s := r.URL.Query().Get(name)
	if s != "" && s != "true" && s != "false" {
		return false, fmt.Errorf("%s=%q: want true or false", name, s)
	}
	return s == "true", nil
}

const (
	maxInt32 = 1<<31 - 1
	maxInt64 = 1<<63 - 1
)

func digest(w http.ResponseWriter, r *http.Request, src Source) {
	p, err1 := intParam(r, "partition", 0, 0, maxInt32)
	from, err2 := intParam(r, "from", -1, -1, maxInt64)
	to, err3 := intParam(r, "to", -1, -1, maxInt64)
	if err := errors.Join(err1, err2, err3); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	d, err := src.Digest(r.URL.Query().Get("topic"), int32(p), from, to)
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	writeJSON(w, d)
}

// snapshots lists this node's checkpoints, and unless archived=false what the object store has.
func snapshots(w http.ResponseWriter, r *http.Request, src Source) {
	out := Snapshots{Snapshots: src.Checkpoints()}
	if r.URL.Query().Get("archived") != "false" {
		a := src.Archived(r.Context())
		out.Archived = &a
	}
	writeJSON(w, out)
}

func takeCheckpoint(w http.ResponseWriter, r *http.Request, src Source) {
	p, err1 := intParam(r, "partition", -1, -1, maxInt32)
	upload, err2 := boolParam(r, "upload")
	if err := errors.Join(err1, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	done, err := src.TakeCheckpoint(r.Context(), r.URL.Query().Get("topic"), int32(p), upload)
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	writeJSON(w, map[string]any{"requested": true, "snapshots": done})
}

func rebalance(w http.ResponseWriter, r *http.Request, src Source) {
	dry, err := boolParam(r, "dry_run")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	done, err := src.Rebalance(r.Context(), dry)
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	writeJSON(w, done)
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, ErrUnavailable):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
