package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/record"
)

const day = 24 * time.Hour

// date is a node's wall clock: the real one, ahead by so much.
type date struct{ ahead atomic.Int64 }

func (d *date) now() time.Time        { return time.Now().Add(time.Duration(d.ahead.Load())) }
func (d *date) step(by time.Duration) { d.ahead.Add(int64(by)) }

// clocks is a trio whose nodes disagree about the date.
type clocks struct {
	*trio
	date   [4]date
	groups map[string]ident.GroupID // by topic, each of one partition
}

// partition is a topic's serving side on a node.
func (c *clocks) partition(node int, topic string) *partition.Partition {
	return c.b[node].session().registry.partition(c.groups[topic])
}

// create makes a topic of one partition on all nodes.
func (c *clocks) create(name string, configs map[string]string) {
	c.t.Helper()
	s := c.b[1].session()
	nt := metadata.NewTopic{Name: name, ID: metadata.TopicID{byte(len(c.groups) + 1)}, Configs: configs, Assignments: [][]ident.NodeID{{1, 2, 3}}}
	res, err := s.submit(c.t.Context(), &metadata.CreateTopics{Topics: []metadata.NewTopic{nt}})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := res.(*metadata.CreateTopicsResult).Topics[0].Err; err != nil {
		c.t.Fatal(err)
	}
	c.groups[name] = s.meta.Image().TopicPartition(name, 0).Group
}

// lead has a node lead everything.
func (c *clocks) lead(node int) {
	c.t.Helper()
	for topic, g := range c.groups {
		eventually(c.t, 20*time.Second, fmt.Sprintf("node %d leads %s", node, topic), func() error {
			heir := c.b[node].session().host.Replica(g)
			switch {
			case heir == nil:
				return errors.New("no replica")
			case heir.IsLeader():
				return nil
			}
			for i := 1; i <= 3; i++ {
				if r := c.b[i].session().host.Replica(g); r != nil && r.IsLeader() {
					r.TransferLeadership(heir.ID())
				}
			}
			return errors.New("another leads")
		})
	}
}

// agree waits until all nodes have applied the same of all topics but one, which is written to all the time.
func (c *clocks) agree(but string) {
	c.t.Helper()
	for topic, g := range c.groups {
		if topic == but {
			continue
		}
		eventually(c.t, 20*time.Second, "equal replicas of "+topic, func() error {
			var seen [4]string
			for i := 1; i <= 3; i++ {
				if co := c.b[i].session().registry.coordinator(g); co != nil {
					st := co.Stats()
					seen[i] = fmt.Sprint(st.Groups, st.Offsets)
					continue
				}
				p := c.partition(i, topic)
				if p == nil {
					return fmt.Errorf("node %d has none", i)
				}
				d, err := p.Digest(-1, -1)
				if err != nil {
					return err
				}
				seen[i] = fmt.Sprintf("%+v %+v", d, p.Stats())
			}
			if seen[1] != seen[2] || seen[1] != seen[3] {
				return fmt.Errorf("%q", seen)
			}
			return nil
		})
	}
}

// sequence is an idempotent producer that repeats itself.
type sequence struct {
	n     int32
	batch [][]byte
}

// write appends one more batch through the leader, and then the last five again: they are known.
func (q *sequence) write(t *testing.T, p *partition.Partition) {
	t.Helper()
	var b record.Builder
	b.SetProducer(1<<40, 0, q.n)
	b.Append(record.Record{Timestamp: time.Now().UnixMilli(), Value: fmt.Append(nil, q.n)})
	batch, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if at, err := put(p, batch); err != nil || at != int64(q.n) {
		t.Fatalf("batch %d: offset %d, %v", q.n, at, err)
	}
	q.n++
	q.batch = append(q.batch, batch)
	q.repeat(t, p)
}

func (q *sequence) repeat(t *testing.T, p *partition.Partition) {
	t.Helper()
	for i := max(0, len(q.batch)-5); i < len(q.batch); i++ {
		if at, err := put(p, q.batch[i]); !errors.Is(err, partition.ErrDuplicateSequence) || at != int64(i) {
			t.Fatalf("batch %d again: offset %d, %v", i, at, err)
		}
	}
}

func put(p *partition.Partition, batch []byte) (int64, error) {
	done := make(chan partition.AppendResult, 1)
	p.Append(batch, partition.AppendOptions{Acks: -1, Timeout: 10 * time.Second, MinISR: 2}, func(r partition.AppendResult) { done <- r })
	r := <-done
	return r.BaseOffset, r.Err
}

// TestClocksDifferAndStep: the nodes' dates lie days apart and step forwards and back, and everything is led by one node
// after the other. Producers go on, offsets stay, replicas stay equal. What goes by the date goes by the leader's.
func TestClocksDifferAndStep(t *testing.T) {
	c := &clocks{trio: newTrio(t), groups: map[string]ident.GroupID{}}
	for i := 1; i <= 3; i++ {
		c.date[i].step(time.Duration(i-2) * 2 * day)
		c.wall[i] = c.date[i].now
	}
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	anyTime := fmt.Sprint((1000 * day).Milliseconds())
	c.create("t", map[string]string{"message.timestamp.after.max.ms": anyTime})
	c.create("repeated", nil)
	c.create("stamped", map[string]string{"message.timestamp.type": "LogAppendTime", "retention.ms": fmt.Sprint((3 * day).Milliseconds())})
	c.create("strict", nil)
	cl := client(t, c.cfg[2], kgo.DefaultProduceTopic("strict"))
	adm := kadm.NewClient(cl)
	commit := func(group string, at int64) {
		t.Helper()
		var os kadm.Offsets
		os.Add(kadm.Offset{Topic: "t", At: at, LeaderEpoch: -1})
		eventually(t, 20*time.Second, "a commit", func() error { return adm.CommitAllOffsets(t.Context(), group, os) })
	}
	commit("once", 1)
	for g := range c.b[2].session().meta.Image().Groups() {
		if g.Topic == metadata.OffsetsTopic { // the one shard
			c.groups[g.Topic] = g.Group
		}
	}

	stop := c.goOn()
	var q sequence
	stamped := int64(0)
	for k, leg := range []struct {
		leader  int
		step    time.Duration // of its clock, before it leads
		leading time.Duration // and once it leads
		drops   bool          // it finds what was stamped too old
		refuses bool          // it finds records of now too new
	}{
		{leader: 1, refuses: true},
		{leader: 3, drops: true},
		{leader: 3, leading: 30 * time.Hour},
		{leader: 2, leading: -5 * time.Hour, refuses: true},
		{leader: 1, step: 7 * time.Hour, leading: 3 * day},
		{leader: 3, step: -3 * time.Hour, leading: -6 * day, refuses: true},
		{leader: 2, step: 9 * time.Hour},
	} {
		d := &c.date[leg.leader]
		d.step(leg.step)
		c.lead(leg.leader)
		p := c.partition(leg.leader, "repeated")
		q.repeat(t, p)
		d.step(leg.leading)
		q.write(t, p)

		commit("often", int64(k))
		for group, want := range map[string]int64{"once": 1, "often": int64(k)} {
			var got kadm.OffsetResponses
			eventually(t, 20*time.Second, "the offsets", func() (err error) { // the coordinator may be changing still
				got, err = adm.FetchOffsets(t.Context(), group)
				return err
			})
			if o, _ := got.Lookup("t", 0); o.At != want {
				t.Fatalf("leg %d: offset %d of group %s, want %d", k, o.At, group, want)
			}
		}

		s := c.b[leg.leader].session()
		s.retain(s.meta.Image())
		start := int64(0)
		if leg.drops {
			start = stamped
		}
		eventually(t, 10*time.Second, "retention", func() error {
			if got := c.partition(leg.leader, "stamped").LogStartOffset(); leg.drops && got != start {
				return fmt.Errorf("leg %d: log start %d, want %d", k, got, start)
			}
			return nil
		})
		for _, topic := range []string{"t", "repeated"} {
			if got := c.partition(leg.leader, topic).LogStartOffset(); got != 0 {
				t.Fatalf("leg %d: %s begins at %d: it is kept for a week", k, topic, got)
			}
		}

		before := d.now()
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "stamped"}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		read, err := c.partition(leg.leader, "stamped").Read(stamped, 1)
		if err != nil {
			t.Fatal(err)
		}
		h, err := record.Header(read.Data)
		if err != nil || h.MaxTimestamp() < before.UnixMilli() || h.MaxTimestamp() > d.now().UnixMilli() {
			t.Fatalf("leg %d: stamped %v by a clock at %v: %v", k, time.UnixMilli(h.MaxTimestamp()), before, err)
		}
		stamped++
		err = cl.ProduceSync(t.Context(), kgo.StringRecord("of now")).FirstErr()
		if leg.refuses != errors.Is(err, kerr.InvalidTimestamp) || !leg.refuses && err != nil {
			t.Fatalf("leg %d: a record of now: %v", k, err)
		}
		c.agree("t")
	}
	n := stop()
	c.agree("")
	c.whole(n)
}

// goOn has an idempotent client write to topic t until it is stopped, which returns how much it wrote.
func (c *clocks) goOn() (stop func() int) {
	cl := client(c.t, c.cfg[1], kgo.DefaultProduceTopic("t"), kgo.StopProducerOnDataLossDetected())
	var wg sync.WaitGroup
	var n int
	ctx, cancel := context.WithCancel(c.t.Context())
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := cl.ProduceSync(c.t.Context(), kgo.StringRecord(fmt.Sprint(n))).FirstErr(); err != nil {
				if c.t.Context().Err() == nil { // else the test has failed
					c.t.Errorf("record %d: %v", n, err)
				}
				return
			}
			n++
		}
	})
	stop = func() int { cancel(); wg.Wait(); return n }
	c.t.Cleanup(func() { stop() })
	return stop
}

// whole reads topic t: each record is where it was acknowledged, once.
func (c *clocks) whole(n int) {
	c.t.Helper()
	cl := client(c.t, c.cfg[1], kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	if end := c.partition(1, "t").HighWatermark(); end != int64(n) || n == 0 {
		c.t.Fatalf("%d records, %d were acknowledged", end, n)
	}
	for i := 0; i < n; {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			c.t.Fatal(err)
		}
		for _, r := range fs.Records() {
			if string(r.Value) != fmt.Sprint(i) || r.Offset != int64(i) {
				c.t.Fatalf("%q at offset %d, want %d", r.Value, r.Offset, i)
			}
			i++
		}
	}
}
