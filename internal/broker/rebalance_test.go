package broker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
	"chronik/internal/ident"
	"chronik/internal/metadata"
)

// uneven makes topic t of nine partitions on nodes 1 and 2, and returns their groups.
func uneven(t *testing.T, s *session) []ident.GroupID {
	t.Helper()
	nt := metadata.NewTopic{Name: "t", ID: metadata.TopicID{7}}
	for range 9 {
		nt.Assignments = append(nt.Assignments, []ident.NodeID{1, 2})
	}
	res, err := s.submit(t.Context(), &metadata.CreateTopics{Topics: []metadata.NewTopic{nt}})
	if err != nil {
		t.Fatal(err)
	}
	if err := res.(*metadata.CreateTopicsResult).Topics[0].Err; err != nil {
		t.Fatal(err)
	}
	var groups []ident.GroupID
	for _, p := range s.meta.Image().Topic("t").Partitions {
		groups = append(groups, p.Group)
	}
	return groups
}

// TestRebalanceMovesReplicas: nine partitions with two replicas each on nodes 1 and 2 are
// evened out over three nodes. Those that move lead, and hand over first; no record is lost.
func TestRebalanceMovesReplicas(t *testing.T) {
	c := newTrio(t)
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	s := c.b[1].session()
	groups := uneven(t, s)
	cl := client(t, c.cfg[1], kgo.RecordPartitioner(kgo.ManualPartitioner()))
	spreadRecords(t, cl, 0)
	records := 1
	dry, err := (view{c.b[2]}).Rebalance(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if len(dry.Planned) != 6 || len(dry.Begun)+len(dry.UnderWay)+len(dry.Unreachable) != 0 {
		t.Fatalf("%+v", dry)
	}
	if moves := metadata.MovesUnderWay(s.meta.Image()); len(moves) != 0 {
		t.Fatalf("a dry run has begun %+v", moves)
	}
	leadByMovers(t, c, dry.Planned)
	var begun []admin.Move
	eventually(t, 60*time.Second, "all is moved", func() error {
		got, err := (view{c.b[3]}).Rebalance(t.Context(), false)
		if err != nil {
			return err
		}
		begun = append(begun, got.Begun...)
		for _, m := range got.Begun {
			p := c.b[3].session().meta.Image().Partition(ident.GroupID(m.GroupID))
			if r := p.Replica(ident.ReplicaID(m.ReplicaID)); r != nil && r.Lost {
				t.Fatalf("%s: a replica that moves counts as lost", m.Group)
			}
		}
		spreadRecords(t, cl, records) // each is acknowledged, and in its place, whatever moves
		records++
		if len(got.UnderWay)+len(got.Planned) > 0 {
			return fmt.Errorf("%d under way, %d planned", len(got.UnderWay), len(got.Planned))
		}
		return nil
	})
	if fmt.Sprint(begun) != fmt.Sprint(dry.Planned) {
		t.Errorf("begun %+v, planned %+v", begun, dry.Planned)
	}
	if n := c.logged.of("handed over leadership of a replica that moves"); n < len(begun) {
		t.Errorf("%d of %d leaders were handed over", n, len(begun))
	}
	for i := 1; i <= 3; i++ {
		eventually(t, 20*time.Second, fmt.Sprintf("node %d has six", i), func() error { return holds(c.b[i].session(), groups, 6) })
	}
	for _, g := range groups {
		eventually(t, 20*time.Second, "equal replicas", func() error { return equal(c, g, records) })
	}
}

// leadByMovers has the replicas that are to move lead.
func leadByMovers(t *testing.T, c *trio, moves []admin.Move) {
	t.Helper()
	for _, m := range moves {
		g, id := ident.GroupID(m.GroupID), ident.ReplicaID(m.ReplicaID)
		eventually(t, 20*time.Second, m.Group+" is led by who moves", func() error {
			if r := c.b[m.From].session().host.Replica(g); r != nil && r.IsLeader() {
				return nil
			}
			for i := 1; i <= 3; i++ {
				if r := c.b[i].session().host.Replica(g); r != nil && r.IsLeader() {
					r.TransferLeadership(id)
				}
			}
			return errors.New("another leads")
		})
	}
}

// spreadRecords writes record i into each of the nine partitions.
func spreadRecords(t *testing.T, cl *kgo.Client, i int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var rs []*kgo.Record
	for p := range int32(9) {
		rs = append(rs, &kgo.Record{Topic: "t", Partition: p, Value: fmt.Append(nil, i)})
	}
	if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		if r.Offset != int64(i) {
			t.Fatalf("record %d of partition %d got offset %d", i, r.Partition, r.Offset)
		}
	}
}

// holds returns nil if the node has n replicas of groups.
func holds(s *session, groups []ident.GroupID, n int) error {
	got := 0
	for _, g := range groups {
		if s.host.Replica(g) != nil {
			got++
		}
	}
	if got != n {
		return fmt.Errorf("%d replicas", got)
	}
	return nil
}

// equal returns nil if two nodes have the group, with the same records.
func equal(c *trio, g ident.GroupID, records int) error {
	var seen []string
	for i := 1; i <= 3; i++ {
		p := c.b[i].session().registry.partition(g)
		if p == nil {
			continue
		}
		d, err := p.Digest(0, p.HighWatermark())
		if err != nil {
			return err
		}
		seen = append(seen, d.SHA256)
		if d.Records != int64(records) {
			return fmt.Errorf("node %d: %d records", i, d.Records)
		}
	}
	if len(seen) != 2 || seen[0] != seen[1] {
		return fmt.Errorf("group %d: %v", g, seen)
	}
	return nil
}

// TestRebalanceWithoutMetadata: a node that cannot read the metadata says that it may later.
func TestRebalanceWithoutMetadata(t *testing.T) {
	c := newTrio(t)
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	c.stop(2, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := (view{c.b[1]}).Rebalance(ctx, false); !errors.Is(err, admin.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

func TestHeir(t *testing.T) {
	st := metadata.GroupStatus{
		Voters: []ident.ReplicaID{1, 2, 3}, Commit: 1000,
		Progress: map[ident.ReplicaID]metadata.Progress{1: {Match: 1010, Active: true}, 2: {Match: 900, Active: true}, 3: {Match: 1000, Active: true}, 4: {Match: 1010, Active: true}},
	}
	out := metadata.Step{Kind: metadata.StepChangeVoters, Add: []metadata.Replica{{ID: 4}}, Remove: []ident.ReplicaID{1}}
	far := map[ident.ReplicaID]metadata.Progress{1: {Match: 1010, Active: true}, 2: {Match: 700, Active: true}, 3: {Match: 1000}}
	halted := map[ident.ReplicaID]metadata.Progress{1: {Match: 1010, Active: true}, 2: {Match: 900, Active: true}, 3: {Match: 1000, Active: true, Halted: true}}
	for name, c := range map[string]struct {
		leader ident.ReplicaID
		step   metadata.Step
		st     metadata.GroupStatus
		want   ident.ReplicaID
	}{
		"the most advanced":   {1, out, st, 3},
		"another goes":        {2, out, st, 0},
		"only a learner goes": {1, metadata.Step{Kind: metadata.StepRemoveLearner, Remove: []ident.ReplicaID{1}}, st, 0},
		"all far or away":     {1, out, metadata.GroupStatus{Voters: st.Voters, Commit: 1000, Progress: far}, 0},
		"one that is halted":  {1, out, metadata.GroupStatus{Voters: st.Voters, Commit: 1000, Progress: halted}, 2},
		"alone":               {1, out, metadata.GroupStatus{Voters: []ident.ReplicaID{1}, Commit: 1000, Progress: st.Progress}, 0},
	} {
		if got := heirOf(c.leader, c.step, c.st); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
