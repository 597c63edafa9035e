package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"chronik/internal/alloctest"
)

// fake is a node that has nothing.
type fake struct{ t *testing.T }

func (f *fake) Ready() error          { return nil }
func (f *fake) Cluster() Cluster      { return Cluster{} }
func (f *fake) Replicas() Replicas    { return Replicas{} }
func (f *fake) Transfers() []Transfer { return nil }

func (f *fake) Digest(_ string, partition int32, from, to int64) (Digest, error) {
	if partition < 0 || from < -1 || to < -1 {
		f.t.Errorf("digest of partition %d from %d to %d", partition, from, to)
	}
	return Digest{}, ErrNotFound
}

func (f *fake) Checkpoints() []Checkpoint         { return nil }
func (f *fake) Archived(context.Context) Archived { return Archived{} }

func (f *fake) TakeCheckpoint(_ context.Context, _ string, partition int32, _ bool) ([]Checkpoint, error) {
	if partition < -1 {
		f.t.Errorf("checkpoint of partition %d", partition)
	}
	return nil, nil
}

func (f *fake) Rebalance(context.Context, bool) (Rebalance, error) {
	return Rebalance{}, ErrUnavailable
}

// FuzzRequest has any HTTP request answered: with a status, with JSON where the
// status is 200, and only what is in range reaches the node.
func FuzzRequest(f *testing.F) {
	for _, target := range []string{
		"GET /healthz", "GET /readyz", "GET /v1/cluster", "GET /v1/replicas", "GET /v1/transfers", "GET /v1/snapshots?archived=false",
		"GET /v1/digest?topic=a&partition=1&from=0&to=10", "GET /v1/digest?partition=-1&from=x", "POST /v1/snapshots?topic=a&partition=0&upload=true",
		"POST /v1/cluster/rebalance?dry_run=true", "POST /v1/cluster/rebalance?dry_run=1", "GET /v1/../v1//digest?partition=%zz", "GET /metrics",
	} {
		f.Add([]byte(target + " HTTP/1.1\r\nHost: a\r\n\r\n"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil || strings.Contains(r.URL.Path, "/debug/") { // profiles take their time
			return
		}
		w := httptest.NewRecorder()
		NewServer(&fake{t}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)).http.Handler.ServeHTTP(w, r)
		if w.Code < 200 || w.Code > 599 {
			t.Fatalf("status %d", w.Code)
		}
		if w.Header().Get("Content-Type") == "application/json" && (w.Code != http.StatusOK || !json.Valid(w.Body.Bytes())) {
			t.Fatalf("status %d with %q", w.Code, w.Body)
		}
	})
}
