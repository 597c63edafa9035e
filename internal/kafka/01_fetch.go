package kafka

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/bytepool"
	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/wire"
)

// Fetch: versions 0 to 18.
//
//	v0-1   batches are made messages of magic 0
//	v2-3   batches are made messages of magic 1
//	v3     MaxBytes of the whole response
//	v4     isolation level, LastStableOffset; batches as they are stored
//	v5     LogStartOffset
//	v7     sessions (fetch_session.go)
//	v9     CurrentLeaderEpoch
//	v10    zstd
//	v11    rack: reads are the leader's, no other replica is named
//	v12    flexible; LastFetchedEpoch and DivergingEpoch; CurrentLeader
//	v13    topic ids in place of names
//	v15    ReplicaState in place of ReplicaID: all who fetch are consumers here
//	v16    where the leaders live that the response names
//	v17-8  fields of Kafka's own followers
//
// There are no transactions: read_committed sees what read_uncommitted sees, and
// LastStableOffset is the high watermark.

const (
	// fetchCeiling bounds the records of one response, whatever a client asks.
	fetchCeiling = 55 << 20
	// fetchConfirm bounds how long a fetch above the high watermark waits to
	// learn whether the watermark is behind or the client is ahead.
	fetchConfirm = 5 * time.Second
	// fetchConfirmLeast is what each of its partitions has of that in any case.
	fetchConfirmLeast = 100 * time.Millisecond
	// fetchPatience bounds how long a request waits, whatever a client asks: that its
	// connection is closed is not noticed meanwhile.
	fetchPatience = 5 * time.Minute
)

// fetch is one request while it is answered. Only Serve's goroutine uses it.
type fetch struct {
	h    *Handler
	room *wire.Request // where room for records is asked for
	req  *kmsg.FetchRequest
	resp *kmsg.FetchResponse
	img  *metadata.Image
	// session is the one that the request continues; nil: none, and every partition
	// of the request is answered.
	session *fetchSession
	topics  []fetchTopic // of a request without a session
	parts   []fetchPart

	maxBytes int // of records in the response
	minBytes int // below it the request waits; at most maxBytes
	total    int // bytes of records in the response so far
	// settled: a partition has an answer that waiting does not improve.
	settled bool
	// confirmBy is when all confirmations of the request end; zero: none has begun.
	confirmBy time.Time
}

// fetchTopic names a topic as the request's version does: by name until 12, by id since.
type fetchTopic struct {
	name string
	id   metadata.TopicID
}

// fetchAsk is what a client wants of a partition.
type fetchAsk struct {
	offset           int64
	partition        int32
	maxBytes         int32
	epoch, lastEpoch int32 // CurrentLeaderEpoch, LastFetchedEpoch
}

// fetchPart is one partition of the request, with its answer as it grows.
type fetchPart struct {
	topic *fetchTopic
	ask   fetchAsk
	mp    *metadata.Partition
	p     Partition // nil: answered with an error
	// watched is p while the request waits for it.
	watched Partition
	// seen is the high watermark at the last read; -1 before.
	seen int64

	code      int16
	high, low int64 // watermarks; -1 beside an error
	data      []byte
	buf       []byte // where data lies; nil: in no buffer to give back
	// diverged: lastEpoch ended before the offset, at divergeEnd, in divergeEpoch.
	diverged                bool
	divergeEpoch            int32
	divergeEnd              int64
	leaderNode, leaderEpoch int32 // where the partition went; -1: not said
}

func fetchRecords(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.FetchRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.FetchResponse)
	f := fetches.Get().(*fetch)
	defer f.free()
	f.h, f.room, f.req, f.resp, f.img = h, r, req, resp, h.cluster.Image()
	f.maxBytes = min(max(int(req.MaxBytes), 0), fetchCeiling)
	f.minBytes = min(int(req.MinBytes), f.maxBytes)
	if err := f.open(); err != nil {
		resp.ErrorCode = h.code(r.Key, err)
		return resp
	}
	f.read(ctx)
	if !f.enough() && req.MaxWaitMillis > 0 {
		f.wait(ctx)
	}
	f.finish(ctx)
	return resp
}

// fetches are used again: a fetch of many partitions is large and short-lived.
var fetches = sync.Pool{New: func() any { return new(fetch) }}

// maxPooledParts keeps one huge request from pinning its memory.
const maxPooledParts = 16 << 10

// free forgets the request. Nothing of f is in the response but the records.
func (f *fetch) free() {
	if f.session != nil {
		f.h.sessions.release(f.session)
	}
	if cap(f.parts) > maxPooledParts || cap(f.topics) > maxPooledParts {
		return
	}
	clear(f.topics)
	clear(f.parts)
	*f = fetch{topics: f.topics[:0], parts: f.parts[:0]}
	fetches.Put(f)
}

// open finds out what the request is about: all that it names, or what its session holds.
func (f *fetch) open() error {
	full := f.req.Version < 7 || f.req.SessionEpoch == 0 || f.req.SessionEpoch == -1
	if !full {
		return f.resume()
	}
	if f.req.Version >= 7 && f.req.SessionID != 0 {
		f.h.sessions.end(f.req.SessionID) // a full fetch ends the session it names
	}
	f.topics = slices.Grow(f.topics, len(f.req.Topics)) // parts point into it
	n := 0
	for i := range f.req.Topics {
		n += len(f.req.Topics[i].Partitions)
	}
	f.parts = slices.Grow(f.parts, n)
	for i := range f.req.Topics {
		rt := &f.req.Topics[i]
		f.topics = append(f.topics, topicOf(f.req.Version, rt.Topic, rt.TopicID))
		topic := &f.topics[len(f.topics)-1]
		for j := range rt.Partitions {
			f.parts = append(f.parts, fetchPart{topic: topic, ask: askOf(&rt.Partitions[j])})
		}
	}
	f.find()
	return nil
}

// resume takes up the session that the request continues.
func (f *fetch) resume() error {
	s, err := f.h.sessions.resume(f.req)
	if err != nil || s == nil {
		return err // no session, no error: the request took the last partition out
	}
	f.session = s
	f.resp.SessionID = s.id
	f.parts = slices.Grow(f.parts, len(s.parts))
	for i := range s.parts {
		sp := s.at(i)
		f.parts = append(f.parts, fetchPart{topic: &sp.topic.fetchTopic, ask: sp.ask})
	}
	f.find()
	return nil
}

func topicOf(version int16, name string, id metadata.TopicID) fetchTopic {
	if version >= 13 {
		return fetchTopic{id: id}
	}
	return fetchTopic{name: name}
}

func askOf(rp *kmsg.FetchRequestTopicPartition) fetchAsk {
	return fetchAsk{
		offset: rp.FetchOffset, partition: rp.Partition, maxBytes: rp.PartitionMaxBytes,
		epoch: rp.CurrentLeaderEpoch, lastEpoch: rp.LastFetchedEpoch,
	}
}

// find finds the partitions, and answers those that are not here.
func (f *fetch) find() {
	var topic *fetchTopic
	var t *metadata.Topic
	var err error
	for i := range f.parts {
		fp := &f.parts[i]
		fp.seen, fp.leaderNode, fp.leaderEpoch = -1, -1, -1
		if fp.topic != topic { // the partitions of a topic mostly stand together
			topic = fp.topic
			t, err = findTopic(f.img, topic.name, topic.id, f.req.Version >= 13)
		}
		if err != nil {
			f.fail(fp, err)
			continue
		}
		var missing error
		if fp.mp, fp.p, missing = f.h.leader(t, fp.ask.partition); missing != nil {
			f.fail(fp, missing)
		}
	}
}

// fail gives a partition an error in place of records.
func (f *fetch) fail(fp *fetchPart, err error) {
	f.settled = true
	f.total -= len(fp.data)
	f.replace(fp, nil, nil)
	fp.p = nil
	fp.code = f.h.code(keyFetch, err)
	fp.high, fp.low = -1, -1
	moved := fp.code == kerr.NotLeaderForPartition.Code || fp.code == kerr.FencedLeaderEpoch.Code
	if moved && fp.mp != nil && f.req.Version >= 12 {
		if node, epoch, ok := f.h.cluster.Leader(fp.mp.Group); ok {
			fp.leaderNode, fp.leaderEpoch = int32(node), epoch
		}
	}
}

// read looks at every partition whose high watermark moved since the last look.
func (f *fetch) read(ctx context.Context) {
	for i := range f.parts {
		if fp := &f.parts[i]; fp.p != nil {
			if err := f.readPart(ctx, fp); err != nil {
				f.fail(fp, err)
			}
		}
	}
}

func (f *fetch) readPart(ctx context.Context, fp *fetchPart) error {
	if err := checkEpoch(fp.p, fp.ask.epoch); err != nil {
		return err
	}
	high := fp.p.HighWatermark()
	if high == fp.seen {
		return nil
	}
	if fp.ask.lastEpoch >= 0 && f.req.Version >= 12 && f.diverges(fp) {
		return nil
	}
	offset := fp.ask.offset
	if offset > high {
		var err error
		if high, err = f.confirmHigh(ctx, fp); err != nil {
			return err
		}
	}
	if low := fp.p.LogStartOffset(); offset < low || offset > high {
		return fmt.Errorf("offset %d is not in %d to %d: %w", offset, low, high, kerr.OffsetOutOfRange)
	}
	if offset == high {
		fp.marks(high, fp.p.LogStartOffset())
		fp.seen = high
		return nil
	}
	return f.take(fp)
}

// take reads as many batches as the response still has room for, in the form that the
// version carries. The first batch of the response comes whole, however large: else a
// consumer would stand before it for ever.
func (f *fetch) take(fp *fetchPart) error {
	before, held := len(fp.data), max(cap(fp.buf), cap(fp.data))
	room := f.maxBytes - (f.total - before)
	first := f.total == before
	if room <= 0 && !first {
		fp.marks(fp.p.HighWatermark(), fp.p.LogStartOffset())
		return nil
	}
	limit := min(max(int(fp.ask.maxBytes), 0), room)
	given, short := f.room.Room(max(limit, 1))
	if short {
		f.settled = true // what is there goes out now
	}
	if given == 0 {
		fp.marks(fp.p.HighWatermark(), fp.p.LogStartOffset())
		return nil
	}
	limit = min(limit, given)
	f.h.reads <- struct{}{}
	res, err := f.readFor(fp, limit)
	<-f.h.reads
	if err != nil {
		f.room.Settle(given, 0)
		return err
	}
	fp.marks(res.HighWatermark, res.LogStartOffset)
	fp.seen = res.HighWatermark
	if len(res.Data) > limit && !first {
		bytepool.Put(res.Buffer)
		res.Data, res.Buffer = nil, nil
		f.settled = true // there is more, and it does not fit
	}
	f.room.Settle(given+held, max(cap(res.Buffer), cap(res.Data)))
	f.total += len(res.Data) - before
	f.replace(fp, res.Data, res.Buffer)
	return nil
}

// readFor reads batches and brings them into the form that the version carries, which may have a buffer of its own.
func (f *fetch) readFor(fp *fetchPart, limit int) (partition.ReadResult, error) {
	res, err := fp.p.Read(fp.ask.offset, limit)
	if err != nil || len(res.Data) == 0 {
		return res, err
	}
	data, err := forVersion(f.req.Version, res.Data, limit)
	if err != nil || f.req.Version < 4 { // other bytes
		bytepool.Put(res.Buffer)
		res.Buffer = nil
	}
	res.Data = data
	return res, err
}

// replace puts other records in place of those that a partition had. Nobody else has seen these.
func (f *fetch) replace(fp *fetchPart, data, buf []byte) {
	bytepool.Put(fp.buf)
	fp.data, fp.buf = data, buf
}

// marks fills in the watermarks.
func (fp *fetchPart) marks(high, logStart int64) { fp.high, fp.low = high, logStart }

// diverges tells a client whose last epoch ended before its offset where to go
// back to.
func (f *fetch) diverges(fp *fetchPart) bool {
	epoch, end := fp.p.EpochEndOffset(fp.ask.lastEpoch)
	if epoch < 0 || end < 0 {
		return false // older than anything kept: the offset decides
	}
	if epoch >= fp.ask.lastEpoch && end >= fp.ask.offset {
		return false
	}
	f.settled = true
	fp.marks(fp.p.HighWatermark(), fp.p.LogStartOffset())
	fp.diverged, fp.divergeEpoch, fp.divergeEnd = true, epoch, end
	return true
}

// confirmHigh returns a high watermark that is not behind what any client was
// told before this request (correctness rule 26).
func (f *fetch) confirmHigh(ctx context.Context, fp *fetchPart) (int64, error) {
	if f.confirmBy.IsZero() {
		f.confirmBy = time.Now().Add(fetchConfirm)
	}
	by := time.Now().Add(fetchConfirmLeast) // a partition without a majority does not take the others' time
	if f.confirmBy.After(by) {
		by = f.confirmBy
	}
	ctx, cancel := context.WithDeadline(ctx, by)
	defer cancel()
	err := fp.p.ReadIndex(ctx)
	switch lookupError(err) {
	case kerr.RequestTimedOut, kerr.NotEnoughReplicas: // consumers do not expect these of a fetch and throw
		return 0, kerr.OffsetNotAvailable
	}
	return fp.p.HighWatermark(), err
}

// enough tells that the response is not improved by waiting.
func (f *fetch) enough() bool { return f.settled || f.total >= f.minBytes || len(f.parts) == 0 }

// wait reads again whenever a partition's high watermark or leadership changes,
// until there is enough, the client's patience ends or its connection does.
func (f *fetch) wait(ctx context.Context) {
	moved := make(chan struct{}, 1)
	w := partition.NewWatcher(func() {
		select {
		case moved <- struct{}{}:
		default:
		}
	})
	for i := range f.parts {
		if fp := &f.parts[i]; fp.p != nil {
			fp.watched = fp.p
			fp.p.Watch(w)
		}
	}
	defer func() {
		for i := range f.parts {
			if p := f.parts[i].watched; p != nil {
				p.Unwatch(w)
			}
		}
	}()
	timer := time.NewTimer(min(time.Duration(f.req.MaxWaitMillis)*time.Millisecond, fetchPatience))
	defer timer.Stop()
	for {
		// Looking after Watch: a move before it is seen here, a later one in moved.
		if f.read(ctx); f.enough() {
			return
		}
		select {
		case <-moved:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// finish answers: with every partition of the request, or with those of the session that
// have news.
func (f *fetch) finish(ctx context.Context) {
	told, topics, last := 0, 0, -1
	var topic *fetchTopic
	for i := range f.parts {
		fp := &f.parts[i]
		if len(fp.data) > 0 {
			last = i
			f.room.Hold(fp.buf)
		}
		if !f.session.news(i, fp) {
			fp.topic = nil // nothing to say
			continue
		}
		told++
		if fp.topic != topic {
			topic = fp.topic
			topics++
		}
	}
	f.tell(topics, told)
	switch {
	case f.session != nil:
		f.session.turnTo(last + 1)
	case f.req.Version >= 7 && f.req.SessionEpoch == 0:
		f.resp.SessionID = f.h.sessions.begin(ctx, f)
	}
	if f.req.Version >= 16 {
		f.resp.Brokers = f.newLeaders()
	}
}

// tell fills in the response: told partitions that stand in so many runs of one topic.
func (f *fetch) tell(topics, told int) {
	if told == 0 {
		return
	}
	f.resp.Topics = make([]kmsg.FetchResponseTopic, 0, topics)
	parts := make([]kmsg.FetchResponseTopicPartition, told)
	var topic *fetchTopic
	begin, end := 0, 0 // of the topic's run in parts
	for i := range f.parts {
		fp := &f.parts[i]
		if fp.topic == nil {
			continue
		}
		if fp.topic != topic {
			topic, begin = fp.topic, end
			f.resp.Topics = append(f.resp.Topics, kmsg.FetchResponseTopic{Topic: topic.name, TopicID: topic.id})
		}
		fp.answer(&parts[end])
		end++
		f.resp.Topics[len(f.resp.Topics)-1].Partitions = parts[begin:end:end]
	}
}

// answer fills in a partition of the response. No transactions: everything committed is stable.
func (fp *fetchPart) answer(rp *kmsg.FetchResponseTopicPartition) {
	rp.Default()
	rp.Partition, rp.ErrorCode = fp.ask.partition, fp.code
	rp.HighWatermark, rp.LastStableOffset, rp.LogStartOffset = fp.high, fp.high, fp.low
	rp.CurrentLeader.LeaderID, rp.CurrentLeader.LeaderEpoch = fp.leaderNode, fp.leaderEpoch
	if fp.diverged {
		rp.DivergingEpoch.Epoch, rp.DivergingEpoch.EndOffset = fp.divergeEpoch, fp.divergeEnd
	}
	rp.PreferredReadReplica = -1
	if rp.RecordBatches = fp.data; rp.RecordBatches == nil {
		rp.RecordBatches = []byte{} // empty, not null
	}
}

// newLeaders tells where the leaders named in the response live.
func (f *fetch) newLeaders() []kmsg.FetchResponseBroker {
	var brokers []kmsg.FetchResponseBroker
	var told map[int32]bool
	for i := range f.parts {
		id := f.parts[i].leaderNode
		if id < 0 || told[id] {
			continue
		}
		if told == nil {
			told = map[int32]bool{}
		}
		told[id] = true
		if b, ok := f.h.endpoint(f.img, id); ok {
			nb := kmsg.NewFetchResponseBroker()
			nb.NodeID, nb.Host, nb.Port, nb.Rack = id, b.KafkaHost, b.KafkaPort, rack(b)
			brokers = append(brokers, nb)
		}
	}
	return brokers
}
