package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"chronik/internal/config"
	"chronik/internal/format"
	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// Calls between nodes on their way into a cluster.
const (
	methodPrepare = "boot.prepare" // an identity.Genesis: hold it durably
	methodCommit  = "boot.commit"  // its cluster id: every founder holds it, and the one that says so is a member
	methodJoin    = "boot.join"    // a metadata.RegisterBroker: answered by an encoded metadata.Reply
)

// openStore opens the data directory, with advice on what may be wrong with it.
func openStore(fs vfs.FS, cfg *config.Config) (*identity.Store, error) {
	s, err := identity.OpenStore(fs, cfg.Node.DataDir, cfg.Node.ID)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, identity.ErrInUse):
		return nil, &Error{Msg: "cannot open the data directory", Err: err, Hint: "is the node running already? each node needs its own node.data_dir"}
	case errors.Is(err, identity.ErrWrongNode):
		return nil, &Error{Msg: "cannot open the data directory", Err: err, Hint: "node.id or node.data_dir is wrong"}
	case errors.Is(err, identity.ErrRecovering):
		return nil, &Error{Msg: "cannot open the data directory", Err: err, Hint: "run the same 'chronik cluster recover' or 'chronik restore' again: it finishes what it began"}
	case errors.Is(err, format.ErrNewer):
		return nil, &Error{Msg: "cannot open the data directory", Err: err, Hint: "the data directory stays as it is"}
	case errors.Is(err, identity.ErrCorrupt):
		return nil, &Error{Msg: "cannot open the data directory", Err: err, Hint: "if the cluster has other nodes, remove the data directory: this node comes back from them"}
	default:
		return nil, &Error{Msg: "cannot open the data directory " + cfg.Node.DataDir, Err: err, Hint: "node.data_dir must be a writable directory on a disk with space"}
	}
}

// bootstrapper brings a store that is no member into a cluster: founds one with
// all configured peers, or joins one that runs. identity.Decide decides, this carries out.
type bootstrapper struct {
	s     *session
	peers []ident.NodeID
	hash  string
	// failed are members through which joining has failed, the latest last. becomeMember's own.
	failed []ident.NodeID

	mu      sync.Mutex
	live    map[ident.NodeID]identity.Hello
	changed notifier
}

func newBootstrapper(s *session) *bootstrapper {
	b := &bootstrapper{s: s, live: map[ident.NodeID]identity.Hello{}}
	addrs := map[ident.NodeID]string{}
	for _, p := range s.cfg.Cluster.Peers {
		addrs[p.ID] = p.Addr
		b.peers = append(b.peers, p.ID)
	}
	b.hash = identity.PeersHash(addrs)
	return b
}

// greeted notes the latest Hello of a peer. It counts while the peer is connected.
func (b *bootstrapper) greeted(h identity.Hello) {
	b.mu.Lock()
	b.live[h.Node] = h
	b.mu.Unlock()
	b.changed.notify()
}

func (b *bootstrapper) situation() identity.Situation {
	b.mu.Lock()
	defer b.mu.Unlock()
	live := make(map[ident.NodeID]identity.Hello, len(b.live))
	for n, h := range b.live {
		if b.s.tr.Connected(n) {
			live[n] = h
		}
	}
	return identity.Situation{Node: b.s.node, Peers: b.peers, Me: b.s.hello(), Live: live, Failed: slices.Clone(b.failed)}
}

// bootRetry bounds how long a change that nothing announces goes unseen.
const bootRetry = 200 * time.Millisecond

// becomeMember returns once the store is a member and its metadata replica exists.
func (b *bootstrapper) becomeMember(ctx context.Context) error {
	said, before := map[ident.NodeID]string{}, b.s.store.State() // what each member brought of late is said once
	for b.s.store.State() != identity.Member {
		if err := b.s.strange(); err != nil { // a peer says it once, perhaps when another was away
			return err
		}
		changed := b.changed.wait()
		sit := b.situation()
		act := identity.Decide(sit)
		err := b.carryOut(ctx, sit, act)
		if fatal := (*Error)(nil); errors.As(err, &fatal) {
			return err
		}
		text := b.describe(act, err)
		b.s.setPhase(text)
		if text != said[act.Via] {
			said[act.Via] = text
			b.s.log.Info("on the way into a cluster", "step", text)
		}
		if err == nil && act.Kind != identity.ActWait {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(bootRetry):
		}
	}
	b.tellStrangers()
	if before != identity.Member {
		b.tellFounders()
	}
	return b.ensureMeta()
}

// tellFounders says to the other founders that their genesis is committed. Its proposer does, but may be gone with
// its store when only one of them has heard; the rest knows this node as it was when it said Hello, prepared, and
// would take the genesis for one that nobody committed.
func (b *bootstrapper) tellFounders() {
	g := b.s.store.Genesis()
	if g == nil {
		return // this store joined
	}
	for _, m := range g.Members {
		if m.Node == b.s.node {
			continue
		}
		b.s.tasks.Go(func() {
			ctx, cancel := context.WithTimeout(b.s.life, foundersHear)
			defer cancel()
			if _, err := b.s.tr.Call(ctx, m.Node, methodCommit, []byte(g.ClusterID)); err != nil && b.s.tr.Connected(m.Node) {
				b.s.log.Info("a founder did not hear of the founding from here: saying Hello anew", "peer", int32(m.Node), "err", err)
				b.s.tr.Rehello()
			}
		})
	}
}

// foundersHear bounds a founder's answer. One that is not connected is not waited for: the Hello of its connection
// will be a member's.
const foundersHear = 5 * time.Second

// tellStrangers says Hello anew if a node is connected that is no founder: it
// waits to see a member, and knows this one as it was before.
func (b *bootstrapper) tellStrangers() {
	g := b.s.store.Genesis()
	if g == nil {
		return // this store joined: there were members to see before it
	}
	for _, h := range b.situation().Live {
		if !g.Names(h.Store) {
			b.s.tr.Rehello()
			return
		}
	}
}

func (b *bootstrapper) describe(act identity.Action, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case act.Why != "":
		return act.Why
	default:
		return "founding or joining a cluster"
	}
}

func (b *bootstrapper) carryOut(ctx context.Context, sit identity.Situation, act identity.Action) error {
	st := b.s.store
	switch act.Kind {
	case identity.ActPropose:
		if err := st.Unprepare(); err != nil {
			return err
		}
		g := identity.NewGenesis(sit, metadata.MetaVoters(max(1, len(b.peers))))
		if err := st.Prepare(g); err != nil {
			return err
		}
		return b.propose(ctx, g)
	case identity.ActResume:
		return b.propose(ctx, st.Genesis())
	case identity.ActCommit:
		return st.Commit()
	case identity.ActUnprepare:
		if err := st.Unprepare(); err != nil {
			return err
		}
		b.s.tr.Rehello() // the proposer waits for this
	case identity.ActJoin:
		err := b.join(ctx, act.Via)
		if err != nil {
			b.failed = append(slices.DeleteFunc(b.failed, func(n ident.NodeID) bool { return n == act.Via }), act.Via)
		}
		return err
	case identity.ActWait:
	}
	return nil
}

// propose has every founder hold g durably, then commits it here and tells them.
func (b *bootstrapper) propose(ctx context.Context, g *identity.Genesis) error {
	data, err := json.Marshal(g)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tell := func(method string, body []byte) error {
		var errs []error
		for _, m := range g.Members {
			if m.Node != b.s.node {
				_, err := b.s.tr.Call(ctx, m.Node, method, body)
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	if err := tell(methodPrepare, data); err != nil {
		return fmt.Errorf("founding: %w", err)
	}
	if err := b.s.store.Commit(); err != nil {
		return err
	}
	b.s.log.Info("founded cluster", "cluster", g.ClusterID, "nodes", len(g.Members))
	if err := tell(methodCommit, []byte(g.ClusterID)); err != nil {
		b.s.log.Warn("a founder did not hear of the founding yet", "err", err)
		b.s.tr.Rehello() // the next Hello tells it
	}
	return nil
}

func (b *bootstrapper) servePrepare(from ident.StoreID, data []byte) error {
	g, err := identity.DecodeGenesis(data)
	if err != nil {
		return err
	}
	if g.Proposer != from {
		return fmt.Errorf("store %s sends the genesis of store %s", from, g.Proposer)
	}
	return b.s.store.Prepare(g)
}

func (b *bootstrapper) serveCommit(from ident.StoreID, cluster string) error {
	if g := b.s.store.Genesis(); g != nil && !g.Names(from) {
		return fmt.Errorf("store %s commits the genesis of store %s and is no founder", from, g.Proposer)
	}
	defer b.changed.notify()
	return b.s.store.CommitTo(cluster)
}

// join asks a member to have this store registered, and makes its metadata replica.
func (b *bootstrapper) join(ctx context.Context, via ident.NodeID) error {
	cmd, err := b.s.registration()
	if err != nil {
		return err
	}
	cmd.ClusterID = b.s.store.ClusterID()
	data, err := metadata.Encode(cmd)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	answer, err := b.s.tr.Call(ctx, via, methodJoin, data)
	if err != nil {
		return fmt.Errorf("joining through node %d: %w", via, err)
	}
	reply, err := metadata.DecodeReply(cmd.Kind(), answer)
	if err != nil {
		return err
	}
	if reply.Err != nil {
		return fmt.Errorf("joining through node %d: %w", via, reply.Err)
	}
	res, ok := reply.Result.(*metadata.RegisterResult)
	if !ok || res.Founder {
		return fmt.Errorf("joining through node %d: unexpected answer %T", via, reply.Result)
	}
	for _, m := range res.Members {
		if m.RaftAddr != "" && m.Node != b.s.node {
			b.s.tr.SetPeer(m.Node, m.RaftAddr)
		}
	}
	spec := metaSpec(res.MetaReplica)
	spec.CreatedAt = res.CreatedAt
	if err := b.s.host.Create([]raftgroup.Spec{spec}); err != nil {
		return err
	}
	b.s.memory.created(0) // its index says nothing about other replicas of this store
	b.s.log.Info("joined cluster", "cluster", res.ClusterID, "replica", uint64(res.MetaReplica), "lost", res.Lost)
	return b.s.store.Join(res.ClusterID)
}

// serveJoin registers a node that has no metadata yet. While the store that the
// metadata knows of that node is connected, a second one is refused.
func (s *session) serveJoin(ctx context.Context, from ident.NodeID, data []byte) ([]byte, error) {
	cmd, err := metadata.Decode(data)
	if err != nil {
		return nil, err
	}
	reg, ok := cmd.(*metadata.RegisterBroker)
	if !ok || reg.Node != from {
		return nil, fmt.Errorf("node %d asks to register with a %s", from, cmd.Kind())
	}
	select {
	case <-s.metaCurrent:
	default: // another member may be: the node asks the next one
		return nil, errors.New("the metadata here is not current yet")
	}
	img := s.meta.Image()
	reg.Previous = img.StoreOf(reg.Node)
	if reg.ClusterID != "" && reg.ClusterID != img.ClusterID {
		return nil, fmt.Errorf("node %d belongs to cluster %s, this is %s", from, reg.ClusterID, img.ClusterID)
	}
	reg.ClusterID = img.ClusterID
	reply, err := s.submitUntilProposed(ctx, reg)
	if err != nil {
		return nil, err
	}
	return metadata.EncodeReply(reply)
}

func metaSpec(replica ident.ReplicaID) raftgroup.Spec {
	return raftgroup.Spec{
		Group: ident.MetaGroup, Replica: replica, Name: metadata.MetaTopic, Key: "meta", Topic: metadata.MetaTopic,
		Kind: metadata.KindMeta, Priority: true,
	}
}

// ensureMeta makes a founder's metadata replica, unless it was made before. What
// joined made its own before it became a member.
func (b *bootstrapper) ensureMeta() error {
	g := b.s.store.Genesis()
	if b.s.host.Replica(ident.MetaGroup) != nil {
		if g != nil && !b.s.store.Founded() {
			return b.s.store.SetFounded() // the crash came between the two
		}
		return nil
	}
	if g == nil || b.s.store.Founded() {
		return &Error{Msg: "the metadata replica of this member is lost", Hint: "remove the data directory: the node comes back from its peers"}
	}
	i := slices.IndexFunc(g.Members, func(m identity.GenesisMember) bool { return m.Store == b.s.store.ID() })
	if i < 0 {
		return &Error{Msg: "this store is not among the founders of its own genesis"}
	}
	spec := metaSpec(g.Members[i].MetaReplica)
	for _, m := range g.Members {
		spec.Members = append(spec.Members, raftgroup.Member{Replica: m.MetaReplica, Node: m.Node, Store: m.Store, Learner: m.Learner})
	}
	if err := b.s.host.Create([]raftgroup.Spec{spec}); err != nil {
		return err
	}
	return b.s.store.SetFounded()
}
