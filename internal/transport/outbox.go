package transport

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// outbox is the queue of frames for one peer and class. Senders push, one
// goroutine pops whole messages, so many small frames leave as one.
type outbox struct {
	limit int

	mu   sync.Mutex
	wake sync.Cond
	// open says that frames are taken: the peer has accepted our Control stream.
	open bool
	// serial is raised when the stream that pops must stop popping.
	serial uint64
	// queue is FIFO; only its last message still grows.
	queue []*packer
	// bytes is what queue holds and what the popped message, still on its way
	// into the stream, holds. bytes <= limit, or one frame is in the box.
	bytes  int
	popped int
}

func newOutbox(limit int) *outbox {
	o := &outbox{limit: limit}
	o.wake.L = &o.mu
	return o
}

// push queues one frame. It returns false when the box is closed or full.
func (o *outbox) push(bufs [][]byte) bool {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	if n > MaxFrame {
		return false
	}
	need := frameHeader + n
	o.mu.Lock()
	if !o.open || (o.bytes > 0 && o.bytes+need > o.limit) {
		o.mu.Unlock()
		return false
	}
	var m *packer
	if len(o.queue) > 0 {
		m = o.queue[len(o.queue)-1]
	}
	if m == nil || m.size+need > packBytes {
		m = new(packer)
		o.queue = append(o.queue, m)
	}
	m.frame(n, bufs)
	o.bytes += need
	o.mu.Unlock()
	o.wake.Signal()
	return true
}

// attach makes the caller the one that pops and returns its ticket.
func (o *outbox) attach() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.serial++
	o.wake.Broadcast()
	return o.serial
}

// detach ends the ticket's popping. Frames not yet popped stay.
func (o *outbox) detach(ticket uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.serial == ticket {
		o.serial++
		o.wake.Broadcast()
	}
}

// pop waits for frames and returns them as one message and their number. It
// returns false when the ticket has ended. Calling it again says that the
// message before is in the stream.
func (o *outbox) pop(ticket uint64) (mem.BufferSlice, int, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.serial != ticket {
		return nil, 0, false
	}
	o.bytes -= o.popped
	o.popped = 0
	for len(o.queue) == 0 {
		o.wake.Wait()
		if o.serial != ticket {
			return nil, 0, false
		}
	}
	m := o.queue[0]
	o.queue[0] = nil
	o.queue = o.queue[1:]
	if len(o.queue) == 0 {
		o.queue = nil
	}
	o.popped = m.size
	frames := m.frames
	return m.done(), frames, true
}

// setOpen opens the box, or closes it and drops what it holds.
func (o *outbox) setOpen(open bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open == open {
		return
	}
	o.open = open
	if !open {
		for _, m := range o.queue {
			b := m.done()
			b.Free()
		}
		o.queue, o.bytes, o.popped = nil, 0, 0
	}
}

// queued returns the bytes in the box.
func (o *outbox) queued() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes
}
