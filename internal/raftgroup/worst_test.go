package raftgroup

import (
	"encoding/binary"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/alloctest"
	"chronik/internal/raftlog"
)

// TestWorstInputs: 1 MiB of a stranger or a disk takes no more than its share of memory.
func TestWorstInputs(t *testing.T) {
	var f frameBuilder
	f.begin(frameSource{node: 2})
	f.item(itemMessage, 2, 3, 4)
	head := string(f.cur[:frameHeader])
	start := string(f.cur[frameHeader:])
	entries := head + start + string([]byte{byte(pb.MsgApp), hasEntries, 1})
	count := string(binary.AppendUvarint(nil, uint64(alloctest.MaxInput-len(entries)-4)/4))
	alloctest.Worst(t, map[string][]byte{
		"messages":   alloctest.Fill(head, start+string([]byte{byte(pb.MsgHeartbeat), 0, 1}), ""),
		"entries":    alloctest.Fill(entries+count, "\x00\x01\x01\x00", ""),
		"statuses":   alloctest.Fill(head, "\x03\x02\x03\x04\x01\x01\x00", ""),
		"offers":     alloctest.Fill(head, "\x02\x02\x03\x04\x01\x00", ""),
		"changes":    alloctest.Fill("", "\x12\x00", ""), // ConfChangeV2.changes
		"voters":     alloctest.Fill("", "\x08\x01", ""), // ConfState.voters
		"members":    alloctest.Fill(`{"Members":[`, "{},", "{}]}"),
		"contexts":   alloctest.Fill("\x01\x01\xff\xff\x03", "\x01\x01_______________\x00", ""),
		"demoted":    alloctest.Fill("\x01\x01\x00\xf0\xff\x3f", "\x01", ""),
		"unknown":    alloctest.Fill("", "\xfa\x3f\x00", ""),
		"deep group": alloctest.Fill("", "\x1b", ""),
	},
		func(b []byte) { _, _ = decodeFrame(b, func(item) {}) },
		func(b []byte) {
			if cc, err := decodeConfChange(&pb.Entry{Type: pb.EntryConfChangeV2.Enum(), Data: b}); err == nil {
				_, _ = initialMembership(members(3)).next(cc, 7)
			}
		},
		func(b []byte) { _, _ = membershipOf(b, members(3), 1) },
		func(b []byte) { _, _ = decodeConfContext(b) },
		func(b []byte) { _, _ = decodeOfferMsg(b) },
		func(b []byte) { _, _ = specOf(raftlog.Creation{Info: b}) },
	)
}
