package crash

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/vfs"
)

// moment is what was left of three disks, and what was acknowledged before.
type moment struct {
	what    string
	percent int
	left    []*vfs.MemFS
	acks    []acked
}

// album collects moments: of each kind a few.
type album struct {
	c *cluster
	l *load

	mu      sync.Mutex
	most    int // of a kind
	taken   map[string]int
	moments []moment
}

// percents of unsynced data that survive, by turns.
var percents = []int{0, 50, 100}

// take cuts the power if the kind is still wanted.
func (a *album) take(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taken[what] >= a.most {
		return
	}
	a.taken[what]++
	m := moment{what: what, percent: percents[len(a.moments)%len(percents)], acks: a.l.sofar()}
	m.left = a.c.power.cut(a.c.disks, m.percent)
	a.moments = append(a.moments, m)
}

// watch takes moments at the durable steps of node i.
func (a *album) watch(i int) {
	fn := func(s step) {
		if what := stepOf(s); what != "" {
			a.take(what)
		}
	}
	a.c.disks[i].watch.Store(&fn)
}

// stepOf names the durable step that a change of a disk belongs to; "": none that is of interest.
func stepOf(s step) string {
	name, begins, done := s.name, s.when == before, s.when == after
	dir, base := path.Base(path.Dir(name)), path.Base(name)
	switch {
	case strings.HasSuffix(dir, ".staging") && base != "checkpoint" && s.op == opSync && begins:
		return "a staged file is written"
	case strings.HasSuffix(dir, ".staging") && base == "checkpoint" && s.op == opRename && done:
		return "the staged checkpoint is named"
	case path.Base(path.Dir(path.Dir(name))) == "replicas" && base != "g1" && s.op == opRename && begins:
		return "staging is complete"
	case path.Base(path.Dir(path.Dir(name))) == "replicas" && base != "g1" && s.op == opRename && done:
		return "a generation is named"
	case path.Base(path.Dir(path.Dir(name))) == "replicas" && s.op == opRemove && begins:
		return "the old generation goes"
	case isCheckpoint(name) && s.op == opRename && begins:
		return "a checkpoint is written"
	case isCheckpoint(name) && s.op == opRename && done:
		return "a checkpoint is named"
	case isLog(name) && strings.HasSuffix(name, ".log") && s.op == opRename && done:
		return "a raftlog file is named"
	case isLog(name) && strings.HasSuffix(name, ".free") && begins:
		return "a raftlog file is freed"
	}
	return ""
}

// TestRestartFromPowerCuts cuts the power at acknowledgements, in the middle of checkpoints
// and of snapshot installs, while a node is away, rejoins and comes back with an empty disk; then
// starts all three nodes on each of what was left.
func TestRestartFromPowerCuts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, func(d *disk) { d.lag = time.Millisecond })
	c.startAll()
	c.createTopic(true)
	a := &album{c: c, most: 1, taken: map[string]int{}}
	a.l = newLoad(c, func(n int) {
		if n%600 == 0 {
			a.take(fmt.Sprintf("acknowledgement %d", n))
		}
	})
	a.story()
	c.stopAll()
	for _, want := range []string{"a checkpoint is named", "a staged file is written", "a generation is named", "the old generation goes"} {
		if a.taken[want] == 0 {
			t.Errorf("no moment: %s (have %v)", want, a.taken)
		}
	}
	for _, m := range a.moments {
		began := time.Now()
		c.restartFrom(t, m)
		t.Logf("%s, %d %% of what was not synced is left, %d acknowledged: all there after %v", m.what, m.percent, len(m.acks), time.Since(began).Round(time.Millisecond))
	}
}

// story is what happens while moments are taken.
func (a *album) story() {
	c, l := a.c, a.l
	for i := range c.disks {
		a.watch(i)
	}
	defer func() {
		for _, d := range c.disks {
			d.watch.Store(nil)
		}
	}()
	l.run()
	defer l.stop()
	l.await(500, nil)
	c.outrun(2)
	l.await(1200, nil)
	c.start(2)
	c.eventually("node 3 has installed snapshots", func() error { return c.installed(2) })
	a.take("node 3 has rejoined")
	c.stop(2)
	c.disks[2] = newDisk(vfs.NewCrashableMem(), c.power)
	a.watch(2)
	l.await(len(l.sofar())+200, nil)
	c.start(2)
	c.eventually("node 3 has replaced its replicas", func() error { return c.installed(2) })
	a.take("node 3 is replaced")
}

// installed tells whether every replica of node i has installed a snapshot since its start.
func (c *cluster) installed(i int) error {
	for p := range int32(partitions) {
		r, err := c.replica(i, p)
		if err != nil {
			return err
		}
		if r.SnapshotsInstalled == 0 {
			return fmt.Errorf("%s is at index %d without a snapshot", r.Group, r.AppliedIndex)
		}
	}
	return nil
}

// outrun stops node i and waits until the load has made the others trim their logs past it.
func (c *cluster) outrun(i int) {
	c.t.Helper()
	c.stop(i)
	for p := range int32(partitions) {
		behind := uint64(0) // the most node i can have
		for k := range c.nodes {
			if k == i {
				continue
			}
			r, err := c.replica(k, p)
			if err != nil {
				c.t.Fatal(err)
			}
			behind = max(behind, r.LastIndex)
		}
		c.eventually("the others trim their logs", func() error {
			for k := range c.nodes {
				if k == i {
					continue
				}
				if r, err := c.replica(k, p); err != nil || r.FirstIndex <= behind+1 {
					return errors.Join(fmt.Errorf("partition %d: node %d keeps its log from %d, node %d may have %d", p, k+1, r.FirstIndex, i+1, behind), err)
				}
			}
			return nil
		})
	}
}

// restartFrom starts the cluster on what was left, and proves that what was
// acknowledged is there, at its offset, in order, the same on all nodes, and that
// all partitions accept records. Then it stops it.
func (c *cluster) restartFrom(t *testing.T, m moment) {
	t.Helper()
	seen := len(c.logs.String())
	c.replace(m.left)
	c.startAll()
	got, ends := c.readBack()
	at := map[place]string{}
	for p, vs := range got {
		for o, v := range vs {
			at[place{int32(p), int64(o)}] = v
		}
		if err := checkOrder(int32(p), vs); err != nil {
			t.Errorf("%s, %d %%: %v", m.what, m.percent, err)
		}
	}
	if lost := missing(m.acks, at); len(lost) > 0 {
		t.Errorf("%s, %d %%: %d of %d acknowledged records are lost, the first at offset %d of partition %d: %.40s",
			m.what, m.percent, len(lost), len(m.acks), lost[0].offset, lost[0].partition, lost[0].value)
	}
	c.digestsEqual(ends)
	c.stopAll()
	for line := range strings.SplitSeq(c.logs.String()[seen:], "\n") {
		if strings.Contains(line, "quarantined") || strings.Contains(line, "level=ERROR") {
			t.Errorf("%s, %d %%: log: %s", m.what, m.percent, line)
		}
	}
}

// readBack is readFrom of records that begin at offset 0.
func (c *cluster) readBack() (got [partitions][]string, ends [partitions]int64) {
	c.t.Helper()
	got, _ = c.readFrom([partitions]int64{})
	for p := range got {
		ends[p] = int64(len(got[p]))
	}
	return got, ends
}

// readFrom appends a last record to each partition and reads them to it, from their
// first record on or, if that begins before, from an offset.
func (c *cluster) readFrom(from0 [partitions]int64) (got [partitions][]string, begins [partitions]int64) {
	c.t.Helper()
	var ends [partitions]int64
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	adm := c.client()
	defer adm.Close()
	starts, err := kadm.NewClient(adm).ListStartOffsets(ctx, topic)
	must(c.t, errors.Join(err, starts.Error()))
	from := map[int32]kgo.Offset{}
	for p := range int32(partitions) {
		o, _ := starts.Lookup(topic, p)
		begins[p] = max(o.Offset, from0[p])
		from[p] = kgo.NewOffset().At(begins[p])
	}
	cl := c.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}), kgo.FetchMaxWait(50*time.Millisecond),
		kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	defer cl.Close()
	for p := range int32(partitions) {
		if err := cl.ProduceSync(ctx, &kgo.Record{Partition: p, Value: []byte("last/0/0/")}).FirstErr(); err != nil {
			c.t.Fatalf("partition %d accepts nothing: %v", p, err)
		}
	}
	end, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if err != nil {
		c.t.Fatal(err)
	}
	for p := range ends {
		o, _ := end.Lookup(topic, int32(p))
		ends[p] = o.Offset
	}
	complete := func(p int) bool { return begins[p]+int64(len(got[p])) >= ends[p] }
	for !complete(0) || !complete(1) || !complete(2) {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			c.t.Fatalf("read %v of %v records", []int{len(got[0]), len(got[1]), len(got[2])}, ends)
		}
		for _, r := range fs.Records() {
			if want := begins[r.Partition] + int64(len(got[r.Partition])); r.Offset != want {
				c.t.Fatalf("partition %d: offset %d follows %d", r.Partition, r.Offset, want-1)
			}
			got[r.Partition] = append(got[r.Partition], string(r.Value))
		}
	}
	for p := range got {
		if !slices.Contains(got[p], "last/0/0/") {
			c.t.Errorf("partition %d ends at %d without the last record", p, ends[p])
		}
	}
	return got, begins
}
