package broker

import (
	"encoding/binary"
	"fmt"

	"chronik/internal/ident"
	"chronik/internal/transport"
)

// Control frames that are not raft's begin with one of these bytes; raftgroup.IsFrame tells raft's.
const (
	frameLeaders = 'L' // metadata.Leaders: a snapshot or a delta
	frameLSN     = 'D' // 8 bytes: the sender's durable LSN
)

// broadcast sends a control frame to every connected peer.
func (s *session) broadcast(kind byte, body []byte) {
	if body == nil {
		return
	}
	for _, p := range s.tr.Peers() {
		if p.Up {
			s.tr.Send(p.Node, transport.Control, []byte{kind}, body) // lost: the timer repeats it
		}
	}
}

// gossip tells everything this node leads and how much of its log is durable.
func (s *session) gossip() {
	s.broadcast(frameLeaders, s.leaders.Snapshot())
	s.broadcast(frameLSN, binary.BigEndian.AppendUint64(nil, s.rlog.DurableLSN()))
}

// handleGossip takes a control frame that is not raft's.
func (s *session) handleGossip(from transport.PeerInfo, frame []byte) error {
	if len(frame) == 0 {
		return fmt.Errorf("empty control frame")
	}
	switch body := frame[1:]; frame[0] {
	case frameLeaders:
		return s.leaders.Merge(from.Node, body)
	case frameLSN:
		if len(body) != 8 {
			return fmt.Errorf("LSN frame of %d bytes", len(body))
		}
		s.Saw(from.Node, from.Store, binary.BigEndian.Uint64(body))
		return nil
	default:
		return fmt.Errorf("control frame of unknown kind %#x", frame[0])
	}
}

// LeaderChanged implements raftgroup.Events.
func (s *session) LeaderChanged(group ident.GroupID, _ ident.ReplicaID, leader ident.NodeID, term ident.Term, isMe bool) {
	delta := s.leaders.Set(group, term, isMe)
	if !isMe {
		s.leaders.Observe(group, term, leader)
	}
	s.broadcast(frameLeaders, delta)
	if isMe || group == ident.MetaGroup {
		s.kick() // with a leader of the metadata, the reconciler can learn whether the Image is current
	}
}
