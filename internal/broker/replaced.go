package broker

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

// methodStoreOf asks a member which store the metadata has for a node (4 bytes,
// big-endian): answered by its id, zero for none, as of a moment after the call.
const methodStoreOf = "meta.store_of"

// How long a node waits for its own metadata replica before it asks the others
// whether it was replaced, and how often it asks.
const (
	doubtAfter = 2 * time.Second
	doubtEvery = time.Second
)

// awaitMetadata returns once this node's Image has been as new as the cluster's.
// A disk that was put away, replaced and put back has members for peers and a
// replica that no leader speaks to any more: then the session ends, and the store
// gets a new identity as any copy does.
func (s *session) awaitMetadata(ctx context.Context) error {
	doubt := time.NewTimer(doubtAfter)
	defer doubt.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.metaCurrent:
			return nil
		case <-doubt.C:
		}
		if why := s.metadataWait(); why != said {
			said = why
			s.log.Warn("metadata group not heard yet", "reason", why)
		}
		if err := s.strange(); err != nil {
			return err
		}
		if err := s.replacedBy(ctx); err != nil {
			return err
		}
		doubt.Reset(doubtEvery)
	}
}

// metadataWait says why this node's Image is not current yet.
func (s *session) metadataWait() string {
	why := "it has no replica here yet"
	if r := s.host.Replica(ident.MetaGroup); r != nil {
		switch st := r.Status(); {
		case st.State.Ended():
			why = fmt.Sprintf("its replica here is %s: %s", st.State, st.Reason)
		case st.State == raftgroup.StateReceiving:
			why = "its snapshot is on the way here"
		case st.LeaderNode == 0:
			why = "no leader of it is heard"
		case st.LeaderNode != s.node && !s.tr.Connected(st.LeaderNode):
			why = fmt.Sprintf("its leader, node %d, is out of reach", st.LeaderNode)
		default:
			why = fmt.Sprintf("its leader, node %d, is heard", st.LeaderNode)
		}
	}
	reached := s.reached()
	var missed []ident.NodeID
	for _, p := range s.tr.Peers() {
		if !slices.Contains(reached, p.Node) {
			missed = append(missed, p.Node)
		}
	}
	return fmt.Sprintf("%s; in reach: nodes %v, out of reach: nodes %v", why, reached[1:], missed)
}

// doubtIdentity ends the session when the metadata has another store for this node. A process that was
// frozen, or cut off, while another took its place would go on as a ghost: no leader speaks to it, and it holds
// the node's id against its successor. A metadata replica that hears of no leader is what makes it ask.
func (s *session) doubtIdentity(ctx context.Context) {
	tick := time.NewTicker(doubtEvery)
	defer tick.Stop()
	for silent := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		silent += doubtEvery
		if r := s.host.Replica(ident.MetaGroup); r != nil && r.Status().LeaderNode != 0 {
			silent = 0
		}
		if silent < doubtAfter {
			continue
		}
		if err := s.replacedBy(ctx); err != nil {
			s.endWith(err)
			return
		}
	}
}

// replacedBy is an error if a member says that another store has taken the place of this one.
func (s *session) replacedBy(ctx context.Context) error {
	if store, by := s.askStore(ctx); store != (ident.StoreID{}) && store != s.store.ID() {
		return fmt.Errorf("%w: node %d says that node %d has had store %s since", errRestored, by, s.node, store)
	}
	return nil
}

// askStore asks the connected peers which store this node has; zero if nobody knows.
func (s *session) askStore(ctx context.Context) (ident.StoreID, ident.NodeID) {
	ctx, cancel := context.WithTimeout(ctx, doubtAfter)
	defer cancel()
	req := binary.BigEndian.AppendUint32(nil, uint32(s.node))
	for _, p := range s.tr.Peers() {
		if !p.Up {
			continue
		}
		var store ident.StoreID
		if b, err := s.tr.Call(ctx, p.Node, methodStoreOf, req); err == nil && copy(store[:], b) == len(store) && store != (ident.StoreID{}) {
			return store, p.Node
		}
	}
	return ident.StoreID{}, 0
}

// serveStoreOf answers methodStoreOf. It reads through the metadata leader: an Image
// that is behind may not know the store that the asking node has just joined with.
func (s *session) serveStoreOf(ctx context.Context, req []byte) ([]byte, error) {
	if len(req) != 4 {
		return nil, fmt.Errorf("%s: %d bytes", methodStoreOf, len(req))
	}
	if err := s.readMeta(ctx, doubtAfter); err != nil {
		return nil, err
	}
	store := s.meta.Image().StoreOf(ident.NodeID(binary.BigEndian.Uint32(req)))
	return store[:], nil
}
