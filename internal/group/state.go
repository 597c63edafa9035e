package group

import (
	"encoding/binary"
	"iter"

	"github.com/tidwall/btree"
)

// state is what the group replicates, over copy-on-write trees: clone is O(1).
// The values in the trees are immutable.
type state struct {
	groups  *btree.Map[string, *groupState]
	offsets *btree.Map[string, *Offset] // by offsetKey.encode
	// nowMs is the highest leader's time of any entry: time never goes back.
	nowMs int64
}

// groupState is a group: its metadata, if it ever had members, and how many
// offsets it has committed.
type groupState struct {
	meta    *Group // nil: only offsets
	offsets int
}

func newState() *state {
	return &state{groups: btree.NewMap[string, *groupState](0), offsets: btree.NewMap[string, *Offset](0)}
}

func (s *state) clone() *state {
	return &state{groups: s.groups.Copy(), offsets: s.offsets.Copy(), nowMs: s.nowMs}
}

// encode orders offsets by group, topic, partition:
// [2 bytes length of group][group][topic][4 bytes partition].
func (k offsetKey) encode() string {
	b := make([]byte, 0, 6+len(k.group)+len(k.topic))
	b = append(groupPrefix(b, k.group), k.topic...)
	b = binary.BigEndian.AppendUint32(b, uint32(k.partition))
	return string(b)
}

func groupPrefix(b []byte, group string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(group))) // at most maxString
	return append(b, group...)
}

func decodeKey(s string) offsetKey {
	n := 2 + int(s[0])<<8 + int(s[1])
	t := len(s) - 4
	p := uint32(s[t])<<24 | uint32(s[t+1])<<16 | uint32(s[t+2])<<8 | uint32(s[t+3])
	return offsetKey{group: s[2:n], topic: s[n:t], partition: int32(p)}
}

func (s *state) group(id string) *groupState {
	g, _ := s.groups.Get(id)
	return g
}

func (s *state) meta(id string) *Group {
	if g := s.group(id); g != nil {
		return g.meta
	}
	return nil
}

func (s *state) offset(k offsetKey) *Offset {
	o, _ := s.offsets.Get(k.encode())
	return o
}

// offsetsOf iterates over a group's offsets by topic and partition.
func (s *state) offsetsOf(group string) iter.Seq2[offsetKey, *Offset] {
	return func(yield func(offsetKey, *Offset) bool) {
		prefix := string(groupPrefix(nil, group))
		s.offsets.Ascend(prefix, func(k string, o *Offset) bool {
			if len(k) < len(prefix) || k[:len(prefix)] != prefix {
				return false
			}
			return yield(decodeKey(k), o)
		})
	}
}

func (s *state) commit(group string, cs []committed) {
	if len(cs) == 0 {
		return // else a group that a snapshot would not name
	}
	old := s.group(group)
	g := groupState{}
	if old != nil {
		g = *old
	}
	for i := range cs {
		o := cs[i].offset
		k := offsetKey{group, cs[i].topic, cs[i].partition}
		if _, had := s.offsets.Set(k.encode(), &o); !had {
			g.offsets++
		}
	}
	if old == nil || g != *old {
		s.groups.Set(group, &g)
	}
}

// put stores a group's metadata unless it is not newer than what is there.
func (s *state) put(meta *Group) {
	g := groupState{}
	if old := s.group(meta.ID); old != nil {
		if old.meta != nil && old.meta.Version >= meta.Version {
			return
		}
		g = *old
	}
	g.meta = meta
	s.groups.Set(meta.ID, &g)
}

// deleteGroup removes a group without members; with ifBare only one without
// offsets. It tells whether the group is gone.
func (s *state) deleteGroup(id string, ifBare bool) bool {
	g := s.group(id)
	switch {
	case g == nil:
		return true
	case g.meta != nil && len(g.meta.Members) > 0 || ifBare && g.offsets > 0:
		return false
	}
	var keys []offsetKey
	for k := range s.offsetsOf(id) {
		keys = append(keys, k)
	}
	for _, k := range keys {
		s.offsets.Delete(k.encode())
	}
	s.groups.Delete(id)
	return true
}

func (s *state) deleteOffset(d deleted) {
	k := d.key.encode()
	o, ok := s.offsets.Get(k)
	if !ok || d.ifCommitMs >= 0 && o.CommitMs != d.ifCommitMs {
		return
	}
	s.offsets.Delete(k)
	g := *s.group(d.key.group)
	g.offsets--
	if g.offsets == 0 && g.meta == nil {
		s.groups.Delete(d.key.group) // it was nothing but offsets
		return
	}
	s.groups.Set(d.key.group, &g)
}

// apply carries out one entry. An entry that does not decode changes nothing; a
// deletion that changes nothing returns errKept.
func (s *state) apply(data []byte) error {
	kind, nowMs, r, err := openEntry(data)
	if err != nil {
		return err
	}
	nowMs = max(nowMs, s.nowMs)
	kept := false
	switch kind {
	case kindCommit:
		group, cs := decodeCommit(&r, nowMs)
		if err = r.end("commit"); err == nil {
			s.commit(group, cs)
		}
	case kindPutGroup:
		g := readGroup(&r)
		if err = r.end("group"); err == nil {
			s.put(g)
		}
	case kindDeleteGroup:
		id, ifBare := r.str(), r.byte() == 1
		if err = r.end("deletion of a group"); err == nil {
			kept = !s.deleteGroup(id, ifBare)
		}
	case kindDeleteOffsets:
		ds := decodeDeleteOffsets(&r)
		if err = r.end("deletion of offsets"); err == nil {
			for _, d := range ds {
				s.deleteOffset(d)
			}
		}
	}
	if err != nil {
		return err
	}
	s.nowMs = nowMs
	if kept {
		return errKept
	}
	return nil
}
