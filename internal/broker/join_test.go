package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/raftlog"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// TestJoinsThroughAnotherMember starts a node that hears a member first which is cut off from the rest of the cluster
// since its restart and can register nobody: the node joins through another one.
func TestJoinsThroughAnotherMember(t *testing.T) {
	c := newTrio(t)
	var cut atomic.Bool
	for i := 1; i <= 3; i++ {
		c.net[i] = Net{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			from1 := i == 1 && (addr == c.cfg[2].Raft.Listen || addr == c.cfg[3].Raft.Listen)
			if to1 := i != 1 && addr == c.cfg[1].Raft.Listen; cut.Load() && (from1 || to1) {
				return nil, errors.New("the line is cut")
			}
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}}
	}
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	c.stop(1)
	cut.Store(true)
	c.start(1)
	cfg := testConfig(t, map[string]string{"node.id": "4", "cluster.peers": fmt.Sprintf("1@%s,2@%s,3@%s", c.cfg[1].Raft.Listen, c.cfg[2].Raft.Listen, c.cfg[3].Raft.Listen)})
	b, err := Start(t.Context(), Options{
		Config: cfg, Log: slog.New(slog.NewTextHandler(t.Output(), nil)).With("at", 4), Version: "test", FS: vfs.NewCrashableMem(),
		Net: Net{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			if addr != c.cfg[1].Raft.Listen {
				time.Sleep(200 * time.Millisecond)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		b.Stop()
		if err := b.Wait(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	eventually(t, 8*time.Second, "node 4 serves", func() error {
		if s := b.session(); s == nil {
			return errors.New("no session")
		} else if !s.serving.Load() {
			return fmt.Errorf("it is at: %v", s.phase.Load())
		}
		return nil
	})
}

// TestStrangersOneByOne has disks of another cluster answer at a node's configured peers' addresses. The node ends if
// all of them are there at once and it has no cluster of its own: not if one was seen when another had gone, and not
// if its metadata is current, as that of a survivor that was recovered is.
func TestStrangersOneByOne(t *testing.T) {
	for _, current := range []bool{false, true} {
		t.Run(fmt.Sprint("current ", current), func(t *testing.T) {
			addrs := []string{"", freeAddr(t), freeAddr(t), freeAddr(t)}
			cfg := testConfig(t, map[string]string{"raft.listen": addrs[1], "cluster.peers": fmt.Sprintf("1@%s,2@%s,3@%s", addrs[1], addrs[2], addrs[3])})
			b := &Broker{opt: Options{Config: cfg}, log: slog.New(slog.DiscardHandler), fs: vfs.NewCrashableMem()}
			ls, err := b.listenAgain()
			if err != nil {
				t.Fatal(err)
			}
			s, err := b.open(ls)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				s.stop(t.Context())
				if err := s.store.Close(); err != nil {
					t.Error(err)
				}
			}()
			if current {
				close(s.metaCurrent)
			}
			s.tr.Start()
			says := func(n ident.NodeID, has func(transport.PeerStatus) bool) {
				t.Helper()
				eventually(t, 5*time.Second, "what is known of the peer", func() error {
					for _, p := range s.tr.Peers() {
						if p.Node == n && has(p) {
							return nil
						}
					}
					return errors.New("not yet")
				})
			}
			comes := func(n ident.NodeID, refusal string) *fakePeer {
				t.Helper()
				h := identity.Hello{Node: n, Store: ident.NewStoreID(), State: identity.Member, Cluster: identity.NewClusterID(), Boot: 1, Run: 1, RaftAddr: addrs[n]}
				d := fakeThat(t, refusal, h, addrs[1], nil)
				says(n, func(p transport.PeerStatus) bool { return strings.Contains(p.LastError, refusal) })
				return d
			}
			comes(2, foreign+": of 2").tr.Load().Close()
			says(2, func(p transport.PeerStatus) bool { return !strings.Contains(p.LastError, foreign) })
			comes(3, foreign+": of 3")
			time.Sleep(50 * time.Millisecond) // what was told is heard
			if len(s.fatal) > 0 {
				t.Fatalf("ended although node 2 is gone: %v", <-s.fatal)
			}
			comes(2, foreign+": of 2 again")
			time.Sleep(50 * time.Millisecond)
			if ends := len(s.fatal) > 0; ends == current {
				t.Errorf("all peers are strangers, the node ends: %v", ends)
			}
		})
	}
}

// TestFoundingNeedsEveryConsent holds correctness rule 20: while one founder does
// not hold the genesis, its proposer is no member.
func TestFoundingNeedsEveryConsent(t *testing.T) {
	mine, other, third := freeAddr(t), freeAddr(t), freeAddr(t)
	cfg := testConfig(t, map[string]string{"node.id": "1", "raft.listen": mine, "cluster.peers": "1@" + mine + ",2@" + other + ",3@" + third})
	b := &Broker{opt: Options{Config: cfg}, log: slog.New(slog.DiscardHandler), fs: vfs.NewCrashableMem()}
	ls, err := b.listenAgain()
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.open(ls)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		s.stop(t.Context())
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
	}()
	s.tr.Start()
	var consents atomic.Bool
	hello := identity.Hello{Node: 2, Store: ident.NewStoreID(), State: identity.Blank, PeersHash: s.boot.hash, Boot: 1, Run: 1, RaftAddr: other}
	d := fake(t, hello, mine, func(_ *fakePeer, _ context.Context, method string) ([]byte, error) {
		if method == methodPrepare && !consents.Load() {
			return nil, errors.New("the disk is full")
		}
		return nil, nil
	})
	hello.Node, hello.Store, hello.RaftAddr = 3, ident.NewStoreID(), third
	e := fake(t, hello, mine, func(*fakePeer, context.Context, string) ([]byte, error) { return nil, nil }) // with node 1 a majority
	<-d.up
	<-e.up
	eventually(t, 5*time.Second, "nodes 2 and 3 are live", func() error {
		if len(s.boot.situation().Live) < 2 {
			return errors.New("not yet")
		}
		return nil
	})
	sit := s.boot.situation()
	if err := s.boot.carryOut(t.Context(), sit, identity.Decide(sit)); err == nil || s.store.State() != identity.Prepared {
		t.Errorf("refused by node 2: %v, the store is %s", err, s.store.State())
	}
	consents.Store(true)
	sit = s.boot.situation()
	if err := s.boot.carryOut(t.Context(), sit, identity.Decide(sit)); err != nil || s.store.State() != identity.Member {
		t.Errorf("node 2 holds it: %v, the store is %s", err, s.store.State())
	}
}

// TestFoundersHearFromEachOther has a founding's proposer lose its disk when it had told only one of the others that
// every founder holds the genesis: that one tells the third, which would give the genesis up when the proposer comes
// back without its store, and the two founders' metadata group would have no majority for ever.
func TestFoundersHearFromEachOther(t *testing.T) {
	c := newTrio(t)
	g := c.prepare()
	c.start(2, 3)
	eventually(t, 10*time.Second, "2 and 3 have said Hello, prepared", func() error {
		if !c.b[2].session().tr.Connected(3) || !c.b[3].session().tr.Connected(2) {
			return errors.New("not yet")
		}
		return nil
	})
	if err := c.b[2].session().boot.serveCommit(g.Proposer, g.ClusterID); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "3 is a member", func() error {
		if st := c.b[3].session().store.State(); st != identity.Member {
			return fmt.Errorf("it is %s", st)
		}
		return nil
	})
	c.start(1)
	c.serving(1, 2, 3)
	if err := c.b[3].session().boot.serveCommit(ident.NewStoreID(), g.ClusterID); err == nil {
		t.Error("a store that is no founder commits the genesis")
	}
}

// prepare makes nodes that have never run hold one genesis, as if proposed by node 1, whose disk is then lost.
func (c *trio) prepare() *identity.Genesis {
	c.t.Helper()
	var stores []*identity.Store
	for i := 1; i <= 3; i++ {
		s, err := identity.OpenStore(c.fs[i], "/data", ident.NodeID(i))
		if err != nil {
			c.t.Fatal(err)
		}
		stores = append(stores, s)
	}
	g := &identity.Genesis{ClusterID: identity.NewClusterID(), Proposer: stores[0].ID(), Round: 1}
	for i, s := range stores {
		id := ident.NodeID(i + 1)
		g.Members = append(g.Members, identity.GenesisMember{Node: id, Store: s.ID(), MetaReplica: ident.ReplicaID(id), RaftAddr: c.cfg[id].Raft.Listen})
	}
	for i, s := range stores {
		log, err := raftlog.Open(raftlog.Options{FS: c.fs[i+1], Dir: "/data/raftlog", Store: s.ID(), Create: true, FileBytes: 1 << 20, MaxBytes: 8 << 20})
		if err != nil {
			c.t.Fatal(err)
		}
		if err := errors.Join(s.Prepare(g), log.Close(), s.Close()); err != nil {
			c.t.Fatal(err)
		}
	}
	c.fs[1] = vfs.NewCrashableMem()
	return g
}
