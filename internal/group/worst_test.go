package group

import (
	"encoding/binary"
	"testing"

	"chronik/internal/alloctest"
)

// TestWorstInputs: 1 MiB of a stranger or a disk takes no more than its share of memory.
func TestWorstInputs(t *testing.T) {
	uv := func(n int) string { return string(binary.AppendUvarint(nil, uint64(n))) }
	head := func(k entryKind) string { return string(entryHead(k, 1)) }
	const mib = alloctest.MaxInput
	group := func(members int) string {
		b := appendGroup(nil, &Group{ID: "g", Version: 1})
		return string(b[:len(b)-1]) + uv(members)
	}
	member := string(make([]byte, 8))
	distinct := []byte(head(kindCommit) + "\x01g" + uv(mib/8-8))
	for i := 0; len(distinct)+8 <= mib; i++ {
		distinct = append(binary.AppendVarint(append(distinct, 0), int64(i)), 2, 0, 0, 0)
	}
	n := 0
	offsets := []byte{}
	for ; len(offsets)+32 < mib; n++ {
		offsets = append(binary.AppendVarint(append(offsets, 1, 'g', 0), int64(n)), 2, 0, 0, 2, 0)
	}
	alloctest.Worst(t, map[string][]byte{
		"commits":          alloctest.Fill(head(kindCommit)+"\x01g"+uv((mib-16)/6), "\x00\x00\x00\x00\x00\x00", ""),
		"distinct commits": distinct,
		"deleted offsets":  alloctest.Fill(head(kindDeleteOffsets)+uv((mib-16)/4), "\x00\x00\x00\x00", ""),
		"members":          alloctest.Fill(head(kindPutGroup)+group((mib-64)/8), member, ""),
		"state members":    alloctest.Fill(stateMagic+"\x00\x01\x00"+group((mib-64)/8), member, stateEnd),
		"state offsets":    []byte(stateMagic + "\x00\x00" + uv(n) + string(offsets) + stateEnd),
		"subscription":     alloctest.Fill("\x00\x00\x00\x07\xff\xf0", "\x00\x00", ""),
	},
		func(b []byte) { _ = newState().apply(b) },
		func(b []byte) { _, _ = readState(b) },
		func(b []byte) { _, _ = subscribedTopics(b) },
	)
}
