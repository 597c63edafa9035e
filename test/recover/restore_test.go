package recover

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/archive"
	"chronik/internal/bucket"
	"chronik/internal/identity"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/recovery"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
	"chronik/test/harness"
)

type pinned struct {
	s  *snapshot.Server
	id uint64
}

func (p pinned) ReadPinned(ctx context.Context, file string, b []byte, off int64) error {
	return p.s.ReadPinned(ctx, p.id, file, b, off)
}

// keep brings every checkpoint of a stopped node into the object store at url, as leaders do while they run.
func keep(t *testing.T, dir, url string, topics kadm.TopicDetails) {
	t.Helper()
	hold := must(identity.Hold(vfs.Default, dir))
	id := must(hold.Identity())
	log := must(raftlog.Open(raftlog.Options{Dir: filepath.Join(dir, "raftlog"), Store: id.Store, MaxBytes: 1 << 40}))
	server := snapshot.NewServer(snapshot.ServerOptions{FS: vfs.Default})
	defer func() {
		noErr(t, server.Close())
		noErr(t, log.Close())
		noErr(t, hold.Close())
	}()
	cl := must(archive.New(must(bucket.Open(url, bucket.Options{}))).Cluster(id.Cluster))
	replicas := filepath.Join(dir, "replicas")
	for _, m := range raftgroup.Survey(vfs.Default, replicas, log) {
		gens := must(snapshot.Generations(vfs.Default, raftgroup.ReplicaDir(replicas, m.Spec)))
		pin := must(server.Pin(m.Spec.Group, m.Spec.Replica, gens[len(gens)-1].Dir, 0))
		man, _, err := server.Manifest(t.Context(), pin.ID)
		noErr(t, err)
		claim := must(cl.Claim(t.Context(), m.Spec.Group, m.Term, 1, archive.WriteOptions{}))
		must(claim.Upload(t.Context(), archive.Info{
			Name: m.Spec.Name, Topic: m.Spec.Topic, TopicID: topics[m.Spec.Topic].ID.String(), Partition: m.Spec.Partition, Key: m.Spec.Key,
			Kind: m.Spec.Kind, Index: pin.Point.Index, Term: pin.Point.Term, Node: id.Node, LogStartOffset: -1, NextOffset: -1,
		}, man, pinned{server, pin.ID}))
		server.Unpin(pin.ID)
	}
}

// TestEveryDiskLost: of three nodes only an object store is left. Restored and started,
// node 1 has every partition up to its snapshot; the others join and are equal.
func TestEveryDiskLost(t *testing.T) {
	c := harness.Start(t, harness.Options{Threshold: 50})
	c.CreateTopic("orders", 2)
	cl := c.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	produce(t, cl, "orders", 0, 0, 230)
	produce(t, cl, "orders", 1, 0, 20)
	adm := kadm.NewClient(cl)
	offsets := kadm.Offsets{}
	offsets.AddOffset("orders", 0, 77, -1)
	noErr(t, must(adm.CommitOffsets(t.Context(), "g", offsets)).Error())
	topics := must(adm.ListTopics(t.Context()))
	c.Eventually(20*time.Second, "node 1 has all", func() error { return c.DigestsEqual("orders", 0, 230) })
	c.Stop(1) // its checkpoints are as new as its log
	url := "file://" + filepath.Join(c.Dir, "bucket")
	keep(t, c.Node(1).Dir, url, topics)
	c.Kill(2)
	c.Kill(3)
	for id := 1; id <= 3; id++ {
		c.Wipe(id)
	}
	noErr(t, os.RemoveAll(c.Node(1).Dir))
	args := []string{"restore", "--from", url, "--node-id", "1", "--data-dir", c.Node(1).Dir}
	text := must(c.CLI(append(args, "--dry-run")...))
	if !strings.Contains(text, "orders-0") || !strings.Contains(text, "nothing was changed") {
		t.Errorf("dry run:\n%s", text)
	}
	rep := &recovery.Report{}
	noErr(t, json.Unmarshal([]byte(must(c.CLI(append(args, "--json")...))), rep))
	if rep.Count(recovery.Kept) != len(rep.Groups) || row(t, rep, "orders-0").NextOffset != 230 || row(t, rep, "orders-1").NextOffset != 20 {
		t.Errorf("%+v", rep)
	}
	for id := 1; id <= 3; id++ {
		c.Restart(id)
	}
	c.Eventually(60*time.Second, "the others have joined", func() error { return full(c) })
	expect(t, c, "orders", 0, 230)
	cl = c.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	produce(t, cl, "orders", 0, 230, 240)
	produce(t, cl, "orders", 1, 20, 30)
	_ = must(c.CLI("verify", "orders"))
	if o, ok := must(adm.FetchOffsets(t.Context(), "g")).Lookup("orders", 0); !ok || o.At != 77 {
		t.Errorf("committed offset %+v", o)
	}
}
