package wire

import "time"

const (
	// minRoom is what a response may at least take, once there is room at all.
	minRoom = 64 << 10
	// shareOfRoom: a response takes at most this part of what is free, so that one
	// that nobody reads leaves room for others.
	shareOfRoom = 8
	// stallTimeout is how long a peer may take or bring less than stallPiece while the
	// node is short of room. shedEvery is how often that is looked at.
	stallTimeout = 5 * time.Second
	stallPiece   = 64 << 10
	shedEvery    = time.Second
	// What a peer has taken is looked at every writeTurn while it takes less than it is given,
	// writeMost in one call.
	writeTurn = time.Second
	writeMost = 256 << 10
)

// Room asks for room for about want bytes of records in the response, and returns how many
// it may have, at most want. Options.Responses bounds what the responses of the node hold
// between being read and being written: peers that ask for much and read nothing would
// otherwise fill the memory. A response that has nothing yet waits for room; one that holds
// some gets none, since those who hold and wait could wait for each other.
//
// short says that there is little left: what is held should be sent, not kept for more.
// Settle says how much was taken. Only the goroutine that Serve runs on may call either.
func (r *Request) Room(want int) (n int, short bool) {
	if r.p == nil || want <= 0 || r.p.c.srv.opt.Responses == nil {
		return want, false
	}
	s := r.p.c.srv
	got, short := s.opt.Responses.share(int64(want))
	if short {
		s.shed(time.Now())
	}
	if got == 0 && r.p.room == 0 {
		least := int64(min(want, minRoom))
		if s.opt.Responses.acquireNudging(least, r.p.c.ctx.Done(), func() { s.shed(time.Now()) }) {
			got = least
		}
	}
	r.p.room += got
	return int(got), short
}

// Settle says that of what Room gave, used bytes are taken. The rest is given back,
// and what is beyond, a first batch that is large, is taken as well.
func (r *Request) Settle(given, used int) {
	if r.p == nil || given == used {
		return
	}
	q := r.p.c.srv.opt.Responses
	r.p.room += int64(used - given)
	if used > given {
		q.add(int64(used - given))
	} else {
		q.release(int64(given - used))
	}
}

// Hold says that records of the response lie in b, a buffer of package bytepool. It goes back
// there once they are written. A response that is never written leaves it to the collector. Only
// the goroutine that Serve runs on may call it.
func (r *Request) Hold(b []byte) {
	if r.p != nil && b != nil {
		r.p.buffers = append(r.p.buffers, b)
	}
}

// share takes up to want bytes, at most a part of what is free; 0: nothing is free.
func (q *Quota) share(want int64) (n int64, short bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	free := q.limit - q.used
	if free < min(want, minRoom) || len(q.waiters) > 0 {
		return 0, true
	}
	n = min(want, max(free/shareOfRoom, minRoom))
	q.used += n
	return n, free < q.limit/4
}

// shed closes the connections whose peers take nothing, now that the node is short of
// room for responses. They hold what others need, and have not moved for stallTimeout.
func (s *Server) shed(now time.Time) {
	s.closeStalled(now, &s.lastShed, func(c *Conn) int64 { return c.writing.Load() }, "closed connections that take no response",
		"no room for other responses", s.opt.Responses)
}

// shedSenders closes those that are within a frame and bring nothing, now that others wait for
// request memory. They hold as much of it as their frames will have.
func (s *Server) shedSenders(now time.Time) {
	s.closeStalled(now, &s.lastShedSenders, func(c *Conn) int64 { return c.reading.Load() }, "closed connections that do not send their request",
		"no memory for other requests", s.opt.Memory)
}

// closeStalled closes the connections that have not moved since stallTimeout, by what since says of each (0: it
// need not move). It looks at them once every shedEvery.
func (s *Server) closeStalled(now time.Time, last *time.Time, since func(*Conn) int64, what, reason string, q *Quota) {
	s.mu.Lock()
	if now.Sub(*last) < shedEvery {
		s.mu.Unlock()
		return
	}
	*last = now
	var stalled []*Conn
	for c := range s.conns {
		if began := since(c); began != 0 && now.UnixNano()-began > int64(stallTimeout) {
			stalled = append(stalled, c)
		}
	}
	s.mu.Unlock()
	if len(stalled) == 0 {
		return
	}
	// Before they can see it: who finds a closed connection finds the reason.
	s.stalledConnsGone.Add(uint64(len(stalled)))
	s.log.Warn(what, "reason", reason, "connections", len(stalled), "peer", stalled[0].remote, "limit", q.limit)
	for _, c := range stalled {
		c.close()
	}
}
