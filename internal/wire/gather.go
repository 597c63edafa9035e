package wire

import (
	"encoding/binary"
	"net"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// gather is what one write sends: encoded responses, and between them records where they
// lie. Records are the bulk of what a node sends; they go from the buffer that they were
// read into to the socket without being copied.
type gather struct {
	out  []byte // everything but what cuts hold
	cuts []cut  // in order
	// cutBytes is what cuts hold in all.
	cutBytes int
	// parts, vector and piece are write's: all that is to go out; what one call sends.
	parts, vector [][]byte
	piece         net.Buffers
}

// cut is a place in gather.out where records belong.
type cut struct {
	at      int
	records []byte
}

// minCut is the least that is worth a place of its own in a write; less is copied.
const minCut = 4 << 10

func (g *gather) size() int { return len(g.out) + g.cutBytes }

// reset forgets everything; dst is the buffer for what is encoded.
func (g *gather) reset(dst []byte) {
	clear(g.cuts)
	clear(g.parts[:cap(g.parts)])
	clear(g.vector[:cap(g.vector)])
	g.out, g.cuts, g.cutBytes, g.parts = dst[:0], g.cuts[:0], 0, g.parts[:0]
}

func (g *gather) int16(v int16) { g.out = binary.BigEndian.AppendUint16(g.out, uint16(v)) }
func (g *gather) int32(v int32) { g.out = binary.BigEndian.AppendUint32(g.out, uint32(v)) }
func (g *gather) int64(v int64) { g.out = binary.BigEndian.AppendUint64(g.out, uint64(v)) }
func (g *gather) uvarint(v int) { g.out = binary.AppendUvarint(g.out, uint64(v)) }

// count writes the length of an array; n < 0: null.
func (g *gather) count(n int, flexible bool) {
	if flexible {
		g.uvarint(n + 1)
		return
	}
	g.int32(int32(n))
}

func (g *gather) string(s string, flexible bool) {
	if flexible {
		g.uvarint(len(s) + 1)
	} else {
		g.int16(int16(len(s)))
	}
	g.out = append(g.out, s...)
}

// records writes records with their length.
func (g *gather) records(b []byte, flexible bool) {
	n := len(b)
	if b == nil {
		n = -1
	}
	g.count(n, flexible)
	if n < minCut {
		g.out = append(g.out, b...)
		return
	}
	g.cuts = append(g.cuts, cut{len(g.out), b})
	g.cutBytes += n
}

// fetch writes the body of a Fetch response as kmsg does, with records where they lie.
// Tags that this server does not know, it does not send.
func (g *gather) fetch(v *kmsg.FetchResponse) {
	flexible := v.Version >= 12
	if v.Version >= 1 {
		g.int32(v.ThrottleMillis)
	}
	if v.Version >= 7 {
		g.int16(v.ErrorCode)
		g.int32(v.SessionID)
	}
	g.count(len(v.Topics), flexible)
	for i := range v.Topics {
		t := &v.Topics[i]
		if v.Version >= 13 {
			g.out = append(g.out, t.TopicID[:]...)
		} else {
			g.string(t.Topic, flexible)
		}
		g.count(len(t.Partitions), flexible)
		for j := range t.Partitions {
			g.fetchPartition(&t.Partitions[j], v.Version)
		}
		if flexible {
			g.uvarint(0)
		}
	}
	if flexible {
		g.brokers(v.Brokers)
	}
}

func (g *gather) fetchPartition(p *kmsg.FetchResponseTopicPartition, version int16) {
	flexible := version >= 12
	g.int32(p.Partition)
	g.int16(p.ErrorCode)
	g.int64(p.HighWatermark)
	if version >= 4 {
		g.int64(p.LastStableOffset)
	}
	if version >= 5 {
		g.int64(p.LogStartOffset)
	}
	if version >= 4 {
		n := len(p.AbortedTransactions)
		if p.AbortedTransactions == nil {
			n = -1
		}
		g.count(n, flexible)
		for _, a := range p.AbortedTransactions {
			g.int64(a.ProducerID)
			g.int64(a.FirstOffset)
			if flexible {
				g.uvarint(0)
			}
		}
	}
	if version >= 11 {
		g.int32(p.PreferredReadReplica)
	}
	g.records(p.RecordBatches, flexible)
	if flexible {
		g.fetchTags(p)
	}
}

// fetchTags writes the tags of a partition: those that are not as they are by default.
func (g *gather) fetchTags(p *kmsg.FetchResponseTopicPartition) {
	diverging := p.DivergingEpoch.Epoch != -1 || p.DivergingEpoch.EndOffset != -1
	leader := p.CurrentLeader.LeaderID != -1 || p.CurrentLeader.LeaderEpoch != -1
	snapshot := p.SnapshotID.EndOffset != -1 || p.SnapshotID.Epoch != -1
	n := 0
	for _, is := range []bool{diverging, leader, snapshot} {
		if is {
			n++
		}
	}
	g.uvarint(n)
	if diverging {
		g.tag(0, 4+8+1)
		g.int32(p.DivergingEpoch.Epoch)
		g.int64(p.DivergingEpoch.EndOffset)
		g.uvarint(0)
	}
	if leader {
		g.tag(1, 4+4+1)
		g.int32(p.CurrentLeader.LeaderID)
		g.int32(p.CurrentLeader.LeaderEpoch)
		g.uvarint(0)
	}
	if snapshot {
		g.tag(2, 8+4+1)
		g.int64(p.SnapshotID.EndOffset)
		g.int32(p.SnapshotID.Epoch)
		g.uvarint(0)
	}
}

// tag writes the head of a tag of size bytes.
func (g *gather) tag(n, size int) {
	g.uvarint(n)
	g.uvarint(size)
}

// brokers writes where the leaders that the response names live, in a tag.
func (g *gather) brokers(bs []kmsg.FetchResponseBroker) {
	if len(bs) == 0 {
		g.uvarint(0)
		return
	}
	var t gather
	t.count(len(bs), true)
	for i := range bs {
		b := &bs[i]
		t.int32(b.NodeID)
		t.string(b.Host, true)
		t.int32(b.Port)
		if b.Rack == nil {
			t.uvarint(0)
		} else {
			t.string(*b.Rack, true)
		}
		t.uvarint(0)
	}
	g.uvarint(1)
	g.tag(0, len(t.out))
	g.out = append(g.out, t.out...)
}

// response writes a response with its header.
func (g *gather) response(p *pending) {
	resp := p.resp
	if resp == nil {
		return
	}
	at, before := len(g.out), g.size()
	g.int32(0)
	g.int32(p.id)
	if resp.IsFlexible() && p.key != keyAPIVersions {
		g.uvarint(0) // no tags
	}
	if f, ok := resp.(*kmsg.FetchResponse); ok {
		g.fetch(f)
	} else {
		g.out = resp.AppendTo(g.out)
	}
	binary.BigEndian.PutUint32(g.out[at:], uint32(g.size()-before-4))
}

// slices lists all bytes in order.
func (g *gather) slices() [][]byte {
	at := 0
	for _, c := range g.cuts {
		g.parts = append(g.parts, g.out[at:c.at], c.records)
		at = c.at
	}
	g.parts = append(g.parts, g.out[at:])
	return g.parts
}

// send writes up to n bytes from the front of parts, in one call where the socket can.
func (g *gather) send(to net.Conn, parts [][]byte, n int) (int, error) {
	g.vector = g.vector[:0]
	for _, b := range parts {
		if len(b) == 0 {
			continue
		}
		b = b[:min(len(b), n)]
		g.vector = append(g.vector, b)
		if n -= len(b); n == 0 {
			break
		}
	}
	if len(g.vector) == 1 {
		return to.Write(g.vector[0])
	}
	g.piece = g.vector
	written, err := g.piece.WriteTo(to)
	return int(written), err
}

// skip takes n bytes off the front of parts.
func skip(parts [][]byte, n int) [][]byte {
	for len(parts) > 0 && n >= len(parts[0]) {
		n -= len(parts[0])
		parts = parts[1:]
	}
	if n > 0 {
		parts[0] = parts[0][n:]
	}
	return parts
}
