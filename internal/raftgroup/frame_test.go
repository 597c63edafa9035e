package raftgroup

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
	"chronik/internal/snapshot"
)

func u64(v uint64) *uint64 { return &v }

func sampleFrame(t testing.TB) ([]byte, []*pb.Message) {
	t.Helper()
	big := bytes.Repeat([]byte("x"), 3*inlinePayload)
	msgs := []*pb.Message{
		{Type: pb.MsgHeartbeat.Enum(), From: u64(1), To: u64(2), Term: u64(3), Commit: u64(9), Context: []byte{1, 2}},
		{Type: pb.MsgApp.Enum(), From: u64(1), To: u64(2), Term: u64(3), Index: u64(4), LogTerm: u64(2), Commit: u64(4), Entries: []*pb.Entry{
			{Type: pb.EntryNormal.Enum(), Term: u64(3), Index: u64(5), Data: []byte("small")},
			{Type: pb.EntryNormal.Enum(), Term: u64(3), Index: u64(6), Data: big},
			{Type: pb.EntryConfChangeV2.Enum(), Term: u64(3), Index: u64(7)},
		}},
		{Type: pb.MsgAppResp.Enum(), From: u64(2), To: u64(1), Term: u64(3), Index: u64(7), Reject: proto.Bool(true), RejectHint: u64(6), LogTerm: u64(1)},
	}
	var f frameBuilder
	f.begin(frameSource{node: 5, store: ident.StoreID{9}, lsn: 77})
	for _, m := range msgs {
		f.message(8, m)
	}
	f.offer(8, 1, 2, 3, offerMsg{first: 40, offer: snapshot.Offer{Group: 8, Index: 50, Term: 2, Sources: []snapshot.OfferSource{{Node: 5, Pin: 6}}}}.encode())
	f.status(8, 2, 1, 3, 50, transferFailed)
	return join(f.take()), msgs
}

func TestFrameRoundTrip(t *testing.T) {
	frame, msgs := sampleFrame(t)
	var got []item
	src, err := decodeFrame(frame, func(it item) { got = append(got, it) })
	must(t, err)
	if src.node != 5 || src.store != (ident.StoreID{9}) || src.lsn != 77 {
		t.Fatalf("source %+v", src)
	}
	if len(got) != 5 {
		t.Fatalf("%d items", len(got))
	}
	for i, m := range msgs {
		if got[i].group != 8 || !sameMessage(got[i].msg, m) {
			t.Fatalf("message %d:\n%v, want\n%v", i, got[i].msg, m)
		}
	}
	o, err := decodeOfferMsg(got[3].offer)
	must(t, err)
	if o.first != 40 || o.offer.Index != 50 || got[3].term != 3 {
		t.Fatalf("offer %+v", o)
	}
	if s := got[4]; s.state != transferFailed || s.index != 50 || s.from != 2 {
		t.Fatalf("status %+v", s)
	}
}

// sameMessage compares by value: an absent field equals zero.
func sameMessage(a, b *pb.Message) bool {
	if a.GetType() != b.GetType() || a.GetFrom() != b.GetFrom() || a.GetTo() != b.GetTo() || a.GetTerm() != b.GetTerm() ||
		a.GetIndex() != b.GetIndex() || a.GetLogTerm() != b.GetLogTerm() || a.GetCommit() != b.GetCommit() ||
		a.GetReject() != b.GetReject() || a.GetRejectHint() != b.GetRejectHint() || !bytes.Equal(a.GetContext(), b.GetContext()) ||
		len(a.GetEntries()) != len(b.GetEntries()) {
		return false
	}
	for i, e := range a.GetEntries() {
		w := b.GetEntries()[i]
		if e.GetType() != w.GetType() || e.GetTerm() != w.GetTerm() || e.GetIndex() != w.GetIndex() || !bytes.Equal(e.GetData(), w.GetData()) {
			return false
		}
	}
	return true
}

func TestFrameCutAnywhereIsRefused(t *testing.T) {
	frame, _ := sampleFrame(t)
	whole := 0
	for n := range len(frame) {
		if _, err := decodeFrame(frame[:n:n], func(item) {}); err == nil {
			whole++ // a cut between items
		} else if !errors.Is(err, ErrBadFrame) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if whole != 5 {
		t.Fatalf("%d cuts pass, want those at the 5 item bounds", whole)
	}
}

// What an older program reads of a beat is a status for a replica that is not there.
func TestBeatIsAStatusOfNobody(t *testing.T) {
	var fb frameBuilder
	fb.begin(frameSource{node: 1, store: storeOf(1, 0), lsn: 9})
	fb.beat(1<<60, 7)
	frame := join(fb.take())
	n := 0
	_, err := decodeFrame(frame, func(it item) {
		n++
		if it.kind != itemStatus || it.group != 0 || it.from != 0 || it.to != 0 || it.term != 1<<60 || it.index != 7 || it.state != nodeBeat {
			t.Errorf("%+v", it)
		}
	})
	if err != nil || n != 1 {
		t.Errorf("%d items, %v", n, err)
	}
}

func FuzzDecodeFrame(f *testing.F) {
	frame, _ := sampleFrame(f)
	f.Add(frame)
	f.Add(frame[:frameHeader])
	var fb frameBuilder
	fb.begin(frameSource{node: 1, store: storeOf(1, 0), lsn: 9})
	fb.beat(1<<60, 1<<59)
	fb.quiesce(7, 11, 12, 3, 50, 1<<60)
	f.Add(join(fb.take()))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		_, err := decodeFrame(b, func(it item) {
			switch it.kind {
			case itemMessage:
				// What decodes encodes to the same message.
				var fb frameBuilder
				fb.begin(*it.src)
				fb.message(it.group, it.msg)
				if _, err := decodeFrame(join(fb.take()), func(o item) {
					if !sameMessage(o.msg, it.msg) {
						t.Fatalf("%v became %v", it.msg, o.msg)
					}
				}); err != nil {
					t.Fatalf("own frame: %v", err)
				}
			case itemOffer:
				_, _ = decodeOfferMsg(it.offer)
			case itemStatus:
			case itemQuiesce:
				var fb frameBuilder
				fb.begin(*it.src)
				fb.quiesce(it.group, it.from, it.to, it.term, it.index, it.epoch)
				if _, err := decodeFrame(join(fb.take()), func(o item) {
					if o.group != it.group || o.from != it.from || o.to != it.to || o.term != it.term || o.index != it.index || o.epoch != it.epoch {
						t.Fatalf("%+v became %+v", it, o)
					}
				}); err != nil {
					t.Fatalf("own frame: %v", err)
				}
			}
		})
		if err != nil && !errors.Is(err, ErrBadFrame) {
			t.Fatalf("error %v", err)
		}
	})
}

func FuzzDecodeMembers(f *testing.F) {
	f.Add(encodeConfContext(confContext{generation: 3, added: members(3), demoted: []ident.ReplicaID{4}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		c, err := decodeConfContext(b)
		if err != nil {
			return
		}
		again, err := decodeConfContext(encodeConfContext(c))
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v became %+v, %v", c, again, err)
		}
	})
}
