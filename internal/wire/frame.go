package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	keyProduce     = 0
	keyAPIVersions = 18

	// growthStep is what a frame's length alone may allocate.
	growthStep = 64 << 10
	// minFrame is key, version and correlation id.
	minFrame = 8

	errUnsupportedVersion = 35
)

// protocolError is a breach of the protocol: the connection is closed and the
// reason logged.
type protocolError struct{ reason string }

func (e *protocolError) Error() string { return e.reason }

func breach(format string, args ...any) error {
	return &protocolError{fmt.Sprintf(format, args...)}
}

// frame is one request as it came, its header parsed as far as order and
// version need it.
type frame struct {
	size          int
	key, version  int16
	correlationID int32
	rest          []byte        // behind the correlation id
	refusal       kmsg.Response // set when the version is not served
	held          int64         // bytes of Options.Memory
	buf           *[]byte       // what rest lies in, of a frame that may be released
}

// frames are the buffers of Produce requests that were released: under load they
// are most of what a node takes in, and all of one size.
var frames = sync.Pool{New: func() any { return new([]byte) }}

// Release says that nobody reads the body's byte slices any more: the frame may be
// overwritten by the next one. It is optional, and called at most once.
func (r *Request) Release() {
	if r.buf != nil && cap(*r.buf) <= maxPooledBuffer {
		frames.Put(r.buf)
	}
	r.buf = nil
}

// GiveBack gives the request's bytes of Options.Memory back before the response is
// written. It is optional, for a handler that answers much later and keeps nothing
// of the body: its large request would else keep others from being read.
func (r *Request) GiveBack() {
	if r.p != nil {
		c := r.p.c
		c.mu.Lock()
		held := r.p.takeHeld()
		c.mu.Unlock()
		c.srv.opt.Memory.release(held)
	}
}

// readFrame reads the next frame. Bodies alias its buffer, which is its own until
// the request is released, and for ever if it is not.
func (c *Conn) readFrame() (f frame, err error) {
	var head [4]byte
	if err := c.readIdle(head[:]); err != nil {
		return f, err
	}
	size := int32(binary.BigEndian.Uint32(head[:]))
	if size < minFrame || int(size) > c.srv.opt.MaxFrame {
		return f, badSize(head, size, c.srv.opt.MaxFrame)
	}
	f.size = int(size)
	var fixed [minFrame]byte
	if err := c.readFull(fixed[:]); err != nil {
		return f, err
	}
	be := binary.BigEndian
	f.key, f.version, f.correlationID = int16(be.Uint16(fixed[:])), int16(be.Uint16(fixed[2:])), int32(be.Uint32(fixed[4:]))
	if err := c.checkVersion(&f); err != nil {
		return f, err
	}
	var buf []byte
	first := min(f.size, growthStep) - minFrame
	if f.key == keyProduce {
		f.buf = frames.Get().(*[]byte)
		buf = *f.buf
	}
	if cap(buf) < first {
		buf = make([]byte, first)
	}
	buf = buf[:first]
	if err := c.readFull(buf); err != nil {
		return f, err
	}
	// Only what is large waits for memory. Small requests pass, because they are
	// what gives memory back: fetches, heartbeats, the joins others wait for.
	if f.key == keyProduce || f.size > growthStep {
		if !c.srv.opt.Memory.acquireNudging(int64(f.size), c.ctx.Done(), func() { c.srv.shedSenders(time.Now()) }) {
			return f, net.ErrClosed
		}
	} else {
		c.srv.opt.Memory.add(int64(f.size))
	}
	f.held = int64(f.size)
	if buf, err = c.readRest(buf, f.size-minFrame); err != nil {
		c.srv.opt.Memory.release(f.held)
		return f, err
	}
	c.srv.bytesIn.Add(uint64(f.size) + 4)
	if f.rest = buf; f.buf != nil {
		*f.buf = buf
	}
	return f, nil
}

// readRest reads a frame on until there are size bytes. The peer must bring a piece of it now and
// then while others wait for the memory that the frame holds.
func (c *Conn) readRest(buf []byte, size int) ([]byte, error) {
	if len(buf) == size {
		return buf, nil
	}
	defer c.reading.Store(0)
	c.reading.Store(time.Now().UnixNano())
	piece := len(buf) // where the piece that is being brought begins
	for len(buf) < size {
		if len(buf) == cap(buf) {
			// Double what has arrived: a lying length costs what was sent.
			grown := make([]byte, len(buf), min(size, 2*len(buf)))
			copy(grown, buf)
			buf = grown
		}
		n, err := c.readSome(buf[len(buf):min(size, cap(buf))])
		if buf = buf[:len(buf)+n]; err != nil && len(buf) < size {
			return nil, err
		}
		if len(buf)-piece >= max(stallPiece, size/64) { // who holds much brings much
			piece = len(buf)
			c.reading.Store(time.Now().UnixNano())
		}
	}
	return buf, nil
}

// readIdle reads a frame's length. A connection may be silent as long as a
// request of it is in flight.
func (c *Conn) readIdle(b []byte) error {
	for got := 0; got < len(b); {
		if err := c.setReadDeadline(); err != nil {
			return err
		}
		n, err := c.br.Read(b[got:])
		got += n
		if err != nil && got < len(b) {
			if errors.Is(err, os.ErrDeadlineExceeded) && c.busy() && !c.isDraining() {
				continue
			}
			return err
		}
	}
	return nil
}

// readFull fills b; every piece has the idle timeout.
func (c *Conn) readFull(b []byte) error {
	for len(b) > 0 {
		n, err := c.readSome(b)
		b = b[n:]
		if err != nil && len(b) > 0 {
			return err
		}
	}
	return nil
}

// readSome reads what is there, at least a byte.
func (c *Conn) readSome(b []byte) (int, error) {
	if err := c.setReadDeadline(); err != nil {
		return 0, err
	}
	return c.br.Read(b)
}

// checkVersion refuses keys and versions that are not served, before the body
// of a large frame is read.
func (c *Conn) checkVersion(f *frame) error {
	lo, hi, ok := c.srv.opt.Handler.Versions(f.key)
	if ok && f.version >= lo && f.version <= hi {
		return nil
	}
	if f.key != keyAPIVersions {
		if !ok {
			return breach("request of key %d (%s) is not served", f.key, kmsg.NameForKey(f.key))
		}
		return breach("%s version %d is not served (%d to %d are)", kmsg.NameForKey(f.key), f.version, lo, hi)
	}
	// A client that does not know us yet: version 0, which everybody reads, and
	// our range of the key, so that it asks again.
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.Version = 0
	resp.ErrorCode = errUnsupportedVersion
	if ok {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MinVersion, k.MaxVersion = keyAPIVersions, lo, hi
		resp.ApiKeys = append(resp.ApiKeys, k)
	}
	f.refusal = resp
	return nil
}

// badSize explains a length that cannot be one: mostly another protocol.
func badSize(head [4]byte, size int32, maxFrame int) error {
	switch string(head[:]) {
	case "GET ", "POST", "PUT ", "HEAD", "DELE", "OPTI", "PATC", "CONN", "PRI ":
		return breach("an HTTP request on the Kafka port (%q); the admin API has its own port, admin.listen", head)
	case "SSH-":
		return breach("an SSH client on the Kafka port")
	}
	if head[0] == 0x16 && head[1] == 0x03 {
		return breach("a TLS handshake on a plaintext port; the client's security.protocol must be PLAINTEXT")
	}
	switch {
	case size < 0:
		return breach("negative frame length %d: not a Kafka client", size)
	case size < minFrame:
		return breach("frame of %d bytes, a request has at least %d", size, minFrame)
	}
	return breach("frame of %d bytes, the limit is %d", size, maxFrame)
}

// decode parses the rest of the header and the body into req. What decoding
// allocates is added to p.held.
func (f *frame) decode(req *Request, maxBytes int, p *pending, memory *Quota) (err error) {
	name := kmsg.NameForKey(f.key)
	body := kmsg.RequestForKey(f.key)
	if body == nil {
		return breach("request of key %d is unknown", f.key)
	}
	body.SetVersion(f.version)
	rest, ok := parseHeader(f.rest, body.IsFlexible(), req)
	if !ok {
		return breach("%s version %d: malformed request header", name, f.version)
	}
	rest, cost, err := checkBody(f.key, f.version, rest)
	if err != nil {
		return breach("%s version %d: malformed body: %v", name, f.version, err)
	}
	if cost > maxBytes {
		return breach("%s version %d: %d bytes would decode to %d, the limit is %d", name, f.version, f.size, cost, maxBytes)
	}
	memory.add(int64(cost))
	p.held += int64(cost)
	defer func() {
		if r := recover(); r != nil {
			err = breach("%s version %d: decoding panicked: %v", name, f.version, r)
		}
	}()
	if err := body.ReadFrom(rest); err != nil {
		return breach("%s version %d: malformed body: %v", name, f.version, err)
	}
	req.Body = body
	return nil
}

// parseHeader reads client id and tags and returns the body.
func parseHeader(b []byte, flexible bool, req *Request) (body []byte, ok bool) {
	if len(b) < 2 {
		return nil, false
	}
	n := int(int16(binary.BigEndian.Uint16(b)))
	b = b[2:]
	if n > len(b) {
		return nil, false
	}
	if n > 0 {
		req.ClientID = string(b[:n])
		b = b[n:]
	}
	if !flexible {
		return b, true
	}
	w := walker{b: b}
	if !w.tags() {
		return nil, false
	}
	return b[w.at:], true
}

const (
	// minBuffer is where a buffer for encoded responses begins.
	minBuffer = 4 << 10
	// maxPooledBuffer keeps one huge response from pinning its memory for ever.
	maxPooledBuffer = 8 << 20
)

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// getBuffer returns a buffer with room for n bytes.
func getBuffer(n int) *[]byte {
	b := buffers.Get().(*[]byte)
	if cap(*b) < n {
		*b = make([]byte, 0, n)
	}
	return b
}

func putBuffer(b *[]byte) {
	if cap(*b) <= maxPooledBuffer {
		buffers.Put(b)
	}
}
