package raftgroup

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// nullMachine applies nothing: the benchmark measures this package.
type nullMachine struct{ *MemoryStateMachine }

func (nullMachine) Apply(es []Entry) ([]Result, error) { return make([]Result, len(es)), nil }

// benchNode is a node of real time over a memory disk.
type benchNode struct {
	*recorder
	info  transport.PeerInfo
	host  *Host
	ready chan struct{}
}

func (n *benchNode) Hello() []byte { b, _ := json.Marshal(n.info); return b }
func (n *benchNode) AcceptHello(b []byte) (p transport.PeerInfo, err error) {
	return p, json.Unmarshal(b, &p)
}
func (n *benchNode) Refused(ident.NodeID, string) {}
func (n *benchNode) Frame(p transport.PeerInfo, _ transport.Class, f []byte) {
	<-n.ready
	_ = n.host.HandleFrame(p, f)
}

func (n *benchNode) Call(context.Context, transport.PeerInfo, string, []byte) ([]byte, error) {
	return nil, context.Canceled
}
func (n *benchNode) PeerUp(p transport.PeerInfo)             { <-n.ready; n.host.PeerUp(p) }
func (n *benchNode) PeerDown(p ident.NodeID)                 { <-n.ready; n.host.PeerDown(p) }
func (n *benchNode) Saw(ident.NodeID, ident.StoreID, uint64) {}

type countdown struct {
	sem chan struct{}
	wg  *sync.WaitGroup
	b   *testing.B
}

func (c countdown) Applied(_ ident.Index, _ ident.Term, _ Result, err error) {
	if err != nil {
		c.b.Error(err)
	}
	<-c.sem
	c.wg.Done()
}

// BenchmarkPropose: three replicas over memory disks, by number of groups and
// bytes an entry; 1,000 proposals in flight.
func BenchmarkPropose(b *testing.B) {
	for _, groups := range []int{1, 100} {
		for _, size := range []int{100, 16 << 10} {
			b.Run(fmt.Sprintf("groups=%d/bytes=%d", groups, size), func(b *testing.B) { benchPropose(b, groups, size) })
		}
	}
}

func benchPropose(b *testing.B, groups, size int) {
	net := transport.NewNetwork(transport.NetworkOptions{Seed: 1})
	defer net.Close()
	var nodes []*benchNode
	for i := range 3 {
		id := ident.NodeID(i + 1)
		n := &benchNode{recorder: newRecorder(), info: transport.PeerInfo{Node: id, Store: storeOf(id, 0)}, ready: make(chan struct{})}
		fs := vfs.NewCrashableMem()
		must(b, fs.MkdirAll("/d", 0o755))
		log, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "/d/log", Store: n.info.Store, Create: true})
		must(b, err)
		srv := snapshot.NewServer(snapshot.ServerOptions{FS: fs})
		n.host, err = NewHost(Options{
			Node: id, Store: n.info.Store, FS: fs, Dir: "/d/r", Log: log, Sender: net.Join(id, n), Server: srv,
			Receiver: snapshot.NewReceiver(snapshot.ReceiverOptions{FS: fs}), Events: n, Logger: slog.New(slog.DiscardHandler),
		})
		must(b, err)
		close(n.ready)
		must(b, n.host.OpenAll(func(Spec) OpenFunc {
			return func(fs vfs.FS, d string, blob []byte, f []CaptureFile) (StateMachine, error) {
				sm, err := OpenMemory(fs, d, nil, f)
				return nullMachine{sm.(*MemoryStateMachine)}, err
			}
		}))
		nodes = append(nodes, n)
		defer func() {
			must(b, n.host.Stop(b.Context()))
			must(b, srv.Close())
			must(b, log.Close())
		}()
	}
	leaders := benchGroups(b, nodes, groups)
	data := make([]byte, size)
	sem := make(chan struct{}, 1000)
	var wg sync.WaitGroup
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		sem <- struct{}{}
		wg.Add(1)
		leaders[i%len(leaders)].Propose(data, ProposeOptions{}, countdown{sem, &wg, b})
	}
	wg.Wait()
	b.StopTimer()
}

func benchGroups(b *testing.B, nodes []*benchNode, groups int) []*Replica {
	for g := range groups {
		ms := members(3)
		for i := range ms {
			ms[i].Replica = ident.ReplicaID(1000 + 3*g + i)
		}
		for i, n := range nodes {
			s := specFor(ms[i], ms)
			s.Group, s.Key = ident.GroupID(100+g), fmt.Sprintf("g-%d", g)
			must(b, n.host.Create([]Spec{s}))
			n.host.Start(s.Group)
		}
	}
	for {
		var out []*Replica
		for _, n := range nodes {
			for _, r := range n.host.Replicas() {
				if r.IsLeader() {
					out = append(out, r)
				}
			}
		}
		if len(out) == groups {
			return out
		}
		time.Sleep(20 * time.Millisecond)
	}
}
