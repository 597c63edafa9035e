package recovery

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/archive"
	"chronik/internal/bucket"
	"chronik/internal/format"
	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

const archived = "AbCdEfGhIjKlMnOpQrStUv" // the lost cluster

type pinned struct {
	s  *snapshot.Server
	id uint64
}

func (p pinned) ReadPinned(ctx context.Context, file string, b []byte, off int64) error {
	return p.s.ReadPinned(ctx, p.id, file, b, off)
}

// upload brings the checkpoints of a stopped node into the bucket, those of which want says yes.
func upload(t *testing.T, disk vfs.FS, b bucket.Bucket, want func(raftgroup.Spec) bool) {
	t.Helper()
	log := must(raftlog.Open(raftlog.Options{FS: disk, Dir: path.Join(testDir, "raftlog"), Store: identityOf(t, disk).Store, MaxBytes: 1 << 40}))
	server := snapshot.NewServer(snapshot.ServerOptions{FS: disk})
	cl := must(archive.New(b).Cluster(archived))
	replicas := path.Join(testDir, "replicas")
	img := metadata.NewStore()
	for _, m := range raftgroup.Survey(disk, replicas, log) {
		if !want(m.Spec) {
			continue
		}
		gens := must(snapshot.Generations(disk, raftgroup.ReplicaDir(replicas, m.Spec)))
		pin := must(server.Pin(m.Spec.Group, m.Spec.Replica, gens[len(gens)-1].Dir, 0))
		man, _, err := server.Manifest(t.Context(), pin.ID)
		noErr(t, err)
		info := archive.Info{
			Name: m.Spec.Name, Topic: m.Spec.Topic, Partition: m.Spec.Partition, Key: m.Spec.Key, Kind: m.Spec.Kind,
			Index: pin.Point.Index, Term: pin.Point.Term, Node: 1, LogStartOffset: -1, NextOffset: -1,
		}
		if m.Spec.Kind == metadata.KindMeta {
			_, blob, err := snapshot.Read(disk, gens[len(gens)-1].Dir)
			noErr(t, err)
			must(metadata.Open(img)(disk, "", blob, nil))
		} else if topic := img.Image().Topic(m.Spec.Topic); topic != nil {
			info.TopicID = topic.ID.String()
		} else if m.Spec.Kind == metadata.KindTopic {
			info.TopicID = topicOf(t, m.Spec).String()
		}
		claim := must(cl.Claim(t.Context(), m.Spec.Group, m.Term+3, 1, archive.WriteOptions{}))
		must(claim.Upload(t.Context(), info, man, pinned{server, pin.ID}))
		server.Unpin(pin.ID)
	}
	noErr(t, errors.Join(server.Close(), log.Close()))
}

// topicOf reads the topic's id out of a directory name.
func topicOf(t *testing.T, spec raftgroup.Spec) (id metadata.TopicID) {
	t.Helper()
	digits, _, _ := strings.Cut(spec.Key, "-")
	if n := copy(id[:], must(hex.DecodeString(digits))); n != len(id) {
		t.Fatalf("key %s", spec.Key)
	}
	return id
}

func everything(raftgroup.Spec) bool { return true }

func restore(t *testing.T, disk vfs.FS, b bucket.Bucket, dry bool) (*Report, error) {
	t.Helper()
	return Restore(t.Context(), RestoreOptions{FS: disk, Archive: archive.New(b), Dir: testDir, Node: 1, DryRun: dry})
}

func rowOf(t *testing.T, rep *Report, group string) Group {
	t.Helper()
	for _, g := range rep.Groups {
		if g.Group == group {
			return g
		}
	}
	t.Fatalf("no %s in %+v", group, rep.Groups)
	return Group{}
}

// serves runs the restored node and checks its records and the committed offset.
func serves(t *testing.T, disk vfs.FS, records, committed int64) {
	t.Helper()
	cl, stop := node(t, disk)
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r := cl.ProduceSync(ctx, kgo.StringRecord("new"))
	noErr(t, r.FirstErr())
	if r[0].Record.Offset != records {
		t.Fatalf("the next record has offset %d, want %d", r[0].Record.Offset, records)
	}
	o, ok := must(kadm.NewClient(cl).FetchOffsets(ctx, "g")).Lookup("orders", 0)
	if got := o.At; ok != (committed >= 0) || ok && got != committed {
		t.Fatalf("committed offset %+v", o)
	}
	read := must(kgo.NewClient(kgo.SeedBrokers(kadmSeed(cl)), kgo.ConsumeTopics("orders"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())))
	defer read.Close()
	for n := int64(0); n <= records; {
		fs := read.PollFetches(ctx)
		noErr(t, fs.Err())
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset != n || n < records && !strings.HasPrefix(string(r.Value), fmt.Sprintf("%d ", n)) {
				t.Fatalf("record %d at %d is %.20q", n, r.Offset, r.Value)
			}
			n++
		})
	}
}

// TestRestore: a lost node's archive becomes a new cluster with the same records and offsets.
func TestRestore(t *testing.T) {
	old, records := survivor(t, true)
	b := bucket.NewMem()
	upload(t, old, b, everything)
	disk := vfs.NewCrashableMem()
	dry, err := restore(t, disk, b, true)
	noErr(t, err)
	if _, err := disk.Stat(testDir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the dry run made a directory: %v", err)
	}
	rep, err := restore(t, disk, b, false)
	noErr(t, err)
	if rep.OldCluster != archived || rep.NewCluster == archived || rep.Count(Kept) != 4 || len(rep.Groups) != 4 || len(rep.Notes) > 0 {
		t.Fatalf("%+v", rep)
	}
	for i, g := range rep.Groups {
		if d := dry.Groups[i]; d.Group != g.Group || d.Outcome != g.Outcome || d.ToIndex != g.ToIndex || d.NewTerm != g.NewTerm || d.NewReplica != g.NewReplica {
			t.Fatalf("made %+v, the dry run said %+v", g, d)
		}
		if g.NewTerm <= g.Term {
			t.Fatalf("%+v", g)
		}
	}
	disk = disk.CrashClone(vfs.CrashCloneCfg{})
	holds(t, disk, rep.NewCluster, records)
	serves(t, disk, records, 150)
	if _, err := restore(t, disk, b, false); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Fatalf("restored over a node's data: %v", err)
	}
}

// TestRestoreAsAnotherNode: a node that the old cluster did not have takes the seats.
func TestRestoreAsAnotherNode(t *testing.T) {
	old, records := survivor(t, true)
	b := bucket.NewMem()
	upload(t, old, b, everything)
	disk := vfs.NewCrashableMem()
	rep := must(Restore(t.Context(), RestoreOptions{FS: disk, Archive: archive.New(b), Dir: testDir, Node: 9}))
	if rep.Node != 9 || !slices.Equal(rep.Nodes, []int32{1}) || rep.Count(Kept) != 4 {
		t.Fatalf("%+v", rep)
	}
	cl, stop := nodeWith(t, disk, "node.id", "9")
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r := cl.ProduceSync(ctx, kgo.StringRecord("new"))
	noErr(t, r.FirstErr())
	if r[0].Record.Offset != records {
		t.Fatalf("the next record has offset %d, want %d", r[0].Record.Offset, records)
	}
}

// TestRestoreWithoutATopicsSnapshot: the metadata names it, so it begins anew.
func TestRestoreWithoutATopicsSnapshot(t *testing.T) {
	old, _ := survivor(t, true)
	b := bucket.NewMem()
	upload(t, old, b, func(s raftgroup.Spec) bool { return s.Kind != metadata.KindTopic })
	disk := vfs.NewCrashableMem()
	rep, err := restore(t, disk, b, false)
	noErr(t, err)
	if g := rowOf(t, rep, "orders-0"); g.Outcome != Lost || g.NextOffset != 0 || len(g.Notes) != 1 || rep.Count(Kept) != 3 {
		t.Fatalf("%+v", g)
	}
	serves(t, disk, 0, 150)
}

// TestRestoreOfOlderMetadata: what was created after the metadata's snapshot is put back.
func TestRestoreOfOlderMetadata(t *testing.T) {
	first := vfs.NewCrashableMem()
	cl, stop := node(t, first)
	must(kadm.NewClient(cl).ListBrokers(t.Context())) // it serves: it has registered
	stop()
	b := bucket.NewMem()
	upload(t, first, b, func(s raftgroup.Spec) bool { return s.Kind == metadata.KindMeta })
	old, records := survivor(t, true)
	upload(t, old, b, func(s raftgroup.Spec) bool { return s.Kind != metadata.KindMeta })
	disk := vfs.NewCrashableMem()
	rep, err := restore(t, disk, b, false)
	noErr(t, err)
	if g := rowOf(t, rep, "orders-0"); g.Outcome != Kept || g.NextOffset != records || len(g.Notes) != 1 || !strings.Contains(g.Notes[0], "put back") {
		t.Fatalf("%+v", g)
	}
	if rep.Count(Kept) != 4 {
		t.Fatalf("%+v", rep)
	}
	serves(t, disk, records, 150)
}

// TestRestoreFallsBack: a damaged newest snapshot is passed over for the one before, and named.
func TestRestoreFallsBack(t *testing.T) {
	old, _ := survivor(t, true)
	b := bucket.NewMem()
	upload(t, old, b, everything)
	before := b.Names("")
	cl, stop := node(t, old)
	r := cl.ProduceSync(t.Context(), kgo.StringRecord("1 more"))
	noErr(t, r.FirstErr())
	records := r[0].Record.Offset
	stop()
	upload(t, old, b, func(s raftgroup.Spec) bool { return s.Kind == metadata.KindTopic })
	var fresh []string
	for _, name := range b.Names("") {
		if !slices.Contains(before, name) && strings.Contains(name, "/objects/") {
			fresh = append(fresh, name)
		}
	}
	if len(fresh) == 0 {
		t.Fatal("the second upload sent nothing")
	}
	for _, name := range fresh {
		b.Flip(name, 3)
	}
	disk := vfs.NewCrashableMem()
	rep, err := restore(t, disk, b, false)
	noErr(t, err)
	if g := rowOf(t, rep, "orders-0"); g.Outcome != Kept || g.NextOffset != records || len(g.Notes) != 1 || !strings.Contains(g.Notes[0], "cannot be used") || !strings.Contains(g.Notes[0], "/objects/") {
		t.Fatalf("%+v", g)
	}
	for _, name := range fresh { // gone altogether: seen without reading
		b.Lose(name)
	}
	dry, err := restore(t, vfs.NewCrashableMem(), b, true)
	noErr(t, err)
	if g := rowOf(t, dry, "orders-0"); g.Outcome != Kept || g.ToIndex != rowOf(t, rep, "orders-0").ToIndex || len(g.Notes) != 1 {
		t.Fatalf("%+v", g)
	}
}

// TestRestoreOfANewerRelease: a snapshot that a newer release wrote is not damaged, and no older one stands for it.
func TestRestoreOfANewerRelease(t *testing.T) {
	old, _ := survivor(t, true)
	b := bucket.NewMem()
	upload(t, old, b, everything)
	before := b.Names("")
	cl, stop := node(t, old)
	noErr(t, cl.ProduceSync(t.Context(), kgo.StringRecord("1 more")).FirstErr())
	stop()
	upload(t, old, b, func(s raftgroup.Spec) bool { return s.Kind == metadata.KindTopic })
	newer := 0
	for _, name := range b.Names("") {
		if m := bytes.Clone(b.Bytes(name)); !slices.Contains(before, name) && bytes.HasPrefix(m, []byte("chronarc")) {
			m[8]++ // the version, behind the magic
			noErr(t, b.Put(t.Context(), name, m))
			newer++
		}
	}
	if newer == 0 {
		t.Fatal("the second upload wrote no manifest")
	}
	if _, err := restore(t, vfs.NewCrashableMem(), b, false); !errors.Is(err, format.ErrNewer) {
		t.Fatalf("restored: %v", err)
	}
}

// TestRestoreGoesOnAboveEveryTerm that a leader had, also one whose snapshot cannot be read or who uploaded none:
// clients drop what has a lower leader epoch than they have seen.
func TestRestoreGoesOnAboveEveryTerm(t *testing.T) {
	old, _ := survivor(t, true)
	b := bucket.NewMem()
	upload(t, old, b, everything)
	const last = 5000
	cl := must(archive.New(b).Cluster(archived))
	for _, g := range must(cl.Groups(t.Context())) {
		must(cl.Claim(t.Context(), g, last, 1, archive.WriteOptions{}))
	}
	check := func(outcome Outcome) {
		t.Helper()
		for _, dry := range []bool{true, false} {
			rep := must(restore(t, vfs.NewCrashableMem(), b, dry))
			if g := rowOf(t, rep, "orders-0"); g.Outcome != outcome {
				t.Fatalf("%+v", g)
			}
			for _, g := range rep.Groups {
				if g.NewTerm != last+raftgroup.SalvageTerms {
					t.Errorf("%s begins in term %d, dry %v", g.Group, g.NewTerm, dry)
				}
			}
		}
	}
	check(Kept)
	for _, name := range b.Names("") {
		if strings.Contains(name, "/manifests/") && !strings.Contains(name, "/groups/1/") {
			b.Flip(name, 3)
		}
	}
	check(Damaged)
}

// TestRestoreCrash cuts the power at every point: then nothing is there, or it waits to be finished, or it is done.
func TestRestoreCrash(t *testing.T) {
	old, records := survivor(t, true)
	b := bucket.NewMem()
	upload(t, old, b, everything)
	for _, percent := range []int{0, 50, 100} {
		disk := vfs.NewCrashableMem()
		rng := rand.New(rand.NewPCG(3, uint64(percent)))
		type crash struct {
			point string
			disk  *vfs.MemFS
		}
		var crashes []crash
		seen := map[string]int{}
		invariant.SetPointHook(func(point string) {
			if seen[point]++; seen[point] > 3 {
				return // each group passes the same points
			}
			crashes = append(crashes, crash{point, disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})})
		})
		_, err := restore(t, disk, b, false)
		invariant.SetPointHook(nil)
		noErr(t, err)
		crashes = append(crashes, crash{"done", disk.CrashClone(vfs.CrashCloneCfg{})})
		for _, c := range crashes {
			rep, err := restore(t, c.disk, b, false)
			if want := map[bool]string{true: "is not empty"}[c.point == "done" || c.point == "recovery.adopted"]; want != "" {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("%d%%, crash at %s: %v", percent, c.point, err)
				}
			} else if err != nil {
				t.Fatalf("%d%%, crash at %s: %v", percent, c.point, err)
			} else if mustBe(c.point) == "under way" != rep.Resumed && mustBe(c.point) != "" {
				t.Fatalf("%d%%, crash at %s: resumed %v", percent, c.point, rep.Resumed)
			}
			now := c.disk.CrashClone(vfs.CrashCloneCfg{})
			holds(t, now, identityOf(t, now).Cluster, records)
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	old, _ := survivor(t, true)
	full := bucket.NewMem()
	upload(t, old, full, everything)
	noMeta := bucket.NewMem()
	upload(t, old, noMeta, func(s raftgroup.Spec) bool { return s.Kind == metadata.KindTopic })
	two := bucket.NewMem()
	upload(t, old, two, everything)
	noErr(t, two.Put(t.Context(), "other/groups/1/terms/x", []byte("x")))
	down := bucket.NewMem()
	upload(t, old, down, everything)
	broken := errors.New("no route to host")
	down.Fault(func(bucket.Op, string) error { return broken })
	used := vfs.NewCrashableMem()
	noErr(t, vfs.MkdirAllSync(used, path.Join(testDir, "photos")))
	for _, tc := range []struct {
		name string
		b    bucket.Bucket
		disk vfs.FS
		node ident.NodeID
		from string
		want string
	}{
		{"an empty archive", bucket.NewMem(), nil, 1, "", "holds no snapshots"},
		{"no metadata", noMeta, nil, 1, "", "has no metadata"},
		{"two clusters", two, nil, 1, "", "holds 2 clusters"},
		{"a cluster that is not there", full, nil, 1, "absent", "no cluster absent"},
		{"no node id", full, nil, 0, "", "whose data directory"},
		{"a directory in use", full, used, 1, "", "holds photos"},
		{"a store that does not answer", down, nil, 1, "", "no route to host"},
	} {
		for _, dry := range []bool{true, false} {
			disk := tc.disk
			if disk == nil {
				disk = vfs.NewCrashableMem()
			}
			_, err := Restore(t.Context(), RestoreOptions{FS: disk, Archive: archive.New(tc.b), From: tc.from, Dir: testDir, Node: tc.node, DryRun: dry})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s (dry %v): %v, want %q", tc.name, dry, err, tc.want)
			}
			if _, err := disk.Stat(path.Join(testDir, "store.id")); err == nil {
				t.Errorf("%s: a store was made", tc.name)
			}
		}
	}
}
