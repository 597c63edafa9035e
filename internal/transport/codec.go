package transport

import (
	"fmt"

	"google.golang.org/grpc/mem"
)

// codec hands bytes through: what gRPC calls a message is a mem.BufferSlice
// on the way out and a *received on the way in. Nothing is marshalled.
type codec struct{}

// received is a message as it came. Its owner frees it.
type received struct{ data mem.BufferSlice }

func (r *received) free() {
	r.data.Free()
	r.data = nil
}

// take returns the message's bytes in one piece and frees the message.
func (r *received) take() []byte {
	b := r.data.Materialize()
	r.free()
	return b
}

// takeInto is take into buf if the bytes fit there.
func (r *received) takeInto(buf []byte) []byte {
	n := r.data.Len()
	if n > cap(buf) {
		return r.take()
	}
	b := buf[:n]
	r.data.CopyTo(b)
	r.free()
	return b
}

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(mem.BufferSlice)
	if !ok {
		return nil, fmt.Errorf("transport: cannot send a %T", v)
	}
	return b, nil
}

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*received)
	if !ok {
		return fmt.Errorf("transport: cannot receive into a %T", v)
	}
	data.Ref()
	r.data = data
	return nil
}

// Name implements encoding.CodecV2. It is the content subtype on the wire.
func (codec) Name() string { return "chronik" }
