package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/mem"
)

// This file is the plain stream: frames over a TCP connection of their own, written from where
// they lie and read into where they stay. doc.go has its layout.

const (
	// plainPreface is what the dialer of a plain stream sends first, as long as http2Preface.
	plainPreface = "CHRONIK plain stream 1\r\n"
	// plainHeader is the metadata by which the answer to a Control stream says that the node
	// takes plain streams. Releases before 0.4.0 do not.
	plainHeader = "chronik-plain"

	// The answer to a plain stream's preamble, behind its length, is one of these and the rest.
	plainAccepted = 0
	plainRefused  = 1

	// signOfLife stands where a frame's length would, and nothing follows.
	signOfLife = 1<<32 - 1
	// quiet is how long a plain stream may be without a sign of life of the other end.
	quiet = keepaliveTime + keepaliveTimeout

	// readBuffer is what one read takes at most, but for the rest of a frame longer than that.
	readBuffer = 64 << 10
	// trustedBytes is the memory that a length is given on its word; more comes with the bytes.
	trustedBytes = 1 << 20
)

// plainSession is session with a plain stream.
func (l *link) plainSession(addr string) (accepted bool, err error) {
	if addr == "" {
		return false, errors.New("no address known")
	}
	conn, err := dialFor(l.p.ctx, l.p.t.opt.Dial, addr)
	if err != nil {
		return false, err
	}
	end := sync.OnceFunc(func() { _ = conn.Close() })
	defer end()
	defer context.AfterFunc(l.p.ctx, end)()
	_ = conn.SetDeadline(time.Now().Add(helloTimeout)) // if it fails, so does what follows
	info, err := l.greetPlain(conn)
	if err != nil {
		return false, err
	}
	_ = conn.SetDeadline(time.Time{})
	s := &outStream{info: info, end: end}
	if !l.p.setOut(l.class, s) {
		return false, errors.New("connection given up")
	}
	l.servePlain(conn, end)
	l.p.clearOut(l.class, s)
	return true, nil
}

// greetPlain says Hello and judges the answer.
func (l *link) greetPlain(conn net.Conn) (PeerInfo, error) {
	hello := l.hello()
	b := binary.BigEndian.AppendUint32([]byte(plainPreface), uint32(len(hello)))
	if _, err := conn.Write(append(b, hello...)); err != nil {
		return PeerInfo{}, err
	}
	b, err := readPart(conn, 1+preambleBytes+MaxHello)
	switch {
	case err != nil:
		return PeerInfo{}, fmt.Errorf("no hello: %w", err)
	case len(b) == 0 || b[0] > plainRefused:
		return PeerInfo{}, fmt.Errorf("%w: answer of %d bytes", errMessage, len(b))
	case b[0] == plainRefused:
		return PeerInfo{}, fmt.Errorf("%w: %s", errRefused, b[1:])
	}
	return l.judgeReply(b[1:])
}

// readPart reads a length, at most limit, and as many bytes.
func readPart(r io.Reader, limit int) ([]byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(limit) {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", errMessage, n, limit)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

// servePlain sends frames until the connection ends.
func (l *link) servePlain(conn net.Conn, end func()) {
	box := l.p.boxes[l.class]
	ticket := box.attach()
	var sender sync.WaitGroup
	sender.Go(func() {
		l.sendPlain(conn, box, ticket)
		end()
	})
	defer func() {
		box.detach(ticket)
		sender.Wait()
	}()
	// The peer sends a byte each second. What is sent back, if nothing else is on its way, is this end's.
	var b [16]byte
	for {
		_ = conn.SetReadDeadline(time.Now().Add(quiet))
		if _, err := conn.Read(b[:]); err != nil {
			end()
			return
		}
		box.sign()
	}
}

func (l *link) sendPlain(conn net.Conn, box *outbox, ticket uint64) {
	st := &l.p.stats
	var vec net.Buffers
	for {
		m, frames, ok := box.pop(ticket)
		if !ok {
			return
		}
		vec = vec[:0]
		for _, b := range m {
			vec = append(vec, b.ReadOnlyData())
		}
		rest := vec // WriteTo takes from it, and forgets what it has written
		n, err := rest.WriteTo(conn)
		m.Free()
		if err != nil {
			return
		}
		st.messagesSent.Add(1)
		st.framesSent.Add(uint64(frames))
		st.bytesSent.Add(uint64(n))
	}
}

// servePlainStream is one plain stream from a peer, from its Hello to its end. Until
// the Hello is accepted, c ends with its timer.
func (t *Transport) servePlainStream(c *conn) {
	defer context.AfterFunc(t.ctx, c.close)()
	b, err := readPart(c, preambleBytes+MaxHello)
	if err != nil {
		t.stranger(c.RemoteAddr(), err)
		return
	}
	a, err := t.admit(c, b)
	if err == nil && a.class != Append {
		a.leave()
		err = refusal("a plain stream carries entries only")
	}
	if err != nil {
		// Only a refusal is an answer: a node that is closing does not refuse anybody.
		if no := refusal(""); errors.As(err, &no) {
			_ = answerPlain(c, plainRefused, []byte(trim(string(no)))) // it may be gone
		}
		return
	}
	defer a.leave()
	_ = c.SetDeadline(time.Time{}) // gRPC's, for what it takes for a handshake
	if err := answerPlain(c, plainAccepted, a.reply); err != nil {
		return
	}
	a.p.setLive(a.class, a.in)
	t.receivePlain(c, a)
}

func answerPlain(w io.Writer, kind byte, rest []byte) error {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, frameHeader+1+len(rest)), uint32(1+len(rest)))
	_, err := w.Write(append(append(b, kind), rest...))
	return err
}

// receivePlain delivers frames until the connection ends.
func (t *Transport) receivePlain(c *conn, a *admission) {
	src := &watched{conn: c, began: time.Now()}
	done := make(chan struct{})
	var life sync.WaitGroup
	life.Go(func() { src.signs(done) })
	defer life.Wait()
	defer c.close()
	defer close(done)
	st := &a.p.stats
	for r := newFrameReader(src); ; {
		frame, err := r.next()
		if errors.Is(err, errMessage) {
			t.log.Error("ended a stream with malformed frames", "peer", a.in.info.Node, "class", a.class.String(), "err", err)
		}
		if err != nil {
			return
		}
		st.framesReceived.Add(1)
		st.bytesReceived.Add(uint64(frameHeader + len(frame)))
		t.opt.Handler.Frame(a.in.info, a.class, frame)
	}
}

// watched is a connection of which it is known how long it has been waited for.
type watched struct {
	conn  net.Conn
	began time.Time
	// since is when the wait began, after began, in nanoseconds; 0 while nobody waits: what
	// the Handler takes to accept a frame is not the other end's silence.
	since atomic.Int64
}

// Read implements io.Reader.
func (w *watched) Read(b []byte) (int, error) {
	w.since.Store(max(1, int64(time.Since(w.began))))
	n, err := w.conn.Read(b)
	w.since.Store(0)
	return n, err
}

// signs gives a sign of life each second until done, and ends a connection whose other end gives none.
func (w *watched) signs(done <-chan struct{}) {
	tick := time.NewTicker(keepaliveTime)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		since := w.since.Load()
		if since != 0 && time.Since(w.began)-time.Duration(since) > quiet {
			_ = w.conn.Close() // which ends the read
			return
		}
		if _, err := w.conn.Write([]byte{0}); err != nil {
			return // the read tells
		}
	}
}

// frameReader cuts what it reads into frames.
type frameReader struct {
	src io.Reader
	// buf[at:end] was read and belongs to no frame yet.
	buf     []byte
	at, end int
	// chunk is what is left of the memory that small frames share.
	chunk []byte
}

func newFrameReader(src io.Reader) *frameReader {
	return &frameReader{src: src, buf: make([]byte, readBuffer)}
}

// next returns the next frame, which is the caller's.
func (r *frameReader) next() ([]byte, error) {
	for {
		if err := r.fill(frameHeader); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(r.buf[r.at:])
		r.at += frameHeader
		switch {
		case n == signOfLife:
			continue
		case n > MaxFrame:
			return nil, fmt.Errorf("%w: frame of %d bytes, limit %d", errMessage, n, MaxFrame)
		case int(n) > len(r.buf)/2:
			return r.large(int(n))
		}
		if err := r.fill(int(n)); err != nil {
			return nil, err
		}
		frame := r.room(int(n))
		r.at += copy(frame, r.buf[r.at:])
		return frame, nil
	}
}

// fill reads until buf[at:end] has n bytes, which buf has room for.
func (r *frameReader) fill(n int) error {
	if r.at == r.end {
		r.at, r.end = 0, 0
	}
	if len(r.buf)-r.at < n {
		r.end = copy(r.buf, r.buf[r.at:r.end])
		r.at = 0
	}
	for r.end-r.at < n {
		m, err := r.src.Read(r.buf[r.end:])
		r.end += m
		if err != nil && r.end-r.at < n {
			return err
		}
	}
	return nil
}

// room returns n bytes that nobody else uses.
func (r *frameReader) room(n int) []byte {
	if n > len(r.chunk) {
		r.chunk = make([]byte, max(n, min(chunkBytes, r.end-r.at)))
	}
	b := r.chunk[:n:n]
	r.chunk = r.chunk[n:]
	return b
}

// large reads a frame of n bytes, of which buf has the beginning, into memory of its own.
func (r *frameReader) large(n int) ([]byte, error) {
	frame := make([]byte, min(n, trustedBytes))
	at := copy(frame, r.buf[r.at:r.end])
	r.at += at
	for {
		m, err := io.ReadFull(r.src, frame[at:])
		if at += m; at == n || err != nil {
			return frame, err
		}
		more := make([]byte, min(n, 2*len(frame)))
		copy(more, frame)
		frame = more
	}
}

// sign queues a sign of life, unless something is queued that is one.
func (o *outbox) sign() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.open || len(o.queue) > 0 {
		return
	}
	m := new(packer)
	m.sign()
	o.queue = append(o.queue, m)
	o.bytes += m.size
	o.wake.Signal()
}

func (m *packer) sign() {
	m.bufs = append(m.bufs, mem.SliceBuffer(life))
	m.size += len(life)
}

var life = binary.BigEndian.AppendUint32(nil, signOfLife)
