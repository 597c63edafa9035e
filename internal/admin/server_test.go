package admin

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestConnectionsAreBounded: of more connections than a node takes the last waits until another ends.
func TestConnectionsAreBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(&fake{t}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	answered := func(c net.Conn, within time.Duration) bool {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		n, _ := c.Read(make([]byte, 1024))
		return n > 0
	}
	open := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_, err = c.Write([]byte("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"))
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var all []net.Conn
	for range maxConnections {
		c := open()
		defer func() { _ = c.Close() }()
		if !answered(c, 10*time.Second) {
			t.Fatalf("connection %d gets no answer", len(all)+1)
		}
		all = append(all, c)
	}
	last := open()
	defer func() { _ = last.Close() }()
	if answered(last, 200*time.Millisecond) {
		t.Error("one more is served")
	}
	if err := all[0].Close(); err != nil {
		t.Fatal(err)
	}
	if !answered(last, 10*time.Second) {
		t.Error("it is not served when another ended")
	}
}

// slow makes checkpoints for ten minutes.
type slow struct{ fake }

func (s *slow) TakeCheckpoint(context.Context, string, int32, bool) ([]Checkpoint, error) {
	time.Sleep(10 * time.Minute) // in a bubble
	return nil, nil
}

// pipes is a listener of connections in memory.
type pipes struct {
	come chan net.Conn
	once sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	c, ok := <-p.come
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.come) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestSlowAnswers: an answer may take long to make. Who takes nothing of one loses the connection in a minute.
func TestSlowAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := NewServer(&slow{fake{t}}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)), &pipes{come: make(chan net.Conn)}
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		ask := func(path string) net.Conn {
			t.Helper()
			mine, theirs := net.Pipe()
			l.come <- theirs
			if _, err := mine.Write([]byte(path + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			return mine
		}
		if b, err := io.ReadAll(ask("POST /v1/snapshots?upload=true")); err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 200")) {
			t.Errorf("%q, %v", b, err)
		}
		c := ask("GET /v1/cluster")
		time.Sleep(2 * writeWait)
		if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
			t.Errorf("after two minutes: %q, %v", b, err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
