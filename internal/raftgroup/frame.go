package raftgroup

import (
	"encoding/binary"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
)

// A frame is what one node sends another at once: messages of many groups.
//
//	offset  size  field
//	0       1     magic 0xC7 (FrameMagic)
//	1       1     version 1
//	2       4     sender's node id, little endian
//	6       16    sender's store id
//	22      8     sender's durable LSN, little endian (correctness rule 18)
//	30            items until the end
//
// An item starts with one byte, its kind, and three uvarints: group, from
// replica, to replica. Then, by kind:
//
//	1 message   type u8, present u8, term, and each present field as uvarint:
//	            logTerm, index, commit, rejectHint, context (length, bytes),
//	            entries (count; for each: type u8, term, index, length; then all
//	            payloads one behind the other)
//	2 offer     term, length, bytes (an offerMsg)
//	3 status    term, snapshot index, transfer state u8
//	4 quiesce   term, last index, epoch: a leader's word to rest (quiesce.go)
//
// A status with state 4 asks a replica to wake. One with state 5, between group 0's
// replicas 0, is the node's own (contact.go): its epoch in the place of the term, and in that of
// the index the epoch it last heard of the receiver's. One with state 6 says that a follower is halted.
// Programs that do not know them drop them.
const (
	// FrameMagic is the first byte of every raft frame, so that they can share a
	// stream with other frames.
	FrameMagic   byte = 0xC7
	frameVersion byte = 1
	frameHeader       = 30
)

type itemKind byte

const (
	itemMessage itemKind = 1
	itemOffer   itemKind = 2
	itemStatus  itemKind = 3
	itemQuiesce itemKind = 4
)

// Bits of a message's present byte.
const (
	hasLogTerm = 1 << iota
	hasIndex
	hasCommit
	hasReject
	hasRejectHint
	hasContext
	hasEntries
)

// inlinePayload is the length up to which a payload is copied into the frame's
// buffer; longer ones travel as buffers of their own.
const inlinePayload = 512

// transferState is what a receiver tells the leader about a snapshot.
type transferState byte

const (
	transferAlive transferState = iota // queued or moving
	transferFailed
	transferDone
	transferDamaged // failed, and the leader's own files are to blame
	wakeAsked       // not of a transfer: the sender does not rest
	nodeBeat        // not of a transfer: a node's beat
	haltedHere      // not of a transfer: the sender is halted
)

// item is a decoded piece of a frame.
type item struct {
	kind  itemKind
	group ident.GroupID
	from  ident.ReplicaID
	to    ident.ReplicaID
	src   *frameSource
	msg   *pb.Message
	// term, index and state of an offer, a status or a quiesce.
	term  ident.Term
	index ident.Index
	state transferState
	epoch uint64
	offer []byte
	size  int // bytes of payload, for the inbox's bound
}

// frameSource is who sent a frame; its items share it.
type frameSource struct {
	node  ident.NodeID
	store ident.StoreID
	lsn   uint64
}

// frameBuilder collects the items for one (node, class).
type frameBuilder struct {
	bufs [][]byte
	// cur is the buffer being appended to; cur[mark:] is not yet in bufs.
	cur  []byte
	mark int
	size int // bytes of own buffers, without cur
}

func (f *frameBuilder) begin(src frameSource) {
	f.cur = make([]byte, frameHeader, 512)
	f.cur[0], f.cur[1] = FrameMagic, frameVersion
	binary.LittleEndian.PutUint32(f.cur[2:], uint32(src.node))
	copy(f.cur[6:], src.store[:])
	binary.LittleEndian.PutUint64(f.cur[22:], src.lsn)
}

func (f *frameBuilder) len() int { return f.size + len(f.cur) }

// cut moves what was appended so far to bufs. Later appends may move cur
// elsewhere; the bytes handed out stay.
func (f *frameBuilder) cut() {
	if len(f.cur) > f.mark {
		f.bufs = append(f.bufs, f.cur[f.mark:len(f.cur):len(f.cur)])
		f.mark = len(f.cur)
	}
}

func (f *frameBuilder) item(k itemKind, g ident.GroupID, from, to ident.ReplicaID) {
	b := append(f.cur, byte(k))
	b = binary.AppendUvarint(b, uint64(g))
	b = binary.AppendUvarint(b, uint64(from))
	f.cur = binary.AppendUvarint(b, uint64(to))
}

// message appends a raft message. Payloads are not copied unless small.
func (f *frameBuilder) message(g ident.GroupID, m *pb.Message) {
	f.item(itemMessage, g, ident.ReplicaID(m.GetFrom()), ident.ReplicaID(m.GetTo()))
	var present byte
	set := func(ok bool, bit byte) {
		if ok {
			present |= bit
		}
	}
	set(m.GetLogTerm() != 0, hasLogTerm)
	set(m.GetIndex() != 0, hasIndex)
	set(m.GetCommit() != 0, hasCommit)
	set(m.GetReject(), hasReject)
	set(m.GetRejectHint() != 0, hasRejectHint)
	set(len(m.GetContext()) > 0, hasContext)
	set(len(m.GetEntries()) > 0, hasEntries)
	b := append(f.cur, byte(m.GetType()), present)
	b = binary.AppendUvarint(b, m.GetTerm())
	for _, v := range []struct {
		bit byte
		v   uint64
	}{{hasLogTerm, m.GetLogTerm()}, {hasIndex, m.GetIndex()}, {hasCommit, m.GetCommit()}, {hasRejectHint, m.GetRejectHint()}} {
		if present&v.bit != 0 {
			b = binary.AppendUvarint(b, v.v)
		}
	}
	if present&hasContext != 0 {
		b = binary.AppendUvarint(b, uint64(len(m.GetContext())))
		b = append(b, m.GetContext()...)
	}
	f.cur = b
	if present&hasEntries != 0 {
		f.entries(m.GetEntries())
	}
}

func (f *frameBuilder) entries(es []*pb.Entry) {
	b := binary.AppendUvarint(f.cur, uint64(len(es)))
	for _, e := range es {
		b = append(b, byte(e.GetType()))
		b = binary.AppendUvarint(b, e.GetTerm())
		b = binary.AppendUvarint(b, e.GetIndex())
		b = binary.AppendUvarint(b, uint64(len(e.GetData())))
	}
	f.cur = b
	for _, e := range es {
		if d := e.GetData(); len(d) <= inlinePayload {
			f.cur = append(f.cur, d...)
		} else {
			f.cut()
			f.bufs = append(f.bufs, d)
			f.size += len(d)
		}
	}
}

func (f *frameBuilder) offer(g ident.GroupID, from, to ident.ReplicaID, term ident.Term, body []byte) {
	f.item(itemOffer, g, from, to)
	f.cur = binary.AppendUvarint(f.cur, uint64(term))
	f.cur = binary.AppendUvarint(f.cur, uint64(len(body)))
	f.cur = append(f.cur, body...)
}

func (f *frameBuilder) status(g ident.GroupID, from, to ident.ReplicaID, term ident.Term, index ident.Index, st transferState) {
	f.item(itemStatus, g, from, to)
	f.cur = binary.AppendUvarint(f.cur, uint64(term))
	f.cur = binary.AppendUvarint(f.cur, uint64(index))
	f.cur = append(f.cur, byte(st))
}

func (f *frameBuilder) quiesce(g ident.GroupID, from, to ident.ReplicaID, term ident.Term, last ident.Index, epoch uint64) {
	f.item(itemQuiesce, g, from, to)
	f.cur = binary.AppendUvarint(f.cur, uint64(term))
	f.cur = binary.AppendUvarint(f.cur, uint64(last))
	f.cur = binary.AppendUvarint(f.cur, epoch)
}

func (f *frameBuilder) beat(epoch, echo uint64) {
	f.status(0, 0, 0, ident.Term(epoch), ident.Index(echo), nodeBeat)
}

// take returns the frame's buffers.
func (f *frameBuilder) take() [][]byte {
	f.cut()
	return f.bufs
}

// reader walks a frame. After a failure every read returns zero and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad = true
		r.b = nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// bytes returns the next n bytes, aliasing the frame.
func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad = true
		r.b = nil
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// decodeFrame calls fn for each item. Payloads alias the frame. Items before a
// bad one have been delivered when it returns ErrBadFrame.
func decodeFrame(frame []byte, fn func(item)) (*frameSource, error) {
	if len(frame) < frameHeader || frame[0] != FrameMagic || frame[1] != frameVersion {
		return nil, fmt.Errorf("%w: no header of version %d in %d bytes", ErrBadFrame, frameVersion, len(frame))
	}
	src := &frameSource{node: ident.NodeID(binary.LittleEndian.Uint32(frame[2:]))}
	copy(src.store[:], frame[6:])
	src.lsn = binary.LittleEndian.Uint64(frame[22:])
	r := &reader{b: frame[frameHeader:]}
	for len(r.b) > 0 {
		at := len(frame) - len(r.b)
		it := item{kind: itemKind(r.byte()), src: src}
		it.group = ident.GroupID(r.uvarint())
		it.from = ident.ReplicaID(r.uvarint())
		it.to = ident.ReplicaID(r.uvarint())
		switch it.kind {
		case itemMessage:
			r.message(&it)
		case itemOffer:
			it.term = ident.Term(r.uvarint())
			it.offer = r.bytes(r.uvarint())
		case itemStatus:
			it.term = ident.Term(r.uvarint())
			it.index = ident.Index(r.uvarint())
			it.state = transferState(r.byte())
		case itemQuiesce:
			it.term = ident.Term(r.uvarint())
			it.index = ident.Index(r.uvarint())
			it.epoch = r.uvarint()
		default:
			r.bad = true
		}
		if r.bad {
			return src, fmt.Errorf("%w: item at byte %d of %d", ErrBadFrame, at, len(frame))
		}
		fn(it)
	}
	return src, nil
}

// msgBuf is a message with its fields beside it: one allocation instead of nine.
type msgBuf struct {
	m                                             pb.Message
	typ                                           pb.MessageType
	to, from, term, logTerm, index, commit, rhint uint64
	reject                                        bool
}

func (r *reader) message(it *item) {
	buf := &msgBuf{typ: pb.MessageType(r.byte()), to: uint64(it.to), from: uint64(it.from)}
	present := r.byte()
	buf.term = r.uvarint()
	m := &buf.m
	m.Type, m.To, m.From, m.Term = &buf.typ, &buf.to, &buf.from, &buf.term
	m.LogTerm, m.Index, m.Commit, m.RejectHint, m.Reject = &buf.logTerm, &buf.index, &buf.commit, &buf.rhint, &buf.reject
	buf.reject = present&hasReject != 0
	for _, v := range []struct {
		bit byte
		p   *uint64
	}{{hasLogTerm, &buf.logTerm}, {hasIndex, &buf.index}, {hasCommit, &buf.commit}, {hasRejectHint, &buf.rhint}} {
		if present&v.bit != 0 {
			*v.p = r.uvarint()
		}
	}
	if present&hasContext != 0 {
		m.Context = r.bytes(r.uvarint())
	}
	if present&hasEntries != 0 {
		m.Entries, it.size = r.entries()
	}
	if !sendable(buf.typ) || it.from == 0 || it.to == 0 {
		r.bad = true
	}
	it.msg = m
}

// entries reads a run of entries. An entry takes at least four bytes, so the
// frame's length bounds what is allocated.
func (r *reader) entries() ([]*pb.Entry, int) {
	n := r.uvarint()
	if n > uint64(len(r.b))/4 {
		r.bad = true
		return nil, 0
	}
	bufs := make([]entryBuf, n)
	sizes := make([]uint64, n)
	out := make([]*pb.Entry, n)
	for i := range out {
		typ := pb.EntryType(r.byte())
		if typ > pb.EntryConfChangeV2 {
			r.bad = true
		}
		term, index := r.uvarint(), r.uvarint()
		out[i] = bufs[i].set(typ, term, index, nil)
		sizes[i] = r.uvarint()
	}
	before := len(r.b)
	for i, e := range out {
		if d := r.bytes(sizes[i]); len(d) > 0 {
			e.Data = d
		}
	}
	return out, before - len(r.b)
}

// sendable tells which message types travel between nodes. MsgSnap does not:
// an offer takes its place. Proposals do not: only leaders take them.
func sendable(t pb.MessageType) bool {
	switch t { //nolint:exhaustive // the others are local
	case pb.MsgApp, pb.MsgAppResp, pb.MsgVote, pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp,
		pb.MsgHeartbeat, pb.MsgHeartbeatResp, pb.MsgTimeoutNow, pb.MsgReadIndex, pb.MsgReadIndexResp:
		return true
	}
	return false
}
