package admin

import (
	"context"
	"log/slog"
	"net"
	"testing"
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
