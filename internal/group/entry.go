package group

import (
	"encoding/binary"
	"fmt"

	"chronik/internal/format"
)

// An entry of a coordinator's log (docs/formats/group.md):
//
//	offset  bytes
//	0       1      version, 1
//	1       1      kind
//	2       8      the leader's wall clock in milliseconds, big-endian
//	10             what the kind says
const (
	entryVersion = 1
	entryHeader  = 10
)

type entryKind byte

const (
	kindCommit        entryKind = 1 // committed offsets of one group
	kindPutGroup      entryKind = 2 // a group's metadata
	kindDeleteGroup   entryKind = 3 // a group and its offsets
	kindDeleteOffsets entryKind = 4 // single offsets
)

// Offset is a committed offset.
type Offset struct {
	Offset      int64
	LeaderEpoch int32
	Metadata    string
	// CommitMs is the leader's time of the commit.
	CommitMs int64
	// ExpireMs is when the client that committed wants it forgotten; 0: as configured.
	ExpireMs int64
}

// offsetKey names a committed offset.
type offsetKey struct {
	group, topic string
	partition    int32
}

// committed is one offset of a kindCommit entry. Its CommitMs is the entry's time.
type committed struct {
	topic     string
	partition int32
	offset    Offset
}

// Group is a group's replicated metadata: who is in it and what was assigned.
type Group struct {
	ID string
	// Version orders the versions of a group: apply ignores one that is not newer.
	Version      uint64
	Generation   int32
	ProtocolType string
	Protocol     string
	Leader       string
	Members      []Member
	// EmptySinceMs is the leader's time at which the group became empty; 0 while it has members.
	EmptySinceMs int64
}

// Member is a member of a generation.
type Member struct {
	ID           string
	InstanceID   *string
	ClientID     string
	ClientHost   string
	SessionMs    int32
	RebalanceMs  int32
	Subscription []byte // its metadata for the protocol that was chosen
	Assignment   []byte
}

// deleted is one offset of a kindDeleteOffsets entry.
type deleted struct {
	key offsetKey
	// ifCommitMs: only if that is still the commit's time; -1: in any case.
	ifCommitMs int64
}

func entryHead(kind entryKind, nowMs int64) []byte {
	b := make([]byte, entryHeader, 256)
	b[0], b[1] = entryVersion, byte(kind)
	binary.BigEndian.PutUint64(b[2:], uint64(nowMs))
	return b
}

func encodeCommit(nowMs int64, group string, cs []committed) []byte {
	b := appendString(entryHead(kindCommit, nowMs), group)
	b = binary.AppendUvarint(b, uint64(len(cs)))
	for i := range cs {
		c := &cs[i]
		b = appendString(b, c.topic)
		b = binary.AppendVarint(b, int64(c.partition))
		b = binary.AppendVarint(b, c.offset.Offset)
		b = binary.AppendVarint(b, int64(c.offset.LeaderEpoch))
		b = appendString(b, c.offset.Metadata)
		b = binary.AppendVarint(b, c.offset.ExpireMs)
	}
	return b
}

func decodeCommit(r *reader, nowMs int64) (group string, cs []committed) {
	group = r.str()
	n := r.count(6)
	cs = make([]committed, 0, n)
	topic := ""
	for range n {
		if t := r.take(maxString); string(t) != topic {
			topic = string(t) // neighbours mostly share their topic
		}
		c := committed{topic: topic, partition: r.int32()}
		c.offset.Offset = r.varint()
		c.offset.LeaderEpoch = r.int32()
		c.offset.Metadata = r.str()
		c.offset.ExpireMs = r.varint()
		c.offset.CommitMs = nowMs
		cs = append(cs, c)
	}
	return group, cs
}

func encodePutGroup(nowMs int64, g *Group) []byte {
	return appendGroup(entryHead(kindPutGroup, nowMs), g)
}

// appendGroup encodes a group; snapshots use the same form.
func appendGroup(b []byte, g *Group) []byte {
	b = appendString(b, g.ID)
	b = binary.AppendUvarint(b, g.Version)
	b = binary.AppendVarint(b, int64(g.Generation))
	b = appendString(b, g.ProtocolType)
	b = appendString(b, g.Protocol)
	b = appendString(b, g.Leader)
	b = binary.AppendVarint(b, g.EmptySinceMs)
	b = binary.AppendUvarint(b, uint64(len(g.Members)))
	for i := range g.Members {
		m := &g.Members[i]
		b = appendString(b, m.ID)
		b = appendOptional(b, m.InstanceID)
		b = appendString(b, m.ClientID)
		b = appendString(b, m.ClientHost)
		b = binary.AppendVarint(b, int64(m.SessionMs))
		b = binary.AppendVarint(b, int64(m.RebalanceMs))
		b = appendBytes(b, m.Subscription)
		b = appendBytes(b, m.Assignment)
	}
	return b
}

func readGroup(r *reader) *Group {
	g := &Group{
		ID: r.str(), Version: r.uvarint(), Generation: r.int32(), ProtocolType: r.str(),
		Protocol: r.str(), Leader: r.str(), EmptySinceMs: r.varint(),
	}
	n := r.count(8)
	if n > 0 {
		g.Members = make([]Member, 0, n)
	}
	for range n {
		g.Members = append(g.Members, Member{
			ID: r.str(), InstanceID: r.optional(), ClientID: r.str(), ClientHost: r.str(),
			SessionMs: r.int32(), RebalanceMs: r.int32(), Subscription: r.bytes(), Assignment: r.bytes(),
		})
		if r.bad {
			break
		}
	}
	return g
}

// encodeDeleteGroup deletes a group that has no members, with its offsets, or,
// with ifBare, only if it has none.
func encodeDeleteGroup(nowMs int64, group string, ifBare bool) []byte {
	b := appendString(entryHead(kindDeleteGroup, nowMs), group)
	if ifBare {
		return append(b, 1)
	}
	return append(b, 0)
}

// maxDeleted bounds what a deleted takes in an entry beside its names: their lengths and two numbers.
const maxDeleted = 2*binary.MaxVarintLen16 + binary.MaxVarintLen32 + binary.MaxVarintLen64

func encodeDeleteOffsets(nowMs int64, ds []deleted) []byte {
	b := binary.AppendUvarint(entryHead(kindDeleteOffsets, nowMs), uint64(len(ds)))
	for i := range ds {
		d := &ds[i]
		b = appendString(b, d.key.group)
		b = appendString(b, d.key.topic)
		b = binary.AppendVarint(b, int64(d.key.partition))
		b = binary.AppendVarint(b, d.ifCommitMs)
	}
	return b
}

func decodeDeleteOffsets(r *reader) []deleted {
	n := r.count(4)
	ds := make([]deleted, 0, n)
	for range n {
		d := deleted{key: offsetKey{group: r.str(), topic: r.str(), partition: r.int32()}}
		d.ifCommitMs = r.varint()
		ds = append(ds, d)
	}
	return ds
}

// openEntry checks the header and returns a reader of what follows.
func openEntry(data []byte) (kind entryKind, nowMs int64, r reader, err error) {
	r.b = data
	version := r.byte()
	kind = entryKind(r.byte())
	nowMs = r.int64be()
	if err := format.Check(int(version), entryVersion); err != nil && !r.bad {
		return 0, 0, r, fmt.Errorf("%w: entry of %d bytes, %w", ErrCorrupt, len(data), err)
	}
	if r.bad || kind < kindCommit || kind > kindDeleteOffsets {
		return 0, 0, r, fmt.Errorf("%w: entry of %d bytes, version %d, kind %d", ErrCorrupt, len(data), version, kind)
	}
	return kind, nowMs, r, nil
}

// end tells why an entry was not read to its end.
func (r *reader) end(what string) error {
	if r.bad || len(r.b) != 0 {
		return fmt.Errorf("%w: %s: cut short or %d bytes too many", ErrCorrupt, what, len(r.b))
	}
	return nil
}

// CommitEntry is the data of an entry that commits an offset for each of n
// partitions of a topic, for those who measure the StateMachine.
func CommitEntry(nowMs int64, group, topic string, n int32, offset int64) []byte {
	cs := make([]committed, n)
	for i := range cs {
		cs[i] = committed{topic: topic, partition: int32(i), offset: Offset{Offset: offset, LeaderEpoch: 1}}
	}
	return encodeCommit(nowMs, group, cs)
}
