package metadata

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"chronik/internal/alloctest"
	"chronik/internal/format"
	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

func TestGenesisOnceAndFirst(t *testing.T) {
	m := newMeta(t)
	if r := m.do(registration(1, 1, 0)); !errors.Is(r.Err, ErrNoCluster) {
		t.Fatalf("register before genesis: %v", r.Err)
	}
	g := &Genesis{ClusterID: "c", Members: GenesisMembers(map[ident.NodeID]ident.StoreID{1: storeID(1)}), Coordinators: 1}
	m.must(g)
	if r := m.do(g); !errors.Is(r.Err, ErrClusterExists) {
		t.Fatalf("second genesis: %v", r.Err)
	}
	if got := m.img().Meta.Founders; len(got) != 1 || got[0].Replica != 1 {
		t.Fatalf("founders %v", got)
	}
	for name, bad := range map[string]*Genesis{
		"no members": {ClusterID: "c", Coordinators: 1},
		"no voter":   {ClusterID: "c", Coordinators: 1, Members: []GenesisMember{{Node: 1, Store: storeID(1), Replica: 1, Learner: true}}},
		"twice": {ClusterID: "c", Coordinators: 1, Members: []GenesisMember{
			{Node: 1, Store: storeID(1), Replica: 1}, {Node: 2, Store: storeID(2), Replica: 1},
		}},
		"no coordinators": {ClusterID: "c", Members: g.Members},
	} {
		if r := newMeta(t).do(bad); !errors.Is(r.Err, ErrBadCommand) {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
}

func TestRefusedCommandChangesNothing(t *testing.T) {
	m := cluster(t, 3)
	m.topic("a", 2, 3)
	before := encoded(t, m.img())
	v := "x"
	for _, c := range []Command{
		&CreateTopics{Topics: []NewTopic{{Name: "b", ID: topicID(90), Partitions: 1, ReplicationFactor: 4}}},
		&CreateTopics{Topics: []NewTopic{{Name: "b", ID: topicID(90), Assignments: [][]ident.NodeID{{1, 1}}}}},
		&CreatePartitions{Topics: []MorePartitions{{Name: "a", Count: 2}}},
		&DeleteTopics{Topics: []TopicRef{{Name: "zz"}}},
		&AlterConfigs{Resources: []AlterResource{{Type: ResourceTopic, Name: "a", Ops: []ConfigAlterOp{{Name: "retention.ms", Value: &v}}}}},
		&AlterConfigs{Resources: []AlterResource{{Type: ResourceBroker, Name: "9"}}},
		&AllocateProducerIDs{Node: 9},
		&ReplaceReplica{Group: 99, Replica: 1},
		&ReplaceReplica{Group: 2, Replica: 99},
		&ReportMembership{Group: 2, Generation: 7, Voters: []ident.ReplicaID{1}},
		&SwapMetaVoter{Generation: 99},
		&RetireBroker{Node: 1},
		&RetireBroker{Node: 9},
		registration(1, 9, 8),
	} {
		m.do(c)
		after := encoded(t, m.img())
		after = bytes.Replace(after, fmt.Appendf(nil, `"index":%d`, m.index), fmt.Appendf(nil, `"index":%d`, m.index-1), 1)
		if !bytes.Equal(before, after) {
			t.Fatalf("%s %+v changed the image:\n%s\n%s", c.Kind(), c, before, after)
		}
		before = encoded(t, m.img())
	}
}

func TestUndecodableEntryIsRefusedLikeAnyOther(t *testing.T) {
	m := cluster(t, 1)
	res, err := m.sm.Apply([]raftgroup.Entry{{Index: m.index + 1, Data: []byte(`{"t":7}`)}})
	if err != nil {
		t.Fatal(err)
	}
	if r := res[0].(*Reply); !errors.Is(r.Err, ErrBadCommand) || m.img().Index != m.index+1 {
		t.Fatalf("%v at %d", r.Err, m.img().Index)
	}
}

// TestNewerCommandStopsTheReplica: what a newer release proposed is applied by those
// who know it. One who does not must not go on with another Image.
func TestNewerCommandStopsTheReplica(t *testing.T) {
	for _, data := range []string{`{"t":"nonsense"}`, `{"t":"drain_broker","c":{"node":1,"draining":true,"gently":true}}`} {
		m := cluster(t, 1)
		before := encoded(t, m.img())
		_, err := m.sm.Apply([]raftgroup.Entry{{Index: m.index + 1, Data: []byte(data)}})
		if !errors.Is(err, format.ErrNewer) {
			t.Errorf("%s: %v", data, err)
		}
		if !bytes.Equal(before, encoded(t, m.img())) {
			t.Errorf("%s changed the image", data)
		}
	}
	b := encoded(t, cluster(t, 1).img())
	newer := bytes.Replace(b, []byte(`"version":1`), []byte(`"version":2`), 1)
	if _, err := ReadImage(bytes.NewReader(newer)); !errors.Is(err, format.ErrNewer) {
		t.Errorf("a snapshot of version 2: %v", err)
	}
}

// commands draws commands that mostly make sense for the current image.
func drawCommand(t *rapid.T, img *Image, seq *int) Command {
	*seq++
	node := ident.NodeID(rapid.IntRange(1, 6).Draw(t, "node"))
	name := rapid.SampledFrom([]string{"a", "b", "c.d", "c_d", "e"}).Draw(t, "topic")
	groups := slices.Collect(img.Groups())
	group := func() *Partition { return groups[rapid.IntRange(0, len(groups)-1).Draw(t, "group")] }
	replica := func(p *Partition) ident.ReplicaID {
		return p.Replicas[rapid.IntRange(0, len(p.Replicas)-1).Draw(t, "replica")].ID
	}
	switch rapid.IntRange(0, 11).Draw(t, "kind") {
	case 0, 1:
		c := registration(int(node), rapid.IntRange(1, 20).Draw(t, "store"), 0)
		c.Previous = img.StoreOf(node)
		c.Rack = rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "rack")
		return c
	case 2, 3:
		return &CreateTopics{Topics: []NewTopic{{
			Name: name, ID: topicID(*seq), Partitions: rapid.Int32Range(0, 5).Draw(t, "partitions"),
			ReplicationFactor: int16(rapid.IntRange(0, 4).Draw(t, "rf")), ClampReplication: rapid.Bool().Draw(t, "clamp"),
			Configs: map[string]string{"retention.ms": "5", "cleanup.policy": "compact"},
		}}}
	case 4:
		return &CreatePartitions{Topics: []MorePartitions{{Name: name, Count: rapid.Int32Range(1, 8).Draw(t, "count")}}}
	case 5:
		return &DeleteTopics{Topics: []TopicRef{{Name: name}}}
	case 6:
		v := rapid.SampledFrom([]string{"1", "compact", "x"}).Draw(t, "value")
		return &AlterConfigs{Resources: []AlterResource{
			{Type: ResourceTopic, Name: name, Ops: []ConfigAlterOp{{Name: "cleanup.policy", Op: ConfigOp(rapid.IntRange(0, 4).Draw(t, "op")), Value: &v}}},
			{Type: ResourceBroker, Name: rapid.SampledFrom([]string{"", "1", "7"}).Draw(t, "broker"), Ops: []ConfigAlterOp{{Name: "log.retention.ms", Value: &v}}},
		}}
	case 7:
		return &AllocateProducerIDs{Node: node}
	case 8:
		return &CreateCoordinators{ReplicationFactor: 3}
	case 9:
		p := group()
		return &ReplaceReplica{Group: p.Group, Replica: replica(p), Node: node, Move: rapid.Bool().Draw(t, "move")}
	case 10:
		p := group()
		var voters []ident.ReplicaID
		for _, r := range p.Replicas {
			if r.Joining || p.successor(r.ID) == nil {
				voters = append(voters, r.ID)
			}
		}
		return &ReportMembership{Group: p.Group, Generation: p.Generation, Voters: voters}
	default:
		if rapid.Bool().Draw(t, "retire") {
			return &RetireBroker{Node: node}
		}
		return &SwapMetaVoter{Generation: img.Meta.Generation, Dead: replica(img.Meta), With: replica(img.Meta)}
	}
}

// Any history gives the same bytes however it is batched, also when it goes on
// from a snapshot, and every index of the image agrees with every other.
func TestApplyIsDeterministic(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := cluster(t, 4)
		prefix := encoded(t, m.img())
		var entries []raftgroup.Entry
		seq := 0
		for range rapid.IntRange(1, 40).Draw(rt, "commands") {
			c := drawCommand(rt, m.img(), &seq)
			b, err := Encode(c)
			if err != nil {
				rt.Fatal(err)
			}
			m.do(c)
			entries = append(entries, raftgroup.Entry{Index: m.index, Data: b})
			checkImage(rt, m.img())
		}
		want := encoded(t, m.img())

		other := newMeta(t)
		if err := other.sm.Install("g2", prefix); err != nil {
			rt.Fatal(err)
		}
		for len(entries) > 0 {
			n := rapid.IntRange(1, len(entries)).Draw(rt, "batch")
			if _, err := other.sm.Apply(entries[:n]); err != nil {
				rt.Fatal(err)
			}
			entries = entries[n:]
		}
		if got := encoded(t, other.img()); !bytes.Equal(got, want) {
			rt.Fatalf("one by one:\n%s\nin batches from a snapshot:\n%s", want, got)
		}
	})
}

type fataler interface{ Fatalf(string, ...any) }

// checkImage checks that the image's indexes agree and that ids are unique.
func checkImage(t fataler, img *Image) {
	seen := map[ident.ReplicaID]bool{}
	onNodes := 0
	for p := range img.Groups() {
		for _, r := range p.Replicas {
			if seen[r.ID] || r.ID >= img.NextReplica {
				t.Fatalf("%s: replica id %d twice or never given", p.Name(), r.ID)
			}
			seen[r.ID] = true
			if r.Replaces != 0 && (!r.Joining || p.Replica(r.Replaces) == nil) {
				t.Fatalf("%s: %+v replaces nobody", p.Name(), r)
			}
		}
		for _, id := range p.Removing {
			if p.Replica(id) != nil {
				t.Fatalf("%s: %d is wanted and to be removed", p.Name(), id)
			}
		}
		onNodes += len(p.Replicas)
		if p.Group >= img.NextGroup {
			t.Fatalf("%s: group id %d never given", p.Name(), p.Group)
		}
	}
	indexed := 0
	for _, k := range img.tree.byNode.all() {
		_ = k
		indexed++
	}
	if indexed != onNodes {
		t.Fatalf("%d replicas by node, %d in groups", indexed, onNodes)
	}
	groups := 1 + len(img.Coordinators)
	for tp := range img.Topics() {
		if img.TopicByID(tp.ID) != tp {
			t.Fatalf("topic %s by id differs", tp.Name)
		}
		for i, p := range tp.Partitions {
			if img.Partition(p.Group) != p || int(p.Partition) != i {
				t.Fatalf("%s is not the group's", p.Name())
			}
		}
		groups += len(tp.Partitions)
	}
	if groups != img.GroupCount() {
		t.Fatalf("%d groups by owner, %d by id", groups, img.GroupCount())
	}
	if img.Meta != img.Partition(ident.MetaGroup) {
		t.Fatalf("Meta is not group 1")
	}
}

func TestPublishedImageNeverChanges(t *testing.T) {
	m := cluster(t, 3)
	m.topic("a", 3, 3)
	old := m.img()
	before := encoded(t, old)
	m.must(registration(2, 22, 2))
	m.must(&CreatePartitions{Topics: []MorePartitions{{Name: "a", Count: 9}}})
	m.must(&DeleteTopics{Topics: []TopicRef{{Name: "a"}}})
	m.topic("a", 1, 1)
	old.DryRun(&DeleteTopics{Topics: []TopicRef{{Name: "a"}}})
	if !bytes.Equal(before, encoded(t, old)) {
		t.Fatal("an image changed after it was published")
	}
}

func TestSnapshotOfTenThousandPartitions(t *testing.T) {
	m := cluster(t, 5)
	start := time.Now()
	m.topic("big", 10_000, 3)
	took := time.Since(start)
	start = time.Now()
	b := encoded(t, m.img())
	wrote := time.Since(start)
	start = time.Now()
	img, err := ReadImage(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	read := time.Since(start)
	if !bytes.Equal(b, encoded(t, img)) {
		t.Fatal("the image read back differs")
	}
	checkImage(t, img)
	start = time.Now()
	res := m.must(registration(3, 33, 3)).(*RegisterResult)
	if res.Lost < 5_000 {
		t.Fatalf("only %d replicas lost", res.Lost)
	}
	t.Logf("create %v, write %v (%d bytes), read %v, lose a store %v", took, wrote, len(b), read, time.Since(start))
	if took+wrote+read+time.Since(start) > time.Minute {
		t.Fatal("far too slow")
	}
}

func TestReadImageRefuses(t *testing.T) {
	m := cluster(t, 3)
	m.topic("a", 2, 3)
	m.must(&CreateCoordinators{ReplicationFactor: 3})
	good := string(encoded(t, m.img()))
	lines := strings.SplitAfter(strings.TrimSuffix(good, "\n"), "\n")
	without := func(i int) string {
		return strings.Join(slices.Delete(slices.Clone(lines), i, i+1), "")
	}
	for name, bad := range map[string]string{
		"empty":         "",
		"no end":        without(len(lines) - 1),
		"a line lost":   without(2),
		"version":       strings.Replace(good, `"version":1`, `"version":2`, 1),
		"format":        strings.Replace(good, "chronik-metadata", "chronik-other", 1),
		"unknown field": strings.Replace(good, `"broker":`, `"brokers":`, 1),
		"id not given":  strings.Replace(good, `"next_replica":`, `"next_replica":1,"x":`, 1),
		"behind":        good + "{}\n",
	} {
		if _, err := ReadImage(strings.NewReader(bad)); !errors.Is(err, ErrCorruptImage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadImage(strings.NewReader(good)); err != nil {
		t.Fatal(err)
	}
}

// TestUnreadableImageDoesNotOpen: a replica whose image cannot be read does not open, as an empty one least of all, and
// what was known stays ("never" 7).
func TestUnreadableImageDoesNotOpen(t *testing.T) {
	m := cluster(t, 3)
	m.topic("a", 2, 3)
	good := encoded(t, m.img())
	bad := good[:len(good)/2]
	store := NewStore()
	if sm, err := Open(store)(nil, "g1", bad, nil); !errors.Is(err, ErrCorruptImage) {
		t.Errorf("opened %v, %v", sm, err)
	}
	before := m.img()
	if err := m.sm.Install("g2", bad); !errors.Is(err, ErrCorruptImage) {
		t.Errorf("installed: %v", err)
	}
	if m.img() != before || m.sm.Image() != before || store.Image().Index != 0 {
		t.Error("an image changed")
	}
}

func FuzzReadImage(f *testing.F) {
	m := cluster(f, 3)
	m.topic("a", 2, 3)
	m.must(&CreateCoordinators{ReplicationFactor: 3})
	m.must(registration(2, 22, 2))
	f.Add(encoded(f, m.img()))
	f.Add(encoded(f, emptyImage()))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		img, err := ReadImage(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := ReadImage(bytes.NewReader(encoded(t, img)))
		if err != nil {
			t.Fatalf("cannot read back: %v", err)
		}
		if !bytes.Equal(encoded(t, img), encoded(t, again)) {
			t.Fatal("differs when read back")
		}
	})
}

func FuzzDecodeCommand(f *testing.F) {
	v := "compact"
	for _, c := range []Command{
		&Genesis{ClusterID: "c", Members: []GenesisMember{{Node: 1, Store: storeID(1), Replica: 1}}, Coordinators: 1},
		registration(1, 2, 1),
		&CreateTopics{Topics: []NewTopic{{Name: "a", ID: topicID(1), Assignments: [][]ident.NodeID{{1, 2}}, Configs: map[string]string{"x": "y"}}}},
		&CreatePartitions{Topics: []MorePartitions{{Name: "a", Count: 3}}},
		&DeleteTopics{Topics: []TopicRef{{ID: topicID(4)}}},
		&AlterConfigs{Resources: []AlterResource{{Type: ResourceTopic, Name: "a", Ops: []ConfigAlterOp{{Name: "cleanup.policy", Value: &v}}}}},
		&AllocateProducerIDs{Node: 1}, &CreateCoordinators{ReplicationFactor: 3},
		&ReplaceReplica{Group: 2, Replica: 3, Node: 1, Move: true}, &SwapMetaVoter{1, 2, 3},
		&ReportMembership{Group: 2, Generation: 3, Voters: []ident.ReplicaID{1}}, &RetireBroker{1}, &DrainBroker{1, true},
	} {
		b, err := Encode(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		c, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrBadCommand) && !errors.Is(err, format.ErrNewer) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		m := cluster(t, 3)
		m.topic("a", 1, 2)
		m.do(c)
		checkImage(t, m.img())
		again, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(again); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRepliesSurviveForwarding(t *testing.T) {
	m := cluster(t, 3)
	for _, c := range []Command{
		registration(1, 1, 0),
		&CreateTopics{Topics: []NewTopic{{Name: "a", ID: topicID(1), Partitions: 1, ReplicationFactor: 1}, {Name: "b"}}},
		&AllocateProducerIDs{Node: 1},
		&AllocateProducerIDs{Node: 9},
		&DeleteTopics{Topics: []TopicRef{{Name: "a"}}},
		&DrainBroker{Node: 1, Draining: true},
		&CreateCoordinators{ReplicationFactor: 1},
	} {
		r := m.do(c)
		b, err := EncodeReply(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeReply(c.Kind(), b)
		if err != nil {
			t.Fatal(err)
		}
		if r.Err != nil && (!errors.Is(got.Err, r.Err) || codeOf(got.Err) != codeOf(r.Err)) {
			t.Errorf("%s: error %v became %v", c.Kind(), r.Err, got.Err)
		}
		if got.Index != r.Index || fmt.Sprintf("%#v", got.Result) == "" || (got.Result == nil) != (r.Result == nil) {
			t.Errorf("%s: %+v became %+v", c.Kind(), r, got)
		}
		b2, err := EncodeReply(got)
		if err != nil || !bytes.Equal(b, b2) {
			t.Errorf("%s: %s became %s (%v)", c.Kind(), b, b2, err)
		}
	}
	b, err := EncodeReply(&Reply{Err: errors.New("boom")})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeReply("retire_broker", b); err != nil || got.Err == nil || codeOf(got.Err) != -1 {
		t.Fatalf("%+v %v", got, err)
	}
	if codeOf(ErrTopicExists.with("x")) != 36 || !errors.Is(ErrTopicExists.with("x"), ErrTopicExists) || errors.Is(ErrTopicExists, ErrUnknownTopic) {
		t.Fatal("error codes")
	}
}
