package transport

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"chronik/internal/ident"
)

const (
	// retryRefused is when a refused pair tries again; Stepped networks don't.
	retryRefused = 100 * time.Millisecond
	// reorderSpan is how far frames are scattered when they have no delay.
	reorderSpan = time.Millisecond
	// laneBytes is the twin of Options.MaxQueueBytes.
	laneBytes = 64 << 20
)

// Network connects nodes in memory, for tests. Its nodes behave to their
// Handlers as a Transport does. Frames can be lost, delayed and reordered,
// pairs of nodes cut; what happens to the n-th frame of a (sender, receiver,
// class) depends on the seed alone.
//
// It runs freely, on goroutines and timers (in a testing/synctest bubble, on
// the bubble's time), or Stepped: then nothing happens but in Step and Advance,
// on their caller's goroutine and in an order given by the seed.
type Network struct {
	opt  NetworkOptions
	done chan struct{} // closed by Close
	wg   sync.WaitGroup

	mu     sync.Mutex
	closed bool
	nodes  map[ident.NodeID]*Node
	pairs  map[pairKey]*netPair
	// dropped are the directions that lose everything without a sign.
	dropped            map[laneKey]bool
	loss               float64
	delayMin, delayMax time.Duration
	reorder            bool
	seq                uint64
	// clock and agenda are a Stepped network's time and what is to happen.
	clock  time.Time
	agenda items
}

// NetworkOptions configure a Network.
type NetworkOptions struct {
	Seed uint64
	// Stepped makes the network wait for Step and Advance. Calls then run at
	// once, on the caller's goroutine.
	Stepped bool
}

type pairKey struct{ lo, hi ident.NodeID }

// netPair is two nodes that could be connected.
type netPair struct {
	cut bool
	// session is nil while not connected.
	session *session
	lane    *lane // of attempts to connect
}

// session is one connection of a pair: what is on its way dies with it.
type session struct {
	down chan struct{}
	// infos are the two nodes as the other accepted them.
	infos map[ident.NodeID]PeerInfo
}

func (s *session) over() bool {
	select {
	case <-s.down:
		return true
	default:
		return false
	}
}

// laneKey is a direction and class; events of peer to are on class classes.
type laneKey struct {
	from, to ident.NodeID
	class    Class
}

// lane is a sequence of things to happen. Free-running, a goroutine works it
// off while there is something in it.
type lane struct {
	rng     *rand.Rand
	items   items
	last    time.Time // when the last one in order happens
	bytes   int
	running bool
	wake    chan struct{}
}

type item struct {
	at  time.Time
	seq uint64
	run func()
}

// items is a heap: earliest first, then as scheduled.
type items []item

func (h items) Len() int { return len(h) }
func (h items) Less(i, j int) bool {
	if !h[i].at.Equal(h[j].at) {
		return h[i].at.Before(h[j].at)
	}
	return h[i].seq < h[j].seq
}
func (h items) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *items) Push(x any) { *h = append(*h, x.(item)) }

// Pop implements heap.Interface.
func (h *items) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = item{}
	*h = old[:len(old)-1]
	return x
}

// NewNetwork returns a network without nodes, loss or delay.
func NewNetwork(opt NetworkOptions) *Network {
	return &Network{
		opt:     opt,
		done:    make(chan struct{}),
		nodes:   make(map[ident.NodeID]*Node),
		pairs:   make(map[pairKey]*netPair),
		dropped: make(map[laneKey]bool),
		clock:   time.Unix(0, 0),
	}
}

// Join adds a node and connects it with all others. A node of the same id that
// is there is killed first.
func (n *Network) Join(node ident.NodeID, h Handler) *Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leave(node, true)
	nd := &Node{n: n, id: node, handler: h, lanes: make(map[laneKey]*lane), refusals: make(map[ident.NodeID]string)}
	n.nodes[node] = nd
	n.connectAll()
	return nd
}

// Kill takes a node away as SIGKILL would: the others see PeerDown, its own
// Handler nothing more, except what runs at this moment.
func (n *Network) Kill(node ident.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leave(node, true)
}

// leave removes a node. Caller holds n.mu, as for all lower-case methods that change the network.
func (n *Network) leave(node ident.NodeID, silent bool) {
	nd := n.nodes[node]
	if nd == nil {
		return
	}
	nd.left, nd.silent = true, silent
	for _, other := range n.ids() {
		n.disconnect(node, other)
	}
	delete(n.nodes, node)
}

// Close takes all nodes away and returns when no callback runs any more.
func (n *Network) Close() {
	n.mu.Lock()
	if !n.closed {
		for _, id := range n.ids() {
			n.leave(id, false)
		}
		n.closed = true
		close(n.done)
	}
	n.mu.Unlock()
	n.wg.Wait()
	for n.Step() {
	}
}

// SetLoss makes the network lose frames with probability p. Calls are not lost.
func (n *Network) SetLoss(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = p
}

// SetDelay makes each frame, and each way of a call, take between lo and hi.
func (n *Network) SetDelay(lo, hi time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delayMin, n.delayMax = lo, max(lo, hi)
}

// SetReorder lets frames of one class overtake each other. The real transport
// never does that; what stands it stands anything.
func (n *Network) SetReorder(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reorder = on
}

// Partition cuts a from b: both see PeerDown.
func (n *Network) Partition(a, b ident.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pair(a, b).cut = true
	n.disconnect(a, b)
}

// Isolate cuts a from every other node.
func (n *Network) Isolate(a ident.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range n.ids() {
		if b != a {
			n.pair(a, b).cut = true
			n.disconnect(a, b)
		}
	}
}

// Drop loses, or stops losing, everything from one node to another without
// either seeing PeerDown: a one-way cut before it is detected. A call that
// depends on the direction hangs until its context or the connection ends.
func (n *Network) Drop(from, to ident.NodeID, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dropped[laneKey{from: from, to: to}] = on
}

// Heal undoes Partition and Drop between a and b.
func (n *Network) Heal(a, b ident.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heal(a, b)
}

// HealAll undoes every Partition, Isolate and Drop.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.dropped)
	for k := range n.pairs {
		n.pairs[k].cut = false
	}
	n.connectAll()
}

func (n *Network) heal(a, b ident.NodeID) {
	delete(n.dropped, laneKey{from: a, to: b})
	delete(n.dropped, laneKey{from: b, to: a})
	n.pair(a, b).cut = false
	n.connect(a, b)
}

// Reconnect lets every pair that is not connected try, as time does in a
// network that runs freely.
func (n *Network) Reconnect() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.connectAll()
}

// Step does the next thing of a Stepped network, moving its clock to it. It
// returns false when there is none.
func (n *Network) Step() bool {
	n.mu.Lock()
	if len(n.agenda) == 0 {
		n.mu.Unlock()
		return false
	}
	next := heap.Pop(&n.agenda).(item)
	if next.at.After(n.clock) {
		n.clock = next.at
	}
	n.mu.Unlock()
	next.run()
	return true
}

// Advance moves a Stepped network's clock by d, doing what comes due.
func (n *Network) Advance(d time.Duration) {
	n.mu.Lock()
	end := n.clock.Add(d)
	n.mu.Unlock()
	for {
		n.mu.Lock()
		if len(n.agenda) == 0 || n.agenda[0].at.After(end) {
			n.clock = end
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
		n.Step()
	}
}

func (n *Network) ids() []ident.NodeID {
	ids := make([]ident.NodeID, 0, len(n.nodes))
	for id := range n.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (n *Network) newLane(k laneKey) *lane {
	id := uint64(k.from)<<40 ^ uint64(k.to)<<8 ^ uint64(k.class)
	return &lane{rng: rand.New(rand.NewPCG(n.opt.Seed, id)), wake: make(chan struct{}, 1)}
}

func (n *Network) pair(a, b ident.NodeID) *netPair {
	k := pairKey{min(a, b), max(a, b)}
	p := n.pairs[k]
	if p == nil {
		p = &netPair{lane: n.newLane(laneKey{from: k.lo, to: k.hi, class: classes + 1})}
		n.pairs[k] = p
	}
	return p
}

func (n *Network) now() time.Time {
	if n.opt.Stepped {
		return n.clock
	}
	return time.Now()
}

// schedule makes run happen after delay, in the lane's order unless scattered.
func (n *Network) schedule(l *lane, delay time.Duration, scattered bool, run func()) {
	at := n.now().Add(delay)
	if !scattered {
		if at.Before(l.last) {
			at = l.last
		}
		l.last = at
	}
	n.seq++
	it := item{at: at, seq: n.seq, run: run}
	if n.opt.Stepped {
		heap.Push(&n.agenda, it)
		return
	}
	heap.Push(&l.items, it)
	if !l.running {
		l.running = true
		n.wg.Add(1)
		go n.work(l)
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// work does what is in the lane until it is empty. After Close it does not wait.
func (n *Network) work(l *lane) {
	defer n.wg.Done()
	for {
		n.mu.Lock()
		if len(l.items) == 0 {
			l.running = false
			n.mu.Unlock()
			return
		}
		wait := time.Until(l.items[0].at)
		if wait <= 0 || n.closed {
			next := heap.Pop(&l.items).(item)
			n.mu.Unlock()
			next.run()
			continue
		}
		n.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-l.wake:
		case <-n.done:
		}
		timer.Stop()
	}
}

func (n *Network) connectAll() {
	ids := n.ids()
	for i, a := range ids {
		for _, b := range ids[i+1:] {
			n.connect(a, b)
		}
	}
}

// connect schedules an attempt to connect two nodes.
func (n *Network) connect(a, b ident.NodeID) {
	if p := n.pair(a, b); p.session == nil && !p.cut && !n.closed {
		n.schedule(p.lane, 0, false, func() { n.attempt(a, b) })
	}
}

// attempt exchanges the Hellos of two nodes.
func (n *Network) attempt(a, b ident.NodeID) {
	n.mu.Lock()
	na, nb, p := n.nodes[a], n.nodes[b], n.pair(a, b)
	possible := na != nil && nb != nil && !p.cut && p.session == nil && !n.closed &&
		!n.dropped[laneKey{from: a, to: b}] && !n.dropped[laneKey{from: b, to: a}]
	n.mu.Unlock()
	if !possible {
		return
	}
	infoA, errB := accept(nb, na)
	infoB, errA := accept(na, nb)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[a] != na || n.nodes[b] != nb || p.cut || p.session != nil || n.closed {
		return
	}
	if errA != nil || errB != nil {
		n.refuse(na, b, errB)
		n.refuse(nb, a, errA)
		if !n.opt.Stepped {
			n.schedule(p.lane, retryRefused, true, func() { n.attempt(a, b) })
		}
		return
	}
	p.session = &session{down: make(chan struct{}), infos: map[ident.NodeID]PeerInfo{a: infoA, b: infoB}}
	delete(na.refusals, b)
	delete(nb.refusals, a)
	n.event(na, b, func(h Handler) { h.PeerUp(infoB) })
	n.event(nb, a, func(h Handler) { h.PeerUp(infoA) })
}

// accept asks judge about other's Hello.
func accept(judge, other *Node) (PeerInfo, error) {
	info, err := judge.handler.AcceptHello(other.handler.Hello())
	if err == nil && info.Node != other.id {
		err = fmt.Errorf("the hello is node %d's, the stream node %d's", info.Node, other.id)
	}
	return info, err
}

func (n *Network) refuse(nd *Node, by ident.NodeID, err error) {
	if err == nil || nd.refusals[by] == err.Error() {
		return
	}
	reason := err.Error()
	nd.refusals[by] = reason
	n.event(nd, by, func(h Handler) { h.Refused(by, reason) })
}

// event schedules a call to a node's Handler about a peer.
func (n *Network) event(nd *Node, peer ident.NodeID, call func(Handler)) {
	n.schedule(nd.lane(laneKey{nd.id, peer, classes}), 0, false, func() {
		n.mu.Lock()
		silent := nd.silent
		n.mu.Unlock()
		if !silent {
			call(nd.handler)
		}
	})
}

func (n *Network) disconnect(a, b ident.NodeID) {
	p := n.pair(a, b)
	if p.session == nil {
		return
	}
	close(p.session.down)
	p.session = nil
	for _, d := range [2][2]ident.NodeID{{a, b}, {b, a}} {
		if nd := n.nodes[d[0]]; nd != nil {
			n.event(nd, d[1], func(h Handler) { h.PeerDown(d[1]) })
		}
	}
}
