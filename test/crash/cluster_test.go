package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"chronik/internal/admin"
	"chronik/internal/broker"
	"chronik/internal/config"
	"chronik/internal/ident"
	"chronik/internal/vfs"
)

func TestMain(m *testing.M) {
	// The tests wait for elections more than for the processor.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

const (
	dataDir    = "data"
	topic      = "load"
	partitions = 3
	fileBytes  = 64 << 10 // of a raftlog file: small, so that files are sealed, freed and reused
	logBytes   = 1 << 20
	smallBytes = 8 << 10 // of a segment, if segments are to roll
	threshold  = 40      // entries after which a checkpoint is taken
)

// settle is how long a cluster may take to do what it is about to do.
const settle = 60 * time.Second

// cluster is three nodes of this process on memory disks, or one.
type cluster struct {
	t     testing.TB
	power *power
	disks []*disk
	cfgs  []*config.Config
	nodes []*broker.Broker // nil: stopped
	logs  *lines
	http  *http.Client
}

// lines collects the nodes' logs.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Ports are given out below the range that the system takes outgoing
// connections' from: a stopped node's ports stay free until it is started again. They also lie below
// those that test/harness takes, whose clusters run at the same time.
const (
	firstPort = 3_000
	lastPort  = 9_000
)

var ports = struct {
	sync.Mutex
	next int
}{next: firstPort + rand.IntN(lastPort-firstPort)}

func freeAddr(t testing.TB) string {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		ports.next++
		if ports.next > lastPort {
			ports.next = firstPort
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", ports.next))
		if err != nil {
			continue
		}
		addr := l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return addr
	}
	t.Fatal("no free port")
	return ""
}

// newCluster makes three nodes with empty disks that are not started. Tune may
// change each disk before anything is written to it.
func newCluster(t testing.TB, tune func(*disk)) *cluster { return newClusterOf(t, 3, tune) }

// newClusterOf makes n nodes; one alone needs no peers.
func newClusterOf(t testing.TB, n int, tune func(*disk)) *cluster {
	t.Helper()
	p := &power{}
	c := &cluster{t: t, power: p, logs: &lines{}, nodes: make([]*broker.Broker, n), http: &http.Client{Timeout: 5 * time.Second}}
	var peers []config.Peer
	for i := range n {
		d := newDisk(vfs.NewCrashableMem(), p)
		if tune != nil {
			tune(d)
		}
		c.disks = append(c.disks, d)
		peers = append(peers, config.Peer{ID: ident.NodeID(i + 1), Addr: freeAddr(t)})
	}
	for i := range n {
		c.cfgs = append(c.cfgs, nodeConfig(t, i, peers))
	}
	t.Cleanup(c.close)
	return c
}

func nodeConfig(t testing.TB, i int, peers []config.Peer) *config.Config {
	cfg := config.Default()
	cfg.Node.ID, cfg.Node.DataDir = peers[i].ID, dataDir
	cfg.Cluster.Peers = peers
	cfg.Raft.Listen = peers[i].Addr
	cfg.Kafka.Listen, cfg.Admin.Listen = freeAddr(t), freeAddr(t)
	cfg.Kafka.Advertised = cfg.Kafka.Listen
	cfg.Raft.ElectionTimeout, cfg.Raft.HeartbeatInterval = 400*time.Millisecond, 40*time.Millisecond
	cfg.Snapshot.ThresholdEntries, cfg.Snapshot.KeepEntries, cfg.Snapshot.HoldBytes = threshold, 0, 4<<10
	cfg.Raftlog.FileBytes, cfg.Raftlog.MaxBytes = fileBytes, logBytes
	cfg.Group.Partitions = 1
	cfg.Topic.AutoCreate = false
	return cfg
}

// start starts node i (from 0) on its disk.
func (c *cluster) start(i int) {
	c.t.Helper()
	log := slog.New(slog.NewTextHandler(c.logs, nil)).With("at", i+1)
	b, err := broker.Start(context.Background(), broker.Options{Config: c.cfgs[i], Log: log, FS: c.disks[i]})
	if err != nil {
		c.t.Fatalf("node %d: %v", i+1, err)
	}
	c.nodes[i] = b
}

func (c *cluster) startAll() {
	c.t.Helper()
	for i := range c.nodes {
		c.start(i)
	}
	c.ready()
}

// ready waits until every running node says that it is.
func (c *cluster) ready() {
	c.t.Helper()
	for i, b := range c.nodes {
		if b != nil {
			c.eventually(fmt.Sprintf("node %d is ready", i+1), func() error { return c.get(i, "/readyz", nil) })
		}
	}
}

// stop stops nodes i at once and waits.
func (c *cluster) stop(nodes ...int) {
	c.t.Helper()
	for _, i := range nodes {
		if b := c.nodes[i]; b != nil {
			b.Stop()
		}
	}
	for _, i := range nodes {
		if b := c.nodes[i]; b != nil {
			if err := b.Wait(context.Background()); err != nil {
				c.t.Errorf("node %d stopped: %v", i+1, err)
			}
			c.disks[i].late.Wait()
		}
		c.nodes[i] = nil
	}
}

func (c *cluster) stopAll() {
	c.t.Helper()
	for i := range c.nodes {
		defer c.stop(i) // each waits for itself
		if b := c.nodes[i]; b != nil {
			b.Stop()
		}
	}
}

func (c *cluster) close() {
	c.stopAll()
	c.http.CloseIdleConnections()
	if c.t.Failed() {
		logs := c.logs.String()
		if keep := os.Getenv("CHRONIK_TEST_KEEP"); keep != "" {
			_ = os.WriteFile(keep+"/"+strings.ReplaceAll(c.t.Name(), "/", "_")+".log", []byte(logs), 0o644) // for people
		}
		c.t.Logf("node logs end with:\n%s", logs[max(0, len(logs)-12_000):])
	}
}

// replace gives the stopped nodes other disks.
func (c *cluster) replace(left []*vfs.MemFS) {
	for i, mem := range left {
		c.disks[i] = newDisk(mem, c.power)
	}
}

// get asks node i's admin address.
func (c *cluster) get(i int, path string, into any) error {
	resp, err := c.http.Get("http://" + c.cfgs[i].Admin.Listen + path)
	return answered(path, resp, err, into)
}

// post is get of what changes something.
func (c *cluster) post(i int, path string, into any) error {
	resp, err := c.http.Post("http://"+c.cfgs[i].Admin.Listen+path, "", nil)
	return answered(path, resp, err, into)
}

func answered(path string, resp *http.Response, err error, into any) error {
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, bytes.TrimSpace(body))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

// replica returns node i's replica of partition p.
func (c *cluster) replica(i int, p int32) (admin.Replica, error) {
	var rs admin.Replicas
	if err := c.get(i, "/v1/replicas", &rs); err != nil {
		return admin.Replica{}, err
	}
	for _, r := range rs.Replicas {
		if r.Topic == topic && r.Partition == p {
			return r, nil
		}
	}
	return admin.Replica{}, fmt.Errorf("node %d has no replica of %s-%d", i+1, topic, p)
}

// eventually asks every 10 ms until f returns nil.
func (c *cluster) eventually(what string, f func() error) {
	c.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(settle); ; {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("not in %v: %s: %v", settle, what, err)
		}
		<-tick.C
	}
}

// client connects to every node.
func (c *cluster) client(opts ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	var addrs []string
	for _, cfg := range c.cfgs {
		addrs = append(addrs, cfg.Kafka.Listen)
	}
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(addrs...), kgo.MetadataMinAge(20 * time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }),
	}, opts...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return cl
}

// createTopic makes the topic, with small segments if they are to roll.
func (c *cluster) createTopic(roll bool) {
	c.t.Helper()
	cl := c.client()
	defer cl.Close()
	settings := map[string]*string{}
	least := uint64(2) // the entries of a partition that is led: a seed, the leader's empty one
	if roll {
		size := fmt.Sprint(smallBytes)
		settings["segment.bytes"] = &size
		least++ // the settings, which the leader proposes when it next looks
	}
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	c.eventually("topic is made", func() error {
		res, err := kadm.NewClient(cl).CreateTopic(ctx, partitions, int16(len(c.nodes)), settings, topic)
		if err == nil {
			err = res.Err
		}
		if errors.Is(err, kerr.TopicAlreadyExists) {
			return nil
		}
		return err
	})
	c.eventually("its partitions are led", func() error {
		for i := range c.nodes {
			for p := range int32(partitions) {
				if r, err := c.replica(i, p); err != nil || r.AppliedIndex < least {
					return errors.Join(fmt.Errorf("node %d: partition %d has applied %d of %d", i+1, p, r.AppliedIndex, least), err)
				}
			}
		}
		return nil
	})
	c.ready()
}

// segments counts the topic's segment files on node i's disk.
func (c *cluster) segments(i int) (n int) {
	c.t.Helper()
	mem := c.disks[i].mem
	root := dataDir + "/replicas"
	for _, dir := range c.list(mem, root) {
		for _, gen := range c.list(mem, path.Join(root, dir)) {
			for _, name := range c.list(mem, path.Join(root, dir, gen)) {
				if strings.HasSuffix(name, ".seg") {
					n++
				}
			}
		}
	}
	return n
}

func (c *cluster) list(fs vfs.FS, dir string) []string {
	c.t.Helper()
	names, err := vfs.List(fs, dir)
	if err != nil {
		c.t.Fatal(err)
	}
	return names
}

// digestsEqual compares what the nodes have of the topic's partitions, of which the highest ends are known.
func (c *cluster) digestsEqual(ends [partitions]int64) {
	c.t.Helper()
	for p, to := range ends {
		c.eventually("digests are equal", func() error {
			var first admin.Digest
			for i := range c.nodes {
				var d admin.Digest
				if err := c.get(i, fmt.Sprintf("/v1/digest?topic=%s&partition=%d", topic, p), &d); err != nil {
					return err
				}
				if d.To != to {
					return fmt.Errorf("node %d: %s-%d ends at %d, want %d", i+1, topic, p, d.To, to)
				}
				if i == 0 {
					first = d
				} else if d != first {
					return fmt.Errorf("%s-%d differs: %+v on node %d, %+v on node 1", topic, p, d, i+1, first)
				}
			}
			return nil
		})
	}
}
