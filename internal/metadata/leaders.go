package metadata

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"chronik/internal/ident"
)

// Leader is who leads a group, as far as this node has heard.
type Leader struct {
	Node ident.NodeID // 0 = nobody known
	Term ident.Term
}

// Leaders is the soft-state table of group leaders, fed by this node's own
// replicas (Set) and by what the other nodes say of themselves (Merge). The
// newest term wins; within a term only its leader speaks for it. Reads take no lock.
type Leaders struct {
	groups sync.Map // ident.GroupID → *Leader; written with mu held

	mu      sync.Mutex
	mine    map[ident.GroupID]ident.Term // what this node leads
	led     map[ident.NodeID]map[ident.GroupID]struct{}
	self    ident.NodeID
	changed chan struct{} // closed at the next change; nil = nobody waits
}

// NewLeaders returns an empty table for node self.
func NewLeaders(self ident.NodeID) *Leaders {
	return &Leaders{
		self: self,
		mine: map[ident.GroupID]ident.Term{},
		led:  map[ident.NodeID]map[ident.GroupID]struct{}{},
	}
}

// Get returns who leads group; the zero Leader if nobody is known.
func (l *Leaders) Get(group ident.GroupID) Leader {
	if v, ok := l.groups.Load(group); ok {
		return *v.(*Leader)
	}
	return Leader{}
}

// Set records that this node leads group in term, or no longer does. It returns
// a delta for the other nodes, nil if nothing changed.
func (l *Leaders) Set(group ident.GroupID, term ident.Term, leading bool) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := leaderClaim{group, term, leading}
	if leading {
		l.mine[group] = term
	} else {
		delete(l.mine, group)
		cur := l.Get(group)
		if cur.Node != l.self {
			return nil // never said otherwise
		}
		c.term = cur.Term
	}
	if !l.put(l.self, c) {
		return nil
	}
	l.notify()
	return encodeClaims(claimDelta, []leaderClaim{c})
}

// Observe records what a local replica heard through Raft: node leads group in
// term. It never overrides what a leader said of itself in that term.
func (l *Leaders) Observe(group ident.GroupID, term ident.Term, node ident.NodeID) {
	if node == 0 || node == l.self || l.Get(group).Term >= term {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Get(group).Term < term && l.put(node, leaderClaim{group, term, true}) {
		l.notify()
	}
}

// Forget drops a deleted group.
func (l *Leaders) Forget(group ident.GroupID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.mine, group)
	cur := l.Get(group)
	if cur == (Leader{}) {
		return
	}
	delete(l.led[cur.Node], group)
	l.groups.Delete(group)
}

// Snapshot returns everything this node leads, for a peer that has just come up
// and, against lost deltas, on a timer.
func (l *Leaders) Snapshot() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	claims := make([]leaderClaim, 0, len(l.mine))
	for g, t := range l.mine {
		claims = append(claims, leaderClaim{g, t, true})
	}
	return encodeClaims(claimSnapshot, claims)
}

// ErrLeaderFrame is wrapped by Merge's errors: the frame is not what a Leaders encodes.
var ErrLeaderFrame = errors.New("metadata: malformed leader frame")

// Merge takes in a Snapshot or a delta that node from made.
func (l *Leaders) Merge(from ident.NodeID, frame []byte) error {
	kind, claims, err := decodeClaims(frame)
	if err != nil {
		return err
	}
	if from == l.self {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	changed := false
	for _, c := range claims {
		changed = l.put(from, c) || changed
	}
	if kind == claimSnapshot {
		said := make(map[ident.GroupID]struct{}, len(claims))
		for _, c := range claims {
			said[c.group] = struct{}{}
		}
		for g := range l.led[from] {
			if _, ok := said[g]; !ok {
				changed = l.put(from, leaderClaim{g, l.Get(g).Term, false}) || changed
			}
		}
	}
	if changed {
		l.notify()
	}
	return nil
}

// Changed returns a channel that is closed at the next change of any leader.
// Take it before Get, else a change in between is missed.
func (l *Leaders) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// Wait waits until all groups have a known leader.
func (l *Leaders) Wait(ctx context.Context, groups ...ident.GroupID) error {
	known := func() bool {
		for _, g := range groups {
			if l.Get(g).Node == 0 {
				return false
			}
		}
		return true
	}
	for {
		changed := l.Changed()
		if known() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// put takes one claim by node from and tells whether it changed the table. l.mu is held.
func (l *Leaders) put(from ident.NodeID, c leaderClaim) bool {
	cur := l.Get(c.group)
	if c.term < cur.Term || c.term == cur.Term && cur.Node != from && cur.Node != 0 {
		return false
	}
	next := Leader{Term: c.term}
	if c.leading {
		next.Node = from
	}
	if next == cur {
		return false
	}
	delete(l.led[cur.Node], c.group)
	if c.leading {
		if l.led[from] == nil {
			l.led[from] = map[ident.GroupID]struct{}{}
		}
		l.led[from][c.group] = struct{}{}
	}
	l.groups.Store(c.group, &next)
	return true
}

func (l *Leaders) notify() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// A leader frame is [version 1][kind][uvarint count] and for each claim
// [uvarint group][uvarint term][1 leading, 0 resigned].
const (
	claimVersion  = 1
	claimSnapshot = 0
	claimDelta    = 1
	claimMinBytes = 3
)

type leaderClaim struct {
	group   ident.GroupID
	term    ident.Term
	leading bool
}

func encodeClaims(kind byte, claims []leaderClaim) []byte {
	b := make([]byte, 0, 8+len(claims)*8)
	b = append(b, claimVersion, kind)
	b = binary.AppendUvarint(b, uint64(len(claims)))
	for _, c := range claims {
		b = binary.AppendUvarint(b, uint64(c.group))
		b = binary.AppendUvarint(b, uint64(c.term))
		if c.leading {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	return b
}

func decodeClaims(b []byte) (kind byte, claims []leaderClaim, err error) {
	if len(b) < 3 || b[0] != claimVersion || b[1] > claimDelta {
		return 0, nil, fmt.Errorf("%w: header", ErrLeaderFrame)
	}
	kind, b = b[1], b[2:]
	count, n := binary.Uvarint(b)
	if n <= 0 || count > uint64(len(b)-n)/claimMinBytes {
		return 0, nil, fmt.Errorf("%w: count", ErrLeaderFrame)
	}
	b = b[n:]
	claims = make([]leaderClaim, 0, count)
	for range count {
		g, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, nil, fmt.Errorf("%w: group", ErrLeaderFrame)
		}
		b = b[n:]
		t, n := binary.Uvarint(b)
		if n <= 0 || len(b) == n || b[n] > 1 {
			return 0, nil, fmt.Errorf("%w: term", ErrLeaderFrame)
		}
		claims = append(claims, leaderClaim{ident.GroupID(g), ident.Term(t), b[n] == 1})
		b = b[n+1:]
	}
	if len(b) != 0 {
		return 0, nil, fmt.Errorf("%w: %d bytes behind", ErrLeaderFrame, len(b))
	}
	return kind, claims, nil
}
