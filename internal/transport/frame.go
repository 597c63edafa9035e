package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"google.golang.org/grpc/mem"

	"chronik/internal/ident"
)

const (
	// MaxFrame bounds one frame, and a call's request and response.
	MaxFrame = 64 << 20

	frameHeader = 4
	// packBytes is how far a message is filled with frames; a larger frame
	// travels alone.
	packBytes = 1 << 20
	// maxMessage is what a receiver takes as one message.
	maxMessage = MaxFrame + packBytes
	// copyBelow: a buffer shorter than this is copied beside its neighbours.
	// Handing it over by reference costs an allocation and a vector element,
	// which is more than the copy.
	copyBelow = 1 << 10
	// arenaBytes is the size of the pooled arenas that copies go to.
	arenaBytes = 32 << 10
	// chunkBytes bounds the buffer that small received frames share, and with
	// it the memory that one frame kept by its owner can pin.
	chunkBytes = 64 << 10
)

// errMessage says that a peer sent bytes which are not a sequence of frames.
var errMessage = errors.New("malformed message")

// arenas is the pool of arenaBytes buffers. gRPC puts one back when the last
// slice of it is on the wire. Unlike gRPC's own pools it does not clear.
var arenas mem.BufferPool = &arenaPool{}

type arenaPool struct{ pool sync.Pool }

func (p *arenaPool) Get(int) *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		*b = (*b)[:arenaBytes]
		return b
	}
	b := make([]byte, arenaBytes)
	return &b
}

func (p *arenaPool) Put(b *[]byte) { p.pool.Put(b) }

// packer builds one message: frames, each behind its length.
type packer struct {
	bufs mem.BufferSlice
	// root owns arena; every copied piece is a slice of it. nil before the first copy.
	root  mem.Buffer
	arena []byte
	// arena[start:used] is written and not yet in bufs.
	start, used int
	size        int // bytes of all frames with their headers
	frames      int
}

// frame adds one frame of n bytes made of bufs, which must not change any more.
func (m *packer) frame(n int, bufs [][]byte) {
	var head [frameHeader]byte
	binary.BigEndian.PutUint32(head[:], uint32(n))
	m.copy(head[:])
	for _, b := range bufs {
		switch {
		case len(b) >= copyBelow:
			m.flush()
			m.bufs = append(m.bufs, mem.SliceBuffer(b))
		case len(b) > 0:
			m.copy(b)
		}
	}
	m.size += frameHeader + n
	m.frames++
}

func (m *packer) copy(b []byte) {
	if m.used+len(b) > len(m.arena) {
		m.release()
		a := arenas.Get(arenaBytes)
		m.arena, m.root = *a, mem.NewBuffer(a, arenas)
	}
	m.used += copy(m.arena[m.used:], b)
}

func (m *packer) flush() {
	if m.used > m.start {
		m.bufs = append(m.bufs, m.root.Slice(m.start, m.used))
		m.start = m.used
	}
}

// release hands the arena over to the slices of it in bufs.
func (m *packer) release() {
	m.flush()
	if m.root != nil {
		m.root.Free()
	}
	m.root, m.arena, m.start, m.used = nil, nil, 0, 0
}

// done returns the message. The packer is empty afterwards.
func (m *packer) done() mem.BufferSlice {
	m.release()
	b := m.bufs
	*m = packer{}
	return b
}

// unpack calls fn for each frame of a message, in order. fn owns its frame:
// bytes are copied out of data, small frames side by side into chunks.
func unpack(data mem.BufferSlice, fn func(frame []byte)) error {
	r := data.Reader()
	defer func() { _ = r.Close() }() // never fails
	var chunk []byte
	for r.Remaining() > 0 {
		var head [frameHeader]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return fmt.Errorf("%w: frame header cut short: %w", errMessage, err)
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		if n > r.Remaining() {
			return fmt.Errorf("%w: frame of %d bytes where %d are left", errMessage, n, r.Remaining())
		}
		if n > len(chunk) {
			chunk = make([]byte, max(n, min(chunkBytes, r.Remaining())))
		}
		if _, err := io.ReadFull(r, chunk[:n]); err != nil {
			return fmt.Errorf("%w: %w", errMessage, err)
		}
		frame := chunk[:n:n]
		chunk = chunk[n:]
		fn(frame)
	}
	return nil
}

// preamble is the first message of a stream, in each direction.
type preamble struct {
	version uint8
	class   Class
	from    ident.NodeID
	to      ident.NodeID // the node that the dialer means to reach
	hello   []byte       // the Handler's, opaque
}

const (
	protocolVersion = 1
	preambleMagic   = "CHRN"
	preambleBytes   = len(preambleMagic) + 1 + 1 + 4 + 4
	// MaxHello bounds what Handler.Hello may return.
	MaxHello = 1 << 20
)

func (p preamble) encode() []byte {
	b := make([]byte, 0, preambleBytes+len(p.hello))
	b = append(b, preambleMagic...)
	b = append(b, p.version, byte(p.class))
	b = binary.BigEndian.AppendUint32(b, uint32(p.from))
	b = binary.BigEndian.AppendUint32(b, uint32(p.to))
	return append(b, p.hello...)
}

// decodePreamble reads a preamble. Of another version it reads the version only.
func decodePreamble(b []byte) (preamble, error) {
	if len(b) < preambleBytes || !strings.HasPrefix(string(b[:len(preambleMagic)]), preambleMagic) {
		return preamble{}, fmt.Errorf("%w: not a chronik preamble", errMessage)
	}
	if len(b) > preambleBytes+MaxHello {
		return preamble{}, fmt.Errorf("%w: hello of %d bytes, limit %d", errMessage, len(b)-preambleBytes, MaxHello)
	}
	p := preamble{version: b[4], class: Class(b[5])}
	if p.version != protocolVersion {
		return p, fmt.Errorf("node-to-node protocol version %d, this program speaks %d: upgrade the older one", p.version, protocolVersion)
	}
	p.from = ident.NodeID(binary.BigEndian.Uint32(b[6:]))
	p.to = ident.NodeID(binary.BigEndian.Uint32(b[10:]))
	p.hello = b[preambleBytes:]
	if p.class > bulk {
		return p, fmt.Errorf("%w: stream class %d", errMessage, p.class)
	}
	return p, nil
}
