package kafka

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"chronik/internal/group"
	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

// shard is a replica alone in its group: what is proposed is applied at once.
type shard struct {
	mu    sync.Mutex
	sm    *group.StateMachine
	index ident.Index
}

// newShard returns a real coordinator that leads.
func newShard(t testing.TB) *group.Coordinator {
	t.Helper()
	sm, err := group.Open(nil, "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &shard{sm: sm.(*group.StateMachine)}
	loaded := make(loadedLog, 1)
	c := group.New(s, s.sm, group.Options{InitialDelay: -1, Logger: slog.New(loaded)})
	t.Cleanup(c.Close)
	s.sm.RoleChanged(fakeSelf, 1, true)
	<-loaded
	return c
}

// loadedLog is told when the coordinator says that it serves.
type loadedLog chan struct{}

func (l loadedLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "loaded coordinator" {
		l <- struct{}{}
	}
	return nil
}
func (l loadedLog) Enabled(context.Context, slog.Level) bool { return true }
func (l loadedLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l loadedLog) WithGroup(string) slog.Handler            { return l }

// Propose implements group.Replica.
func (s *shard) Propose(data []byte, _ raftgroup.ProposeOptions, w raftgroup.Waiter) {
	s.mu.Lock()
	s.index++
	index := s.index
	res, err := s.sm.Apply([]raftgroup.Entry{{Index: index, Term: 1, Data: data}})
	s.mu.Unlock()
	if err != nil {
		w.Applied(index, 1, nil, err)
		return
	}
	w.Applied(index, 1, res[0], nil)
}

// ReadIndex implements group.Replica.
func (s *shard) ReadIndex(_ time.Time, done func(ident.Index, error)) { done(s.index, nil) }
