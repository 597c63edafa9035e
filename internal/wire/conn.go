package wire

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/bytepool"
	"chronik/internal/invariant"
)

// Conn is one client connection.
type Conn struct {
	srv    *Server
	nc     net.Conn
	id     uint64
	remote string
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	br     *bufio.Reader

	// writing is when the peer had taken the last stallPiece of what is being written, at
	// first when that was begun, Unix nanoseconds; 0: nothing is being written.
	writing atomic.Int64
	// reading is when the peer had brought the last stallPiece of a frame that holds request
	// memory, at first when it got that; 0: no such frame is being read.
	reading atomic.Int64

	mu sync.Mutex
	// readable wakes the reader: there may be room. writable wakes the writer:
	// the head may be answered, or there is nothing more to come.
	readable, writable *sync.Cond
	// queue holds the requests without a written response, in arrival order.
	// The reader appends, the writer removes from the head.
	queue []*pending
	// waiting is about how many bytes of answers stand in queue.
	waiting int64
	// draining: no further request is read; the connection closes when queue is empty.
	draining bool
	dead     bool
}

// pending is a request on its way: a slot in its connection's queue.
type pending struct {
	c       *Conn
	key     int16
	version int16
	id      int32
	held    int64 // bytes of Options.Memory; under c.mu once it is in the queue
	room    int64 // bytes of Options.Responses
	work    *work // of Options.Backlog, until it is answered
	bytes   int64 // about the response's size, once answered
	resp    kmsg.Response
	// buffers hold records of resp; given back once they are written.
	buffers [][]byte
	// answered: reply was called. Under c.mu.
	answered bool
}

func newConn(s *Server, nc net.Conn, id uint64) *Conn {
	c := &Conn{srv: s, nc: nc, id: id, remote: nc.RemoteAddr().String(), br: bufio.NewReaderSize(nc, 4<<10)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.readable, c.writable = sync.NewCond(&c.mu), sync.NewCond(&c.mu)
	return c
}

// RemoteAddr is the client's address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// LocalAddr is the address the client reached.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// ID is unique among the server's connections.
func (c *Conn) ID() uint64 { return c.id }

// Closed is closed with the connection.
func (c *Conn) Closed() <-chan struct{} { return c.ctx.Done() }

// Close ends the connection now; answers that were not written are dropped. A
// handler calls it where the protocol has no other way to say no: a produce
// request with acks=0 that failed.
func (c *Conn) Close() { c.close() }

// close ends the connection now. Answers that were not written are dropped.
func (c *Conn) close() {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return
	}
	c.dead = true
	var held, room int64
	for _, p := range c.queue {
		if p.answered { // the others give theirs back in reply
			held += p.takeHeld()
			room += p.room
		}
	}
	c.queue, c.waiting = nil, 0
	c.readable.Broadcast()
	c.writable.Broadcast()
	c.mu.Unlock()
	c.cancel()
	_ = c.nc.Close()
	c.srv.opt.Memory.release(held)
	c.srv.opt.Responses.release(room)
	c.srv.remove(c)
}

// drain lets the requests in flight finish and reads no other.
func (c *Conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // a failure means it is closed
	c.readable.Broadcast()
	c.writable.Broadcast()
}

// awaitRoom blocks until the next request may be read; false: never.
func (c *Conn) awaitRoom() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.dead && !c.draining && (len(c.queue) >= c.srv.opt.MaxInflight || c.waiting > int64(c.srv.opt.MaxPendingBytes)) {
		c.readable.Wait()
	}
	return !c.dead && !c.draining
}

// push reserves the next slot; false when the connection is dead.
func (c *Conn) push(p *pending) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return false
	}
	c.queue = append(c.queue, p)
	return true
}

// reply is what a handler gets.
func (p *pending) reply(resp kmsg.Response) {
	if resp != nil {
		if resp.Key() != p.key {
			invariant.Check(false, "request key %d answered with key %d", p.key, resp.Key())
		}
		resp.SetVersion(p.version)
	}
	p.answer(resp)
}

// answer fills the slot.
func (p *pending) answer(resp kmsg.Response) {
	var bytes int64
	if resp != nil {
		bytes = int64(sizeHint(resp))
	}
	c := p.c
	c.srv.opt.Backlog.release(p.work)
	c.mu.Lock()
	if p.answered {
		c.mu.Unlock()
		invariant.Check(false, "request key %d version %d of %s answered twice", p.key, p.version, c.remote)
	}
	p.answered = true
	if c.dead {
		held := p.takeHeld()
		c.mu.Unlock()
		c.srv.opt.Memory.release(held)
		c.srv.opt.Responses.release(p.room)
		return
	}
	p.resp, p.bytes = resp, bytes
	c.waiting += bytes
	if c.queue[0] == p {
		c.writable.Signal()
	}
	c.mu.Unlock()
}

// takeHeld returns the bytes of Options.Memory that the request still holds; the
// caller gives them back. c.mu is held.
func (p *pending) takeHeld() int64 {
	held := p.held
	p.held = 0
	return held
}

// maxWrite is about how much one write collects.
const maxWrite = 1 << 20

// take waits for an answer at the head of the queue and appends all contiguous
// answers to batch. It returns none when the connection is dead or drained.
func (c *Conn) take(batch []*pending) []*pending {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.dead || c.draining && len(c.queue) == 0 {
			return batch
		}
		if len(c.queue) > 0 && c.queue[0].answered {
			break
		}
		c.writable.Wait()
	}
	var bytes int64
	for _, p := range c.queue {
		if !p.answered || bytes > maxWrite {
			break
		}
		bytes += p.bytes
		batch = append(batch, p)
	}
	return batch
}

// done removes the written head of the queue.
func (c *Conn) done(batch []*pending) {
	var held, room int64
	for _, p := range batch { // written: nobody reads them
		for _, b := range p.buffers {
			bytepool.Put(b)
		}
		p.buffers = nil
	}
	c.mu.Lock()
	if !c.dead { // close has settled everything else
		for _, p := range batch {
			held += p.takeHeld()
			room += p.room
			c.waiting -= p.bytes
		}
		n := copy(c.queue, c.queue[len(batch):])
		clear(c.queue[n:])
		c.queue = c.queue[:n]
		c.readable.Signal()
	}
	c.mu.Unlock()
	c.srv.opt.Memory.release(held)
	c.srv.opt.Responses.release(room)
}

// writeLoop writes answers in order until the connection ends, and closes it.
func (c *Conn) writeLoop() {
	defer c.srv.wg.Done()
	defer c.close()
	var batch []*pending
	var g gather
	for {
		batch = c.take(batch[:0])
		if len(batch) == 0 {
			return
		}
		buf := getBuffer(minBuffer)
		g.reset(*buf)
		for _, p := range batch {
			g.response(p)
			p.resp = nil // its records are in g
		}
		err := c.write(&g)
		*buf = g.out
		g.reset(nil)
		putBuffer(buf)
		if err != nil {
			// The buffers of the records are left to the collector: who closed the connection
			// may have come before the last byte was taken.
			if !errors.Is(err, net.ErrClosed) {
				c.srv.log.Debug("connection lost", "peer", c.remote, "err", err)
			}
			return
		}
		c.done(batch)
		clear(batch)
	}
}

// write sends all of g. A peer that takes nothing for the idle timeout is given up.
func (c *Conn) write(g *gather) error {
	defer c.writing.Store(0)
	parts := g.slices()
	now := time.Now()
	c.writing.Store(now.UnixNano())
	moved, taken := now, 0 // when a byte was taken last; bytes since c.writing
	for left := g.size(); left > 0; {
		until := now.Add(min(writeTurn, c.srv.opt.IdleTimeout-now.Sub(moved)))
		if err := c.nc.SetWriteDeadline(until); err != nil {
			return err
		}
		n, err := g.send(c.nc, parts, writeMost)
		now = time.Now()
		if n > 0 {
			parts = skip(parts, n)
			left -= n
			c.srv.bytesOut.Add(uint64(n))
			moved = now
			if taken += n; taken >= stallPiece {
				taken = 0
				c.writing.Store(now.UnixNano())
			}
		}
		if err != nil && (!errors.Is(err, os.ErrDeadlineExceeded) || now.Sub(moved) >= c.srv.opt.IdleTimeout) {
			return err
		}
	}
	return nil
}

// readLoop serves requests until the connection ends. When the server drains,
// the writer closes the connection.
func (c *Conn) readLoop() {
	defer c.srv.wg.Done()
	for c.awaitRoom() {
		err := c.serveOne()
		if err == nil {
			continue
		}
		var bad *protocolError
		switch {
		case c.isDraining():
			return
		case errors.As(err, &bad):
			c.srv.protocolErrors.Add(1)
			c.srv.log.Warn("closed connection", "peer", c.remote, "reason", bad.reason)
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.srv.idleConnsGone.Add(1)
			c.srv.log.Debug("closed idle connection", "peer", c.remote, "took", c.srv.opt.IdleTimeout)
		case !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed):
			c.srv.log.Debug("connection lost", "peer", c.remote, "err", err)
		}
		c.close()
		return
	}
}

func (c *Conn) isDraining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining && !c.dead
}

// serveOne reads one request and gives it to the handler.
func (c *Conn) serveOne() error {
	f, err := c.readFrame()
	if err != nil {
		return err
	}
	p := &pending{c: c, key: f.key, version: f.version, id: f.correlationID, held: f.held}
	if f.refusal != nil {
		if c.push(p) {
			p.answer(f.refusal)
		} else {
			c.srv.opt.Memory.release(p.held)
		}
		return nil
	}
	req := &Request{
		Conn: c, Key: f.key, Version: f.version, CorrelationID: f.correlationID,
		Size: f.size, Received: time.Now(), p: p, buf: f.buf,
	}
	if err = f.decode(req, c.srv.opt.MaxFrame, p, c.srv.opt.Memory); err != nil {
		c.srv.opt.Memory.release(p.held)
		return err
	}
	if f.key == keyProduce {
		// The frame is all here: who sends it slowly holds up nobody.
		if p.work = c.srv.opt.Backlog.acquire(int64(f.size), c.ctx.Done()); p.work == nil {
			c.srv.opt.Memory.release(p.held)
			return net.ErrClosed
		}
	}
	if !c.push(p) {
		c.srv.opt.Backlog.drop(p.work)
		c.srv.opt.Memory.release(p.held)
		return net.ErrClosed
	}
	c.srv.requests.Add(1)
	c.srv.opt.Handler.Serve(c.ctx, req, p.reply)
	return nil
}

// setReadDeadline gives the peer until the idle timeout to send something,
// unless the connection is draining.
func (c *Conn) setReadDeadline() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return os.ErrDeadlineExceeded
	}
	return c.nc.SetReadDeadline(time.Now().Add(c.srv.opt.IdleTimeout))
}

// busy tells whether a request is in flight.
func (c *Conn) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) > 0
}
