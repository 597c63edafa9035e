package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/alloctest"
	"chronik/internal/wire"
)

// FuzzServe sends whatever bytes as the body of a request through a connection,
// followed by ApiVersions: that must be answered, or the connection closed for
// what was sent. Handlers must not panic, and what they answer must decode.
func FuzzServe(f *testing.F) {
	for i := range apis {
		a := &apis[i]
		for _, v := range []int16{a.min, a.max} {
			req := calls[a.key].req(v)
			req.SetVersion(v)
			f.Add(a.key, v, req.AppendTo(nil))
		}
	}
	f.Fuzz(func(t *testing.T, key, version int16, body []byte) {
		defer alloctest.Bound(t, len(body))()
		a := lookup(key)
		if a == nil || version < a.min || version > a.max {
			return
		}
		req := kmsg.RequestForKey(key)
		req.SetVersion(version)
		h, c := newHandler(t)
		prepare(t, c)
		nc := pipe(t, &hurried{h})
		go func() {
			frame := frameOf(req, 1, body)
			probe := kmsg.NewPtrApiVersionsRequest()
			_, _ = nc.Write(append(frame, frameOf(probe, 2, probe.AppendTo(nil))...)) // fails if it was closed
		}()
		for {
			id, resp := readResponse(t, nc)
			switch {
			case resp == nil || id == 2:
				return
			case id != 1:
				t.Fatalf("response to %d", id)
			}
			if req.IsFlexible() && key != keyAPIVersions {
				resp = resp[1:] // no tags
			}
			if err := req.ResponseKind().ReadFrom(resp); err != nil {
				t.Errorf("response: %v", err)
			}
		}
	})
}

// hurried serves with a context that has ended, so that nothing waits.
type hurried struct{ *Handler }

func (h *hurried) Serve(ctx context.Context, req *wire.Request, reply func(kmsg.Response)) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	h.Handler.Serve(ctx, req, reply)
}

// pipe returns a client's end of a connection to a handler.
func pipe(t *testing.T, h wire.Handler) net.Conn {
	client, server := net.Pipe()
	l := &oneConn{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.conns <- server
	s := wire.NewServer(wire.Options{Handler: h, MaxFrame: 1 << 20})
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = client.Close()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		<-served
	})
	return client
}

// oneConn is a listener that accepts what is in conns.
type oneConn struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func frameOf(req kmsg.Request, id int32, body []byte) []byte {
	b := binary.BigEndian.AppendUint16(make([]byte, 4), uint16(req.Key()))
	b = binary.BigEndian.AppendUint16(b, uint16(req.GetVersion()))
	b = binary.BigEndian.AppendUint32(b, uint32(id))
	b = append(b, 0xff, 0xff) // no client id
	if req.IsFlexible() {
		b = append(b, 0)
	}
	b = append(b, body...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// readResponse returns a response behind its correlation id; nil at the end.
func readResponse(t *testing.T, r io.Reader) (id int32, body []byte) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
		return 0, nil
	}
	body = make([]byte, binary.BigEndian.Uint32(head[:])-4)
	if _, err := io.ReadFull(r, body); err != nil {
		t.Error(err)
	}
	return int32(binary.BigEndian.Uint32(head[4:])), body
}
