package kafka

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// Incremental fetch sessions (KIP-227): the node keeps which partitions a client
// fetches and from where, and what it told of them last. A request then names what
// changed for the client, a response what changed here.
//
//	request                        epoch  session id  answer
//	full, wants a session              0  0 or old    everything, and an id (0: no room for one)
//	full, wants none                  -1  0 or old    everything, id 0
//	incremental                  1, 2, …  its own     what has news
//	  … of another epoch                              INVALID_FETCH_SESSION_EPOCH
//	  … of no session that is known                   FETCH_SESSION_ID_NOT_FOUND
//	  … that names topics otherwise                   FETCH_SESSION_TOPIC_ID_ERROR
//
// A full request ends the session it names. A client meets each of the errors with a
// full request, so a session may be dropped at any time.
//
// A partition has news if it has records, an error, an epoch that diverged, or
// watermarks that were not told yet. After an error nothing counts as told.
//
// What bounds memory: a session lives no longer than the connection that began it,
// a connection has one; there are kafka.max_fetch_sessions at most, and
// maxSessionsBytes of what they hold together. Who finds no room is served without a
// session, unless one that has not been used for sessionIdle can go.

const (
	// sessionIdle is how long a session is not used before another may take its place.
	sessionIdle = 2 * time.Minute
	// maxSessionBytes bounds one session: some 60,000 partitions.
	maxSessionBytes = 8 << 20
	// maxSessionsBytes bounds all of them.
	maxSessionsBytes = 64 << 20

	// What is counted for a session, a topic besides its name, a partition: what they
	// take, with the room that slices and maps keep for more.
	sessionCost      = 1 << 10
	sessionTopicCost = 512
	sessionPartCost  = 128
)

// fetchSessions are the sessions of the node.
type fetchSessions struct {
	limit   int
	metrics *Metrics

	mu     sync.Mutex // of what follows, and of the table's fields in each session
	byID   map[int32]*fetchSession
	byConn map[*wire.Conn]*fetchSession
	// oldest and newest are the ends of a list by last use.
	oldest, newest *fetchSession
	bytes          int64
}

// fetchSession is one session.
type fetchSession struct {
	id int32

	// The table's, under its lock.
	epoch        int32 // of the next request
	busy         bool  // a request holds it
	gone         bool  // no longer in the table
	used         time.Time
	bytes        int64
	conn         *wire.Conn
	unlink       func() bool // ends the wait for the connection's end
	older, newer *fetchSession

	// Of the request that holds it.
	named  bool // topics have names, not ids
	topics map[fetchTopic]*sessionTopic
	parts  []sessionPart
	turn   int // the partition that is looked at first
}

type sessionTopic struct {
	fetchTopic
	parts map[int32]int32 // partition → position in parts
}

type sessionPart struct {
	topic *sessionTopic
	ask   fetchAsk
	// high and low are the watermarks told last; -1: none.
	high, low int64
}

func newFetchSessions(limit int, m *Metrics) *fetchSessions {
	return &fetchSessions{limit: limit, metrics: m, byID: map[int32]*fetchSession{}, byConn: map[*wire.Conn]*fetchSession{}}
}

// begin starts a session of what f asked for and was told, and returns its id; 0: there is no room.
func (t *fetchSessions) begin(ctx context.Context, f *fetch) int32 {
	if t.limit == 0 || len(f.parts) == 0 || costOf(f.req) > maxSessionBytes {
		return 0
	}
	s := &fetchSession{named: f.req.Version < 13, topics: make(map[fetchTopic]*sessionTopic, len(f.topics)), conn: f.room.Conn}
	for i := range f.parts {
		fp := &f.parts[i]
		s.put(*fp.topic, fp.ask)
		s.told(s.part(*fp.topic, fp.ask.partition), fp)
	}
	s.epoch, s.used, s.bytes = 1, time.Now(), s.cost()
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.byConn[s.conn]; old != nil && s.conn != nil {
		t.remove(old)
	}
	if !t.makeRoom(s.used, 1, s.bytes) {
		return 0
	}
	s.id = t.newID()
	t.byID[s.id] = s
	if s.conn != nil {
		t.byConn[s.conn] = s
	}
	t.push(s)
	t.bytes += s.bytes
	s.unlink = context.AfterFunc(ctx, func() { t.leave(s) })
	t.metrics.sessionsAre(len(t.byID))
	return s.id
}

// newID returns an id that no session has: at random, so that a client of an earlier
// process does not find another's session by its old id.
func (t *fetchSessions) newID() int32 {
	for {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails
		id := int32(binary.BigEndian.Uint32(b[:]) >> 1)
		if id != 0 && t.byID[id] == nil {
			return id
		}
	}
}

// resume takes the session that an incremental request continues, brings it up to date
// with the request, and holds it until release. Neither session nor error: nothing is left in it.
func (t *fetchSessions) resume(req *kmsg.FetchRequest) (*fetchSession, error) {
	s, err := t.hold(req)
	if err != nil {
		return nil, err
	}
	s.update(req)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !s.gone {
		t.bytes += s.cost() - s.bytes
		s.bytes = s.cost()
		if len(s.parts) == 0 {
			t.remove(s)
		}
	}
	if len(s.parts) == 0 {
		return nil, nil
	}
	return s, nil
}

// hold finds the session, and has room for what the request may add to it.
func (t *fetchSessions) hold(req *kmsg.FetchRequest) (*fetchSession, error) {
	more := costOf(req)
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byID[req.SessionID]
	switch {
	case s == nil:
		return nil, kerr.FetchSessionIDNotFound
	case s.busy || s.epoch != req.SessionEpoch:
		return nil, kerr.InvalidFetchSessionEpoch
	case s.named != (req.Version < 13):
		return nil, kerr.FetchSessionTopicIDError
	}
	s.busy = true // not to be evicted
	s.used = time.Now()
	t.unlist(s)
	t.push(s)
	if s.bytes+more > maxSessionBytes || !t.makeRoom(s.used, 0, more) {
		t.remove(s)
		return nil, kerr.FetchSessionIDNotFound
	}
	t.bytes += more
	s.bytes += more
	if s.epoch++; s.epoch < 0 {
		s.epoch = 1
	}
	return s, nil
}

// release gives back a session that resume returned.
func (t *fetchSessions) release(s *fetchSession) {
	t.mu.Lock()
	s.busy = false
	t.mu.Unlock()
}

// end ends a session, if there is one of that id.
func (t *fetchSessions) end(id int32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byID[id]; s != nil {
		t.remove(s)
	}
}

// leave ends a session with its connection.
func (t *fetchSessions) leave(s *fetchSession) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !s.gone {
		t.remove(s)
	}
}

// makeRoom tells whether there is room for more sessions and bytes, once those that are
// not used have gone. t.mu is held.
func (t *fetchSessions) makeRoom(now time.Time, sessions int, bytes int64) bool {
	for len(t.byID)+sessions > t.limit || t.bytes+bytes > maxSessionsBytes {
		s := t.oldest
		if s == nil || s.busy || now.Sub(s.used) < sessionIdle {
			return false
		}
		t.remove(s)
		t.metrics.sessionEvicted()
	}
	return true
}

// remove takes a session out of the table. t.mu is held. A request that holds it goes on.
func (t *fetchSessions) remove(s *fetchSession) {
	delete(t.byID, s.id)
	if s.conn != nil {
		delete(t.byConn, s.conn)
	}
	t.unlist(s)
	t.bytes -= s.bytes
	s.gone = true
	s.unlink()
	t.metrics.sessionsAre(len(t.byID))
}

// push makes s the newest. t.mu is held.
func (t *fetchSessions) push(s *fetchSession) {
	s.older, s.newer = t.newest, nil
	if t.newest != nil {
		t.newest.newer = s
	} else {
		t.oldest = s
	}
	t.newest = s
}

func (t *fetchSessions) unlist(s *fetchSession) {
	if s.older != nil {
		s.older.newer = s.newer
	} else {
		t.oldest = s.newer
	}
	if s.newer != nil {
		s.newer.older = s.older
	} else {
		t.newest = s.older
	}
	s.older, s.newer = nil, nil
}

// costOf is at least what a request adds to its session.
func costOf(req *kmsg.FetchRequest) int64 {
	var n int64
	for i := range req.Topics {
		t := &req.Topics[i]
		n += sessionTopicCost + int64(len(t.Topic)) + sessionPartCost*int64(len(t.Partitions))
	}
	return n
}

// cost is what a session takes.
func (s *fetchSession) cost() int64 {
	n := int64(sessionCost + sessionPartCost*len(s.parts))
	for t := range s.topics {
		n += sessionTopicCost + int64(len(t.name))
	}
	return n
}

// update takes in what a request says: partitions that are new or are read from
// elsewhere now, and those to forget.
func (s *fetchSession) update(req *kmsg.FetchRequest) {
	for i := range req.Topics {
		rt := &req.Topics[i]
		topic := topicOf(req.Version, rt.Topic, rt.TopicID)
		for j := range rt.Partitions {
			s.put(topic, askOf(&rt.Partitions[j]))
		}
	}
	for i := range req.ForgottenTopics {
		ft := &req.ForgottenTopics[i]
		topic := topicOf(req.Version, ft.Topic, ft.TopicID)
		for _, n := range ft.Partitions {
			s.forget(topic, n)
		}
	}
	if cap(s.parts) > 64 && cap(s.parts) > 4*len(s.parts) {
		s.parts = append(make([]sessionPart, 0, len(s.parts)), s.parts...)
	}
	if s.turn >= len(s.parts) {
		s.turn = 0
	}
}

// put adds a partition, or changes what is asked of it.
func (s *fetchSession) put(topic fetchTopic, ask fetchAsk) {
	t := s.topics[topic]
	if t == nil {
		t = &sessionTopic{fetchTopic: topic, parts: map[int32]int32{}}
		s.topics[topic] = t
	}
	if at, ok := t.parts[ask.partition]; ok {
		s.parts[at].ask = ask
		return
	}
	t.parts[ask.partition] = int32(len(s.parts))
	s.parts = append(s.parts, sessionPart{topic: t, ask: ask, high: -1, low: -1})
}

// forget takes a partition out: the last one takes its place.
func (s *fetchSession) forget(topic fetchTopic, n int32) {
	t := s.topics[topic]
	if t == nil {
		return
	}
	at, ok := t.parts[n]
	if !ok {
		return
	}
	last := int32(len(s.parts) - 1)
	moved := s.parts[last]
	s.parts[at] = moved
	moved.topic.parts[moved.ask.partition] = at
	s.parts[last] = sessionPart{}
	s.parts = s.parts[:last]
	if delete(t.parts, n); len(t.parts) == 0 {
		delete(s.topics, topic)
	}
}

// part finds a partition of the session; it is there.
func (s *fetchSession) part(topic fetchTopic, n int32) *sessionPart {
	return &s.parts[s.topics[topic].parts[n]]
}

// at is the i-th partition to look at.
func (s *fetchSession) at(i int) *sessionPart { return &s.parts[(s.turn+i)%len(s.parts)] }

// turnTo has the next request begin with what is now the n-th partition: one that had
// no room in this response comes first in the next.
func (s *fetchSession) turnTo(n int) { s.turn = (s.turn + n) % len(s.parts) }

// news tells whether there is something to say of the i-th partition, and takes it as told.
func (s *fetchSession) news(i int, fp *fetchPart) bool {
	if s == nil {
		return true
	}
	sp := s.at(i)
	news := len(fp.data) > 0 || fp.code != 0 || fp.diverged || fp.high != sp.high || fp.low != sp.low
	s.told(sp, fp)
	return news
}

// told notes what a response says of a partition.
func (s *fetchSession) told(sp *sessionPart, fp *fetchPart) {
	if fp.code != 0 {
		sp.high, sp.low = -1, -1
		return
	}
	sp.high, sp.low = fp.high, fp.low
}
