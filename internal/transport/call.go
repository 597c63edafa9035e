package transport

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"chronik/internal/ident"
)

// firstContact is how long a call waits for a peer whose connection is just
// being made.
const firstContact = time.Second

// A response begins with one of these.
const (
	answerOK    = 0
	answerError = 1
)

// Call implements Sender.
func (t *Transport) Call(ctx context.Context, node ident.NodeID, method string, req []byte) ([]byte, error) {
	return t.CallInto(ctx, node, method, req, nil)
}

// CallInto is Call with the answer in buf if cap(buf) exceeds its length: who makes
// many large calls need not have memory made for each.
func (t *Transport) CallInto(ctx context.Context, node ident.NodeID, method string, req, buf []byte) ([]byte, error) {
	if len(method) > 255 {
		return nil, fmt.Errorf("call %.20q…: method name of %d bytes", method, len(method))
	}
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("node %d: %s: %w", node, method, err)
	}
	if len(req) > MaxFrame {
		return fail(fmt.Errorf("request of %d bytes: %w", len(req), ErrTooLarge))
	}
	p := t.peer(node)
	if p == nil {
		return fail(ErrNotSent)
	}
	s, err := p.callStream(ctx)
	if err != nil {
		return fail(err)
	}
	head := make([]byte, 0, 1+len(method))
	head = append(append(head, byte(len(method))), method...)
	var reply received
	err = s.cc.Invoke(ctx, callMethod, mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(req)}, &reply)
	if err != nil {
		return fail(callError(ctx, err))
	}
	b := reply.takeInto(buf)
	if len(b) == 0 || b[0] > answerError {
		return fail(fmt.Errorf("%w: answer of %d bytes", errMessage, len(b)))
	}
	if b[0] == answerError {
		return nil, &RemoteError{Node: node, Method: method, Text: string(b[1:])}
	}
	return b[1:len(b):len(b)], nil
}

// callStream returns the bulk connection. It waits, a little, only while that
// is being made for the first time or just after Control.
func (p *peer) callStream(ctx context.Context) (*outStream, error) {
	p.mu.Lock()
	s, soon := p.out[bulk], p.out[Control] != nil || !p.tried
	p.mu.Unlock()
	if s != nil {
		return s, nil
	}
	if !soon {
		return nil, ErrNotSent
	}
	wait, cancel := context.WithTimeout(ctx, firstContact)
	defer cancel()
	s, err := p.await(wait, bulk)
	if err == nil {
		return s, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, ErrNotSent
}

// callError turns gRPC's error into ours. The callee's own errors do not pass here.
func callError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	st := status.Convert(err)
	if st.Code() == codes.DeadlineExceeded {
		return context.DeadlineExceeded
	}
	if st.Code() == codes.ResourceExhausted {
		return fmt.Errorf("%w: %s", ErrTooLarge, st.Message())
	}
	return fmt.Errorf("%w: %s", ErrUnreachable, st.Message())
}

// serveCall answers a peer's call.
func (t *Transport) serveCall(ctx context.Context, decode func(any) error) (any, error) {
	c, err := connOf(ctx)
	if err != nil {
		return nil, err
	}
	from := c.peer.Load()
	if from == nil {
		return nil, status.Error(codes.FailedPrecondition, "no hello on this connection")
	}
	var m received
	if err := decode(&m); err != nil {
		return nil, err
	}
	b := m.take()
	method, req, ok := splitCall(b)
	if !ok {
		return nil, status.Error(codes.InvalidArgument, "malformed call")
	}
	resp, err := t.opt.Handler.Call(ctx, *from, method, req)
	if err == nil && len(resp) > MaxFrame {
		err = fmt.Errorf("response of %d bytes: %w", len(resp), ErrTooLarge)
	}
	if err != nil && ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err() // the caller's deadline: no word of the callee's
	}
	if err != nil {
		return answer(answerError, []byte(err.Error())), nil
	}
	a := answer(answerOK, resp)
	if r, ok := t.opt.Handler.(Recycler); ok {
		a[1] = mem.NewBuffer(&resp, recycling{r, method})
	}
	return a, nil
}

// recycling gives a response back to the handler once it is written.
type recycling struct {
	to     Recycler
	method string
}

// Get implements mem.BufferPool. Nobody takes buffers from here.
func (recycling) Get(n int) *[]byte { b := make([]byte, n); return &b }

// Put implements mem.BufferPool.
func (r recycling) Put(b *[]byte) { r.to.Sent(r.method, *b) }

// splitCall takes a request apart: a byte of length, the method, the request.
func splitCall(b []byte) (method string, req []byte, ok bool) {
	if len(b) == 0 {
		return "", nil, false
	}
	n := 1 + int(b[0])
	if len(b) < n {
		return "", nil, false
	}
	return string(b[1:n]), b[n:], true
}

func answer(kind byte, b []byte) mem.BufferSlice {
	return mem.BufferSlice{mem.SliceBuffer{kind}, mem.SliceBuffer(b)}
}
