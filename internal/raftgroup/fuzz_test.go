package raftgroup

import (
	"errors"
	"reflect"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
	"chronik/internal/raftlog"
)

// FuzzConfChange takes bytes for a committed membership change: it is corrupt, refused,
// or makes a membership in which nobody stands twice.
func FuzzConfChange(f *testing.F) {
	before := initialMembership(members(3))
	for _, cc := range []*pb.ConfChangeV2{
		{},
		{Changes: []*pb.ConfChangeSingle{{Type: pb.ConfChangeAddLearnerNode.Enum(), NodeId: proto.Uint64(9)}}},
		{
			Changes: []*pb.ConfChangeSingle{
				{Type: pb.ConfChangeAddNode.Enum(), NodeId: proto.Uint64(4)}, {Type: pb.ConfChangeRemoveNode.Enum(), NodeId: proto.Uint64(1)},
			},
			Context: encodeConfContext(confContext{generation: 3, added: members(4)[3:]}),
		},
	} {
		b, err := proto.Marshal(cc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		cc, err := decodeConfChange(&pb.Entry{Type: pb.EntryConfChangeV2.Enum(), Data: b})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		after, err := before.next(cc, 7)
		if err != nil {
			return
		}
		seen := map[ident.ReplicaID]bool{}
		for _, m := range after.members {
			if seen[m.Replica] {
				t.Fatalf("replica %d stands twice", m.Replica)
			}
			seen[m.Replica] = true
		}
	})
}

// FuzzSpec takes bytes for what a raftlog says of a replica's creation.
func FuzzSpec(f *testing.F) {
	for _, s := range []Spec{
		{Group: 2, Replica: 5, Name: "orders-0", Key: "orders-0", Topic: "orders", Kind: 1},
		{Group: 1, Replica: 11, Name: "meta", Key: "meta", Topic: "meta", Members: members(3), Priority: true},
	} {
		c, err := s.creation()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint64(c.Group), uint64(c.Replica), c.Info)
	}
	f.Fuzz(func(t *testing.T, group, replica uint64, info []byte) {
		defer alloctest.Bound(t, len(info))()
		s, err := specOf(raftlog.Creation{Group: ident.GroupID(group), Replica: ident.ReplicaID(replica), Info: info})
		if err != nil {
			return
		}
		c, err := s.creation()
		if err != nil {
			t.Fatal(err)
		}
		again, err := specOf(c)
		if len(s.Members) == 0 {
			s.Members, again.Members = nil, nil
		}
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}

// FuzzMembership takes bytes for the ConfState of a checkpoint.
func FuzzMembership(f *testing.F) {
	f.Add(initialMembership(members(3)).confBytes())
	f.Add((&membership{conf: &pb.ConfState{Voters: []uint64{11}, VotersOutgoing: []uint64{12}, LearnersNext: []uint64{13}}}).confBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		m, err := membershipOf(b, members(4), 3)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := membershipOf(m.confBytes(), members(4), 3)
		if err != nil || !reflect.DeepEqual(again.members, m.members) || !proto.Equal(again.conf, m.conf) {
			t.Fatalf("%v became %v, %v", m, again, err)
		}
	})
}
