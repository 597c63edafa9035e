package group

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"chronik/internal/format"
)

// A shard's encoded state (docs/formats/group.md); checksum and compression are
// the checkpoint's.
//
//	"CHRKGRP1"
//	varint nowMs, uvarint groups, uvarint offsets
//	each group with metadata, by id: as in an entry
//	each offset, by group, topic, partition: group, topic, partition, offset,
//	  leader epoch, metadata, commit time, expiry
//	"END"
const (
	stateMagic = "CHRKGRP1"
	stateEnd   = "END"
)

// writeTo writes the encoding. Equal states have equal bytes.
func (s *state) writeTo(w io.Writer) (int64, error) {
	bw := bufio.NewWriterSize(w, 64<<10)
	total := int64(0)
	var err error
	put := func(b []byte) bool {
		var n int
		n, err = bw.Write(b)
		total += int64(n)
		return err == nil
	}
	metas := 0
	s.groups.Scan(func(_ string, g *groupState) bool {
		if g.meta != nil {
			metas++
		}
		return true
	})
	b := binary.AppendVarint([]byte(stateMagic), s.nowMs)
	b = binary.AppendUvarint(b, uint64(metas))
	b = binary.AppendUvarint(b, uint64(s.offsets.Len()))
	if !put(b) {
		return total, err
	}
	s.groups.Scan(func(_ string, g *groupState) bool {
		return g.meta == nil || put(appendGroup(b[:0], g.meta))
	})
	if err != nil {
		return total, err
	}
	s.offsets.Scan(func(key string, o *Offset) bool {
		k := decodeKey(key)
		b = appendString(b[:0], k.group)
		b = appendString(b, k.topic)
		b = binary.AppendVarint(b, int64(k.partition))
		b = binary.AppendVarint(b, o.Offset)
		b = binary.AppendVarint(b, int64(o.LeaderEpoch))
		b = appendString(b, o.Metadata)
		b = binary.AppendVarint(b, o.CommitMs)
		b = binary.AppendVarint(b, o.ExpireMs)
		return put(b)
	})
	if err != nil || !put([]byte(stateEnd)) {
		return total, err
	}
	return total, bw.Flush()
}

// readState reads what writeTo wrote. Errors wrap ErrCorrupt and name the byte.
func readState(blob []byte) (*state, error) {
	bad := func(r *reader, what string) error {
		return fmt.Errorf("%w: snapshot of %d bytes, %s at byte %d", ErrCorrupt, len(blob), what, len(blob)-len(r.b))
	}
	r := &reader{b: blob}
	if n := len(stateMagic) - 1; len(blob) > n && string(blob[:n]) == stateMagic[:n] && blob[n] > stateMagic[n] {
		return nil, fmt.Errorf("%w: snapshot: %w", ErrCorrupt, format.Check(int(blob[n]-'0'), int(stateMagic[n]-'0')))
	}
	if len(blob) < len(stateMagic) || string(blob[:len(stateMagic)]) != stateMagic {
		return nil, bad(r, "magic")
	}
	r.b = blob[len(stateMagic):]
	s := newState()
	s.nowMs = r.varint()
	groups, offsets := r.uvarint(), r.uvarint()
	for range groups {
		at := *r
		g := readGroup(r)
		if r.bad || s.group(g.ID) != nil {
			return nil, bad(&at, "group")
		}
		s.groups.Set(g.ID, &groupState{meta: g})
	}
	var last offsetKey
	for range offsets {
		at := *r
		k, o := readOffset(r, last)
		if r.bad {
			return nil, bad(&at, "offset")
		}
		if _, twice := s.offsets.Set(k.encode(), o); twice {
			return nil, bad(&at, "an offset named twice")
		}
		s.countOffset(k.group)
		last = k
	}
	if r.bad || string(r.b) != stateEnd {
		return nil, bad(r, "end")
	}
	return s, nil
}

// readOffset reads one offset; what it shares with the one before costs no memory.
func readOffset(r *reader, last offsetKey) (offsetKey, *Offset) {
	k := last
	if g := r.take(maxString); string(g) != last.group {
		k.group = string(g)
	}
	if t := r.take(maxString); string(t) != last.topic {
		k.topic = string(t)
	}
	k.partition = r.int32()
	return k, &Offset{
		Offset: r.varint(), LeaderEpoch: r.int32(), Metadata: r.str(), CommitMs: r.varint(), ExpireMs: r.varint(),
	}
}

// countOffset counts an offset while a state is read and not shared yet.
func (s *state) countOffset(group string) {
	g := s.group(group)
	if g == nil {
		g = &groupState{}
		s.groups.Set(group, g)
	}
	g.offsets++
}

// ShardOf tells which of count coordinator groups is responsible for a consumer
// group: Java's hash of the id, as Kafka does, so that tools agree.
func ShardOf(group string, count int32) int32 {
	if count <= 0 {
		return 0
	}
	var h int32
	for _, r := range group {
		if r > 0xffff { // a surrogate pair counts as two
			r -= 0x10000
			h = h*31 + (0xd800 + r>>10)
			h = h*31 + (0xdc00 + r&0x3ff)
			continue
		}
		h = h*31 + r
	}
	return (h & 0x7fffffff) % count
}
