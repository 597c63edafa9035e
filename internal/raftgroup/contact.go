package raftgroup

import (
	"slices"
	"sync"
	"time"

	"chronik/internal/ident"
	"chronik/internal/transport"
)

// contacts is what this node knows of its peers beside their connections: whether they hear it
// and it hears them, now. Quiescent groups (quiesce.go) rest on it, because they send nothing themselves.
//
// Every heartbeat interval each node sends each connected peer a beat: its epoch, and
// the epoch that it last heard of the peer, 0 if it did not lately. A peer is in contact while it is
// connected, was heard within silence, and says that it hears this node.
//
// Two things are always followed by a wake of every group with a member there: contact that
// ends, and an epoch that changes. Both are noted here before the wakes are posted. So whoever reads
// here that there is contact and goes to rest gets the wake afterwards.
type contacts struct {
	mu sync.RWMutex
	// epoch is this node's. It differs after every start, and is raised when a leader that had its followers
	// go to rest leads no more: they hear of that from the next beat, whatever else was lost.
	epoch uint64
	peers map[ident.NodeID]*contact
	// looked is when judge last ran.
	looked time.Time
}

// contact is one connected peer.
type contact struct {
	heard time.Time // the last beat
	epoch uint64    // the peer's, 0: no beat yet
	hears bool      // the peer hears this node
	// good: there was contact at the last look. Only judge sets it, and met: there was at one.
	good, met bool
}

func newContacts() *contacts {
	return &contacts{epoch: uint64(time.Now().UnixNano()), peers: make(map[ident.NodeID]*contact)}
}

// silence is how long a peer may say nothing and still count as in contact. Two lost beats do not end
// it. It is a tick short of an election timeout: the followers are then given the ticks that they did not
// have, so that they stand for election when they would have without rest, and a node that is merely late does not
// wake thousands of groups before anybody would have minded.
func (o *Options) silence() time.Duration {
	return max(o.ElectionTimeout-o.HeartbeatInterval, 3*o.HeartbeatInterval)
}

// connected begins a contact, over again if there was one.
func (c *contacts) connected(node ident.NodeID) {
	c.mu.Lock()
	c.peers[node] = &contact{}
	c.mu.Unlock()
}

// gone ends one.
func (c *contacts) gone(node ident.NodeID) {
	c.mu.Lock()
	delete(c.peers, node)
	c.mu.Unlock()
}

// with tells the epoch of a peer that is in contact, 0 of any other.
func (c *contacts) with(node ident.NodeID) uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if p := c.peers[node]; p != nil && p.good {
		return p.epoch
	}
	return 0
}

// silent tells whether a peer that was in contact is not, though it is connected. Of one that never
// was, or not since this process stood still, nothing is known: it may be one that says no beats.
func (c *contacts) silent(node ident.NodeID) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	p := c.peers[node]
	return p != nil && p.met && !p.good
}

func (c *contacts) own() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.epoch
}

func (c *contacts) raise() {
	c.mu.Lock()
	c.epoch++
	c.mu.Unlock()
}

// heard takes a beat. It tells whether the peer's epoch changed.
func (c *contacts) heard(node ident.NodeID, epoch, echo uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peers[node]
	if p == nil {
		return false // a word from before the connection, or after it
	}
	changed := p.epoch != 0 && p.epoch != epoch
	p.heard, p.epoch, p.hears = time.Now(), epoch, echo != 0
	return changed
}

// beat is what to send a peer.
type beat struct {
	node        ident.NodeID
	epoch, echo uint64
}

// judge looks at every peer. It returns the beats to send and those with whom contact has ended.
// A gap between two looks that is as long as silence says that this process stood still: then
// nothing is known of anybody.
func (c *contacts) judge(now time.Time, silence time.Duration) (beats []beat, lost []ident.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stood := !c.looked.IsZero() && now.Sub(c.looked) >= silence
	c.looked = now
	for node, p := range c.peers {
		if stood {
			p.heard, p.hears, p.met = time.Time{}, false, false
		}
		lately := p.epoch != 0 && now.Sub(p.heard) < silence
		b := beat{node: node, epoch: c.epoch}
		if lately {
			b.echo = p.epoch
		}
		beats = append(beats, b)
		good := lately && p.hears
		if p.good && !good {
			lost = append(lost, node)
		}
		p.good, p.met = good, p.met || good
	}
	slices.SortFunc(beats, func(a, b beat) int { return int(a.node) - int(b.node) })
	slices.Sort(lost)
	return beats, lost
}

// keepContact is the ticker's part. Nothing is said while a raft worker is stuck: peers shall
// not rely on groups that nobody works on. Nor by a node that never rests: so nobody rests on it.
func (h *Host) keepContact(now time.Time) {
	silence := h.opt.silence()
	beats, lost := h.contacts.judge(now, silence)
	if !h.opt.NeverQuiesce && !h.raft.stuck(now, silence) {
		src := frameSource{node: h.opt.Node, store: h.opt.Store, lsn: h.opt.Log.DurableLSN()}
		for _, b := range beats {
			var f frameBuilder
			f.begin(src)
			f.beat(b.epoch, b.echo)
			h.opt.Sender.Send(b.node, transport.Control, f.take()...) // lost: the next one follows
		}
	}
	for _, node := range lost {
		h.log.Info("lost contact with node", "peer", node)
		h.wakeAll(wakeUp{node: node, silent: true})
	}
}

// Silent tells whether a connected node stopped to answer: its process stands still, or a link swallows
// what is sent. Its connection ends seconds later.
func (h *Host) Silent(node ident.NodeID) bool { return h.contacts.silent(node) }

// beaten takes a peer's beat.
func (h *Host) beaten(from ident.NodeID, it *item) {
	if h.contacts.heard(from, uint64(it.term), uint64(it.index)) {
		h.wakeAll(wakeUp{node: from})
	}
}

// wakeAll wakes every replica that has a member on a node. Those at rest only know that they have one
// when they look, so all are asked.
func (h *Host) wakeAll(w wakeUp) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, r := range h.byReplica {
		_ = r.post(func(in *inbox) { in.wakes = append(in.wakes, w) }) // a closed replica rests for good
	}
}
