package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"chronik/internal/admin"
	"chronik/internal/broker"
	"chronik/internal/config"
	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/transport"
)

// node is a broker with its disk, running or not.
type node struct {
	w    *world
	id   int
	cfg  *config.Config
	disk *disk

	mu   sync.Mutex
	run  *run // nil: it does not run
	held int  // faults that keep it down
	// spoiled says that a fault damages its raftlog, which it may refuse then.
	spoiled bool

	// ahead is how far this node's date is ahead of the clock that all share, in nanoseconds. The fault date moves it.
	ahead atomic.Int64
}

// run is one process' life.
type run struct {
	b      *broker.Broker // set under mu; whoever has the run from its node may read it without
	frames *frames
	disk   *mount

	mu   sync.Mutex
	said *promises     // of the present session
	over bool          // it is dead: what it does is no news
	told bool          // to stop
	done chan struct{} // closed when it has ended
}

func (r *run) tell() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = true
}

func (r *run) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
}

func (r *run) ended() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

// groups returns the node's groups and their log, nil while it has none.
func (r *run) groups() (*raftgroup.Host, *raftlog.Log) {
	r.mu.Lock()
	b := r.b
	r.mu.Unlock()
	if b == nil {
		return nil, nil
	}
	return b.Groups()
}

// look has the node's quarantined replicas noted.
func (r *run) look() {
	r.mu.Lock()
	said := r.said
	r.mu.Unlock()
	if host, _ := r.groups(); host != nil && said != nil {
		said.look(host)
	}
}

func kafkaAddr(id int) string { return fmt.Sprintf("127.0.0.1:%d", 9000+id) }

func newNode(w *world, id, of int) *node {
	cfg := config.Default()
	for i := range of {
		cfg.Cluster.Peers = append(cfg.Cluster.Peers, config.Peer{ID: ident.NodeID(i + 1), Addr: fmt.Sprintf("127.0.0.1:%d", 9101+i)})
	}
	cfg.Node.ID, cfg.Node.DataDir = ident.NodeID(id), "data"
	cfg.Raft.Listen = cfg.Cluster.Peers[id-1].Addr
	cfg.Kafka.Listen, cfg.Admin.Listen = kafkaAddr(id), fmt.Sprintf("127.0.0.1:%d", 9200+id)
	cfg.Kafka.Advertised = cfg.Kafka.Listen
	cfg.Raft.ElectionTimeout, cfg.Raft.HeartbeatInterval = 500*time.Millisecond, 100*time.Millisecond
	// Small, so that checkpoints, trims, rolls and installs happen all the time.
	cfg.Snapshot.ThresholdEntries, cfg.Snapshot.KeepEntries, cfg.Snapshot.HoldBytes = 40, 0, 4<<10
	cfg.Raftlog.FileBytes, cfg.Raftlog.MaxBytes = logFileBytes, 1<<20
	cfg.Group.Partitions = 1
	cfg.Topic.AutoCreate = false
	n := &node{w: w, id: id, cfg: cfg}
	n.disk = &disk{w: w, node: id}
	n.disk.wipe()
	return n
}

// logFileBytes is a raftlog file's size.
const logFileBytes = 64 << 10

// start starts the node unless it runs or something keeps it down.
func (n *node) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.run != nil || n.held > 0 || n.w.over() {
		return
	}
	r := &run{done: make(chan struct{}), disk: n.disk.mount()}
	dead := func() error {
		if r.ended() {
			return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ENETDOWN}
		}
		return nil
	}
	b, err := broker.Start(context.Background(), broker.Options{
		Config: n.cfg, Log: n.w.opt.log.With("at", n.id), FS: r.disk, Version: "sim", Wall: n.wall,
		Net: broker.Net{
			Listen: func(addr string) (net.Listener, error) {
				if err := dead(); err != nil {
					return nil, err
				}
				return n.w.net.listen(n.id, addr)
			},
			Dial: func(ctx context.Context, addr string) (net.Conn, error) {
				if err := dead(); err != nil {
					return nil, err
				}
				return n.w.net.dial(ctx, n.id, addr)
			},
			Receive: func(h transport.Handler) transport.Handler {
				f := &frames{Handler: h, w: n.w, node: n.id}
				r.mu.Lock()
				r.frames = f
				r.mu.Unlock()
				return f
			},
			Send: func(s transport.Sender) transport.Sender {
				p := &promises{Sender: s, w: n.w, n: n, r: r, out: map[ident.ReplicaID]time.Time{}}
				r.mu.Lock()
				r.said = p
				r.mu.Unlock()
				return p
			},
		},
	})
	if err != nil {
		r.end()
		n.disk.unmount()
		n.w.net.kill(n.id)
		n.stopped(err)
		return
	}
	r.mu.Lock()
	r.b = b
	r.mu.Unlock()
	n.run = r
	n.w.say(fmt.Sprintf("node %d started", n.id))
	go n.watch(r)
}

// watch waits for the end of a run. One that ends by itself must have a reason that a fault gave it.
func (n *node) watch(r *run) {
	err := r.b.Wait(context.Background())
	close(r.done)
	r.mu.Lock()
	told := r.told || r.over
	r.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if told || n.run != r {
		return
	}
	r.end()
	n.run = nil
	n.disk.unmount()
	n.w.net.kill(n.id)
	n.stopped(err)
}

// stopped judges why a node does not run, and starts it again as a supervisor would. Caller holds n.mu.
func (n *node) stopped(err error) {
	n.w.say(fmt.Sprintf("node %d ended by itself", n.id), "err", err)
	n.w.count("ended", 1)
	switch {
	case n.spoiled && errors.Is(err, raftlog.ErrCorrupt):
		n.w.count("damaged raftlogs refused", 1)
		n.spoiled = false
		n.disk.wipe() // as the error's hint says
	case !n.mayEnd(err):
		n.w.fail("ends only with a reason", "node %d ended by itself: %v", n.id, err)
	}
	time.AfterFunc(time.Second, n.start)
}

func (n *node) setSpoiled(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.spoiled = on
}

// mayEnd tells whether err is one that a fault explains.
func (n *node) mayEnd(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, errPowerOff) || errors.Is(err, syscall.EIO) || err != nil && strings.Contains(err.Error(), "node id is taken")
}

// kill ends the node as kill -9 does (percent 100) or a power loss.
func (n *node) kill(percent int) {
	n.disk.cut(percent) // first: a node that is just starting holds the lock
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.run
	n.run = nil
	if r != nil {
		r.end()
	}
	n.w.net.kill(n.id)
	if r != nil {
		if r.frames != nil {
			r.frames.end()
		}
		r.b.Stop()
	}
}

// wall is the node's date.
func (n *node) wall() time.Time { return time.Now().Add(time.Duration(n.ahead.Load())) }

// stop stops the node cleanly.
func (n *node) stop() {
	n.mu.Lock()
	r := n.run
	n.mu.Unlock()
	if r == nil {
		return
	}
	r.mu.Lock()
	f := r.frames
	r.mu.Unlock()
	f.end()
	r.tell()
	r.b.Stop()
	<-r.done
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.run == r {
		r.end()
		n.run = nil
		n.disk.unmount()
		n.w.net.kill(n.id)
	}
}

// hold keeps the node down until release.
func (n *node) hold() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held++
}

func (n *node) release() {
	n.mu.Lock()
	n.held--
	n.mu.Unlock()
	n.start()
}

// source answers for the running node; nil: it does not run.
func (n *node) source() admin.Source {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.run == nil {
		return nil
	}
	return n.run.b.Source()
}

// current returns the run, nil if there is none.
func (n *node) current() *run {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.run
}

// readBack reads all that the node has of the topic: damage that nobody reads is a loss that nobody makes good,
// and the next one comes once this one is.
func (n *node) readBack() {
	src := n.source()
	if src == nil {
		return
	}
	for _, row := range src.Replicas().Replicas {
		if row.Topic == topic {
			_, _ = src.Digest(topic, row.Partition, row.LogStartOffset, row.HighWatermark) // the replica knows what it found
		}
	}
}

func (n *node) ready() error {
	src := n.source()
	if src == nil {
		return errors.New("down")
	}
	return src.Ready()
}

func (w *world) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}
