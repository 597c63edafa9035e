package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

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
//	v7     sessions: answered with session id 0, which means "none"
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
)

// fetch is one request while it is answered. Only Serve's goroutine uses it.
type fetch struct {
	h     *Handler
	room  *wire.Request // where room for records is asked for
	req   *kmsg.FetchRequest
	resp  *kmsg.FetchResponse
	img   *metadata.Image
	parts []fetchPart

	maxBytes int // of records in the response
	minBytes int // below it the request waits; at most maxBytes
	total    int // bytes of records in the response so far
	// settled: a partition has an answer that waiting does not improve.
	settled bool
}

// fetchPart is one partition of the request.
type fetchPart struct {
	req  *kmsg.FetchRequestTopicPartition
	resp *kmsg.FetchResponseTopicPartition
	mp   *metadata.Partition
	p    Partition // nil: answered with an error
	// seen is the high watermark at the last read; -1 before.
	seen int64
}

func fetchRecords(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.FetchRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.FetchResponse)
	// A full fetch (epoch 0: a session is wished for, -1: none) is served without a
	// session. Any other epoch continues a session, and there is none.
	if req.Version >= 7 && req.SessionEpoch != 0 && req.SessionEpoch != -1 {
		resp.ErrorCode = h.code(r.Key, kerr.FetchSessionIDNotFound)
		return resp
	}
	f := &fetch{h: h, room: r, req: req, resp: resp, img: h.cluster.Image()}
	f.maxBytes = min(max(int(req.MaxBytes), 0), fetchCeiling)
	f.minBytes = min(int(req.MinBytes), f.maxBytes)
	f.prepare()
	f.read(ctx)
	if !f.enough() && req.MaxWaitMillis > 0 {
		f.wait(ctx)
	}
	f.finish()
	return resp
}

// prepare finds the partitions and fills in errors that need no look at them.
func (f *fetch) prepare() {
	n := 0
	for i := range f.req.Topics {
		n += len(f.req.Topics[i].Partitions)
	}
	f.parts = make([]fetchPart, n)
	f.resp.Topics = make([]kmsg.FetchResponseTopic, len(f.req.Topics))
	rest := f.parts
	for i := range f.req.Topics {
		rt, wt := &f.req.Topics[i], &f.resp.Topics[i]
		wt.Default()
		wt.Topic, wt.TopicID = rt.Topic, rt.TopicID
		wt.Partitions = make([]kmsg.FetchResponseTopicPartition, len(rt.Partitions))
		t, err := findTopic(f.img, rt.Topic, rt.TopicID, f.req.Version >= 13)
		for j := range rt.Partitions {
			fp := &rest[j]
			*fp = fetchPart{req: &rt.Partitions[j], resp: &wt.Partitions[j], seen: -1}
			fp.resp.Default()
			fp.resp.Partition = fp.req.Partition
			fp.resp.RecordBatches = []byte{}
			fp.resp.PreferredReadReplica = -1
			f.find(fp, t, err)
		}
		rest = rest[len(rt.Partitions):]
	}
}

func (f *fetch) find(fp *fetchPart, t *metadata.Topic, err error) {
	if err == nil {
		fp.mp, fp.p, err = f.h.leader(t, fp.req.Partition)
	}
	if err != nil {
		f.fail(fp, err)
	}
}

// fail gives a partition an error in place of records.
func (f *fetch) fail(fp *fetchPart, err error) {
	f.settled = true
	f.total -= len(fp.resp.RecordBatches)
	fp.p = nil
	fp.resp.RecordBatches = []byte{}
	fp.resp.ErrorCode = f.h.code(keyFetch, err)
	fp.resp.HighWatermark, fp.resp.LastStableOffset, fp.resp.LogStartOffset = -1, -1, -1
	moved := fp.resp.ErrorCode == kerr.NotLeaderForPartition.Code || fp.resp.ErrorCode == kerr.FencedLeaderEpoch.Code
	if moved && fp.mp != nil && f.req.Version >= 12 {
		if node, epoch, ok := f.h.cluster.Leader(fp.mp.Group); ok {
			fp.resp.CurrentLeader.LeaderID = int32(node)
			fp.resp.CurrentLeader.LeaderEpoch = epoch
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
	if err := checkEpoch(fp.p, fp.req.CurrentLeaderEpoch); err != nil {
		return err
	}
	high := fp.p.HighWatermark()
	if high == fp.seen {
		return nil
	}
	if fp.req.LastFetchedEpoch >= 0 && f.req.Version >= 12 && f.diverges(fp) {
		return nil
	}
	offset := fp.req.FetchOffset
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

// take reads as many batches as the response still has room for. The first
// batch of the response comes whole, however large: else a consumer would stand
// before it for ever.
func (f *fetch) take(fp *fetchPart) error {
	before := len(fp.resp.RecordBatches)
	room := f.maxBytes - (f.total - before)
	first := f.total == before
	if room <= 0 && !first {
		fp.marks(fp.p.HighWatermark(), fp.p.LogStartOffset())
		return nil
	}
	limit := min(max(int(fp.req.PartitionMaxBytes), 0), room)
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
	res, err := fp.p.Read(fp.req.FetchOffset, limit)
	<-f.h.reads
	if err != nil {
		f.room.Settle(given, 0)
		return err
	}
	fp.marks(res.HighWatermark, res.LogStartOffset)
	fp.seen = res.HighWatermark
	if len(res.Data) > limit && !first {
		res.Data = nil
		f.settled = true // there is more, and it does not fit
	}
	if res.Data == nil {
		res.Data = []byte{}
	}
	f.room.Settle(given+before, len(res.Data))
	f.total += len(res.Data) - before
	fp.resp.RecordBatches = res.Data
	return nil
}

// marks fills in the watermarks. No transactions: everything committed is stable.
func (fp *fetchPart) marks(high, logStart int64) {
	fp.resp.HighWatermark = high
	fp.resp.LastStableOffset = high
	fp.resp.LogStartOffset = logStart
}

// diverges tells a client whose last epoch ended before its offset where to go
// back to.
func (f *fetch) diverges(fp *fetchPart) bool {
	epoch, end := fp.p.EpochEndOffset(fp.req.LastFetchedEpoch)
	if epoch < 0 || end < 0 {
		return false // older than anything kept: the offset decides
	}
	if epoch >= fp.req.LastFetchedEpoch && end >= fp.req.FetchOffset {
		return false
	}
	f.settled = true
	fp.marks(fp.p.HighWatermark(), fp.p.LogStartOffset())
	fp.resp.DivergingEpoch.Epoch = epoch
	fp.resp.DivergingEpoch.EndOffset = end
	return true
}

// confirmHigh returns a high watermark that is not behind what any client was
// told before this request (correctness rule 26).
func (f *fetch) confirmHigh(ctx context.Context, fp *fetchPart) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchConfirm)
	defer cancel()
	if err := fp.p.ReadIndex(ctx); err != nil {
		return 0, err
	}
	return fp.p.HighWatermark(), nil
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
	watched := make([]Partition, 0, len(f.parts))
	for i := range f.parts {
		if p := f.parts[i].p; p != nil {
			p.Watch(w)
			watched = append(watched, p)
		}
	}
	defer func() {
		for _, p := range watched {
			p.Unwatch(w)
		}
	}()
	timer := time.NewTimer(time.Duration(f.req.MaxWaitMillis) * time.Millisecond)
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

// finish brings the records into the form that the version carries.
func (f *fetch) finish() {
	for i := range f.parts {
		fp := &f.parts[i]
		if len(fp.resp.RecordBatches) == 0 {
			continue
		}
		data, err := forVersion(f.req.Version, fp.resp.RecordBatches)
		if err != nil {
			f.fail(fp, err)
			continue
		}
		fp.resp.RecordBatches = data
	}
	if f.req.Version >= 16 {
		f.resp.Brokers = f.newLeaders()
	}
}

// newLeaders tells where the leaders named in the response live.
func (f *fetch) newLeaders() []kmsg.FetchResponseBroker {
	var brokers []kmsg.FetchResponseBroker
	told := map[int32]bool{}
	for i := range f.parts {
		id := f.parts[i].resp.CurrentLeader.LeaderID
		if id < 0 || told[id] {
			continue
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
