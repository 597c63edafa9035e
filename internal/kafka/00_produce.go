package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/record"
	"chronik/internal/wire"
)

// Produce: versions 0 to 13.
//
//	v0-2  carry message sets of magic 0 or 1, several messages; made one batch
//	v2    LogAppendTime in the response
//	v3    exactly one batch of magic 2 a partition; transactional id
//	v5    LogStartOffset
//	v7    zstd
//	v8    ErrorRecords, ErrorMessage
//	v9    flexible
//	v10   CurrentLeader of a partition that moved, and where that leader lives
//	v12   says that the client knows implicit transactions: there are none here
//	v13   topic ids in place of names
//
// acks=1 and acks=all are both answered after the commit (correctness rule 27).
// acks=0 has no response: an error closes the connection, which makes the client
// ask for metadata again.

const produceMaxZstdless = 6 // the last version whose clients must not send zstd

// produce is one request on its way: the response grows as partitions answer.
type produce struct {
	h     *Handler
	req   *kmsg.ProduceRequest
	resp  *kmsg.ProduceResponse
	img   *metadata.Image
	conn  *wire.Conn // nil in tests without a socket
	reply func(kmsg.Response)
	// pending is 1 for the request itself plus 1 for each batch on its way.
	// Whoever brings it to 0 replies.
	pending atomic.Int64
	// failed: a partition has an error.
	failed atomic.Bool
}

func serveProduce(h *Handler, _ context.Context, r *wire.Request, reply func(kmsg.Response)) {
	req, ok := bodyOf[*kmsg.ProduceRequest](h, r, reply)
	if !ok {
		return
	}
	c := &produce{h: h, req: req, img: h.cluster.Image(), conn: r.Conn, reply: reply}
	c.resp = req.ResponseKind().(*kmsg.ProduceResponse)
	c.pending.Store(1)
	refuse := c.refusal()

	// The slices have their final length before the first Append: a callback
	// may run at once and writes through a pointer into them.
	c.resp.Topics = make([]kmsg.ProduceResponseTopic, len(req.Topics))
	for i := range req.Topics {
		c.resp.Topics[i].Default()
		c.resp.Topics[i].Topic = req.Topics[i].Topic
		c.resp.Topics[i].TopicID = req.Topics[i].TopicID
		c.resp.Topics[i].Partitions = make([]kmsg.ProduceResponseTopicPartition, len(req.Topics[i].Partitions))
	}
	for i := range req.Topics {
		c.topic(&req.Topics[i], &c.resp.Topics[i], refuse)
	}
	c.forgetRecords()
	r.Release() // Append has copied the batches
	c.done()
}

// forgetRecords takes the frame's bytes out of the request, which lives on.
func (c *produce) forgetRecords() {
	for i := range c.req.Topics {
		for j := range c.req.Topics[i].Partitions {
			c.req.Topics[i].Partitions[j].Records = nil
		}
	}
}

// refusal returns why no partition of the request can be written, or nil.
func (c *produce) refusal() error {
	switch {
	case c.req.Acks < -1 || c.req.Acks > 1:
		return failf(kerr.InvalidRequiredAcks, "acks is %d; it must be -1, 0 or 1", c.req.Acks)
	case c.req.TransactionID != nil:
		return errNoTransactions
	case c.h.cluster.Full():
		return failf(kerr.KafkaStorageError, "the disk of node %d has no room for more records", c.h.cluster.Self())
	}
	return nil
}

func (c *produce) topic(req *kmsg.ProduceRequestTopic, resp *kmsg.ProduceResponseTopic, refuse error) {
	t, err := findTopic(c.img, req.Topic, req.TopicID, c.req.Version >= 13)
	if refuse != nil {
		err = refuse
	}
	var rules writeRules
	if err == nil {
		rules = c.h.writeRules(t)
	}
	for i := range req.Partitions {
		rp := &resp.Partitions[i]
		rp.Default()
		rp.Partition = req.Partitions[i].Partition
		rp.BaseOffset = -1
		rp.LogAppendTime = -1
		rp.LogStartOffset = -1
		if err != nil {
			c.fail(rp, nil, err)
			continue
		}
		c.partition(t, &rules, &req.Partitions[i], rp)
	}
}

// partition checks the records of one partition and hands them to its leader.
func (c *produce) partition(t *metadata.Topic, rules *writeRules, req *kmsg.ProduceRequestTopicPartition, resp *kmsg.ProduceResponseTopicPartition) {
	mp, p, err := c.h.leader(t, req.Partition)
	if err != nil {
		c.fail(resp, mp, err)
		return
	}
	batch, err := rules.check(c.req.Version, req.Records)
	if err != nil {
		c.fail(resp, mp, err)
		return
	}
	if batch == nil { // an old client's empty message set
		resp.LogStartOffset = p.LogStartOffset()
		return
	}
	opt := partition.AppendOptions{
		Acks:    c.req.Acks,
		Timeout: produceTimeout(c.req.TimeoutMillis),
		MinISR:  rules.minISR(mp),
	}
	c.pending.Add(1)
	p.Append(batch, opt, func(res partition.AppendResult) {
		c.appended(mp, resp, res)
	})
}

// appended is a partition's answer; it runs wherever the partition answers.
func (c *produce) appended(mp *metadata.Partition, resp *kmsg.ProduceResponseTopicPartition, res partition.AppendResult) {
	if res.Err != nil && !errors.Is(res.Err, partition.ErrDuplicateSequence) {
		c.fail(resp, mp, res.Err)
	} else {
		resp.BaseOffset = res.BaseOffset
		resp.LogAppendTime = res.LogAppendTimeMs
		resp.LogStartOffset = res.LogStartOffset
	}
	c.done()
}

// fail fills in a partition's error. Callbacks of other partitions run at the
// same time: it touches nothing that they share.
func (c *produce) fail(resp *kmsg.ProduceResponseTopicPartition, mp *metadata.Partition, err error) {
	c.failed.Store(true)
	resp.ErrorCode = c.h.code(keyProduce, err)
	resp.ErrorMessage = message(err)
	if bad := invalidRecords(err); bad != nil {
		resp.ErrorRecords = make([]kmsg.ProduceResponseTopicPartitionErrorRecord, len(bad))
		for i, offset := range bad {
			resp.ErrorRecords[i].Default()
			resp.ErrorRecords[i].RelativeOffset = offset
			resp.ErrorRecords[i].ErrorMessage = resp.ErrorMessage
		}
	}
	if resp.ErrorCode == kerr.NotLeaderForPartition.Code && mp != nil && c.req.Version >= 10 {
		if node, epoch, ok := c.h.cluster.Leader(mp.Group); ok {
			resp.CurrentLeader.LeaderID = int32(node)
			resp.CurrentLeader.LeaderEpoch = epoch
		}
	}
}

// done takes one from pending and replies if that was the last.
func (c *produce) done() {
	if c.pending.Add(-1) != 0 {
		return
	}
	if c.req.Acks == 0 {
		c.reply(nil)
		if c.failed.Load() && c.conn != nil {
			c.conn.Close()
		}
		return
	}
	if c.req.Version >= 10 {
		c.resp.Brokers = c.newLeaders()
	}
	c.reply(c.resp)
}

// newLeaders tells where the leaders named in the response live.
func (c *produce) newLeaders() []kmsg.ProduceResponseBroker {
	var brokers []kmsg.ProduceResponseBroker
	for i := range c.resp.Topics {
		for j := range c.resp.Topics[i].Partitions {
			cl := &c.resp.Topics[i].Partitions[j].CurrentLeader
			if cl.LeaderID < 0 || hasBroker(brokers, cl.LeaderID) {
				continue
			}
			b, ok := c.h.endpoint(c.img, cl.LeaderID)
			if !ok {
				continue
			}
			nb := kmsg.NewProduceResponseBroker()
			nb.NodeID, nb.Host, nb.Port, nb.Rack = cl.LeaderID, b.KafkaHost, b.KafkaPort, rack(b)
			brokers = append(brokers, nb)
		}
	}
	return brokers
}

func hasBroker(brokers []kmsg.ProduceResponseBroker, node int32) bool {
	for i := range brokers {
		if brokers[i].NodeID == node {
			return true
		}
	}
	return false
}

// produceTimeout keeps a client's timeout within what a proposal may wait.
func produceTimeout(millis int32) time.Duration {
	const floor, ceiling = 100 * time.Millisecond, 5 * time.Minute
	return min(max(time.Duration(millis)*time.Millisecond, floor), ceiling)
}

// writeRules are a topic's settings that decide whether a batch is accepted.
type writeRules struct {
	topic           *metadata.Topic
	maxMessageBytes int
	logAppendTime   bool
	compacted       bool
	minInsync       int
	// beforeMs and afterMs bound how far a record's time may lie from the clock.
	beforeMs, afterMs int64
	now               int64
}

func (h *Handler) writeRules(t *metadata.Topic) writeRules {
	s := h.topicSettings(t)
	return writeRules{
		topic:           t,
		maxMessageBytes: s.maxMessageBytes,
		logAppendTime:   s.logAppendTime,
		compacted:       s.compacted,
		minInsync:       s.minInsync,
		beforeMs:        s.timestampBeforeMs,
		afterMs:         s.timestampAfterMs,
		now:             h.wall().UnixMilli(),
	}
}

// minISR is how many replicas must have a batch before acks=all is answered: the
// topic's setting, and never more than there are replicas.
func (r *writeRules) minISR(mp *metadata.Partition) int {
	return max(1, min(r.minInsync, voters(mp)))
}

// check validates the records of one partition and returns the one batch to
// propose, stamped with the time if the topic wants it; nil: there is nothing to
// write.
func (r *writeRules) check(version int16, records []byte) ([]byte, error) {
	if len(records) == 0 && version < 3 {
		return nil, nil
	}
	b, err := r.oneBatch(version, records)
	if err != nil {
		return nil, fmt.Errorf("topic %s: %w", r.topic.Name, err)
	}
	if err := r.checkHeader(version, b); err != nil {
		return nil, err
	}
	if !r.logAppendTime {
		return b.Bytes(), r.checkTime(b)
	}
	record.SetLogAppendTime(b.Bytes(), r.now)
	return b.Bytes(), nil
}

// magicAt is where both a message of magic 0 or 1 and a batch keep their magic.
const magicAt = 16

// oneBatch returns the records as one valid batch of magic 2.
func (r *writeRules) oneBatch(version int16, records []byte) (record.Batch, error) {
	switch {
	case len(records) == 0:
		return record.Batch{}, failf(kerr.InvalidRecord, "a produce request needs one record batch for each partition")
	case len(records) <= magicAt:
		return record.Batch{}, failf(kerr.CorruptMessage, "%d bytes are too few for a batch", len(records))
	}
	opt := record.ValidateOptions{MaxBytes: r.maxMessageBytes, RequireKeys: r.compacted}
	magic := int8(records[magicAt])
	if magic == 0 || magic == 1 {
		if version >= 3 {
			return record.Batch{}, failf(kerr.InvalidRecord, "produce version %d takes batches of magic 2, not %d", version, magic)
		}
		batch, err := record.UpConvert(records, opt)
		if err != nil {
			return record.Batch{}, err
		}
		return record.Header(batch)
	}
	b, err := record.Validate(records, opt)
	if errors.Is(err, record.ErrInvalidRecord) && r.compacted {
		if bad := keyless(records); bad != nil {
			return b, &recordError{offsets: bad, reason: "a compacted topic takes only records with a key"}
		}
	}
	return b, err
}

// checkHeader refuses what a client may not write.
func (r *writeRules) checkHeader(version int16, b record.Batch) error {
	switch {
	case b.IsControl():
		return failf(kerr.InvalidRecord, "a client may not write control records")
	case b.IsTransactional():
		return errNoTransactions
	case b.Codec() == record.Zstd && version <= produceMaxZstdless && version >= 3:
		return failf(kerr.UnsupportedCompressionType, "zstd needs produce version 7 or newer")
	}
	return nil
}

// checkTime holds a batch's times against the topic's bounds. The greatest time
// was checked against the records by Validate; the least is at most the first.
func (r *writeRules) checkTime(b record.Batch) error {
	newest, oldest := b.MaxTimestamp(), b.FirstTimestamp()
	switch {
	case newest >= 0 && newest-r.now > r.afterMs:
		return failf(kerr.InvalidTimestamp, "a record's time is %d ms ahead of the broker's clock; topic %s allows %d", newest-r.now, r.topic.Name, r.afterMs)
	case oldest >= 0 && r.now-oldest > r.beforeMs:
		return failf(kerr.InvalidTimestamp, "a record's time is %d ms behind the broker's clock; topic %s allows %d", r.now-oldest, r.topic.Name, r.beforeMs)
	}
	return nil
}

// keyless lists records without a key, the first hundred. The batch's checksum is right.
func keyless(batch []byte) []int32 {
	var bad []int32
	err := record.ForEach(batch, func(rec record.Record) error {
		if rec.Key == nil && len(bad) < 100 {
			bad = append(bad, rec.OffsetDelta)
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return bad
}
