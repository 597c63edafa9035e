package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
	"chronik/test/offline"
)

// checker holds what was seen so far against what is seen now.
type checker struct {
	w *world

	mu     sync.Mutex
	seen   map[place]string // what consumers have read
	leads  map[string]uint64
	images map[uint64]string
	homes  map[uint64]string
	starts map[string]logStart
	last   map[uint64]progress // of a replica in one run
	stuck  map[string]time.Time
	steps  int
}

// logStart is where a replica's log begins.
type logStart struct {
	offset  int64
	replica uint64
}

// progress is how far a replica has come in one run of its node.
type progress struct {
	run             *run
	commit, applied uint64
}

func newChecker(w *world) *checker {
	return &checker{
		w: w, seen: map[place]string{}, leads: map[string]uint64{}, images: map[uint64]string{}, homes: map[uint64]string{},
		starts: map[string]logStart{}, last: map[uint64]progress{}, stuck: map[string]time.Time{},
	}
}

// every is of how many acknowledgements one is looked for on the disks.
const every = 50

// ack looks whether the nth acknowledged record is on a majority's disks, should the power go now.
func (c *checker) ack(n int, at place, v string) {
	if n%every != 0 || c.w.failed() {
		return
	}
	c.w.count("acks looked for on disks", 1)
	var left []*vfs.MemFS
	for _, n := range c.w.nodes {
		left = append(left, n.disk.durable())
	}
	held, damaged := 0, 0
	var lost []error
	for i, mem := range left {
		h := offline.Read(mem, offline.Options{Node: ident.NodeID(i + 1), Dir: "data", Topic: topic, FileBytes: logFileBytes, MaxBytes: 1 << 20})
		switch {
		case h.Records[offline.Place{Partition: at.partition, Offset: at.offset}] == v:
			held++
		case c.w.nodes[i].disk.isFlipped() && slices.ContainsFunc(h.Lost, func(err error) bool { return concerns(err, at.partition) }):
			damaged++ // it may have taken the record behind a flipped bit that nobody has read yet
		}
		lost = append(lost, h.Lost...)
	}
	if held+damaged < 2 && at.offset >= c.w.load.deletedTo(at.partition) {
		c.w.fail("acknowledged is durable on a majority", "%v %.40s is on %d disks (%v)", at, v, held, lost)
	}
}

// concerns tells whether what was lost of a disk is a partition's replica, or all.
func concerns(lost error, partition int32) bool {
	return strings.Contains(lost.Error(), fmt.Sprintf(" %s-%d: ", topic, partition)) || !strings.Contains(lost.Error(), " "+topic+"-")
}

// read is one record that a consumer has read: what is at an offset never changes.
func (c *checker) read(at place, v string) {
	c.w.count("read", 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if was, ok := c.seen[at]; ok && was != v {
		c.w.fail("a record never changes", "%v was %.40s, is %.40s", at, was, v)
	}
	c.seen[at] = v
}

// imageEvery is after how many steps the metadata is compared, which costs most.
const imageEvery = 4

// step looks at every node after each step.
func (c *checker) step() {
	c.steps++
	for _, n := range c.w.nodes {
		r := n.current()
		if r == nil {
			continue
		}
		r.look()
		src := r.b.Source()
		if c.steps%imageEvery == 0 {
			c.image(n, src.Cluster())
		}
		for _, row := range src.Replicas().Replicas {
			c.replica(n, r, row)
		}
	}
}

// replica checks one replica's row.
func (c *checker) replica(n *node, r *run, row admin.Replica) {
	w := c.w
	c.mu.Lock()
	defer c.mu.Unlock()
	if row.State != "quarantined" && (row.AppliedIndex > row.CommitIndex || row.CommitIndex > max(row.LastIndex, row.SnapshotIndex)) {
		w.fail("applied ≤ commit ≤ last", "node %d: %+v", n.id, row)
	}
	if row.State == "running" && !r.ended() {
		c.joins(n, row)
		c.start(n, row)
	}
	if row.Resting {
		w.count("replicas seen at rest", 1)
		if row.Group == metadata.MetaTopic || row.State != "running" || row.Role == "candidate" || row.CommitIndex != row.LastIndex {
			w.fail("only what is whole rests", "node %d: %+v", n.id, row)
		}
	}
	if row.State == "quarantined" && row.Role == "leader" {
		w.fail("a quarantined replica never leads", "node %d: %+v", n.id, row)
	}
	if row.Role == "leader" {
		key := row.Group + "/" + strconv.FormatUint(row.Term, 10)
		if was, ok := c.leads[key]; ok && was != row.ReplicaID {
			w.fail("one leader a term", "%s: replicas %d and %d", key, was, row.ReplicaID)
		}
		c.leads[key] = row.ReplicaID
		// A replica's id belongs to one disk: only what leads counts, a restored copy says its old id until it is found out.
		home := fmt.Sprintf("node %d disk %d", n.id, n.disk.number())
		if was, ok := c.homes[row.ReplicaID]; ok && was != home {
			w.fail("a replica id is of one disk", "replica %d of %s: %s, then %s", row.ReplicaID, row.Group, was, home)
		}
		c.homes[row.ReplicaID] = home
	}
	for _, f := range row.Followers {
		c.watch(row, f)
	}
	was := c.last[row.ReplicaID]
	if was.run == r && row.State != "quarantined" && (row.CommitIndex < was.commit || row.AppliedIndex < was.applied) {
		w.fail("commit and applied never go back", "node %d: commit %d, applied %d, then %+v", n.id, was.commit, was.applied, row)
	}
	c.last[row.ReplicaID] = progress{r, row.CommitIndex, row.AppliedIndex}
}

// joins: a replica that has a snapshot has the log from it on, or from before it.
func (c *checker) joins(n *node, row admin.Replica) {
	if row.SnapshotIndex == 0 {
		return // none yet
	}
	if row.FirstIndex > row.SnapshotIndex+1 || row.SnapshotIndex > row.LastIndex {
		c.w.fail("the log joins its snapshot", "node %d: %+v", n.id, row)
	}
}

// start: a replica moves its log's start by applying an entry, so it is what the others' was at that index. A partition shows
// where its log starts before the applied index is shown, and nothing lets another goroutine run between them.
func (c *checker) start(n *node, row admin.Replica) {
	if row.Topic != topic || row.HighWatermark == 0 {
		return // no partition, or one that is not there yet: the row says 0
	}
	key := row.Group + "/" + strconv.FormatUint(row.AppliedIndex, 10)
	was, ok := c.starts[key]
	switch {
	case !ok:
		c.starts[key] = logStart{row.LogStartOffset, row.ReplicaID}
	case was.offset != row.LogStartOffset:
		c.w.fail("log start moves only by apply", "node %d: replica %d of %s has log start %d at index %d, replica %d had %d",
			n.id, row.ReplicaID, row.Group, row.LogStartOffset, row.AppliedIndex, was.replica, was.offset)
	case was.replica != row.ReplicaID && was.offset > 0:
		c.w.count("moved log starts compared", 1)
	}
}

// patience is how long a follower that is there may wait for a snapshot to come to something.
const patience = 40 * time.Second

// watch: a follower in StateSnapshot has a transfer under way, or a watchdog that ends the state.
func (c *checker) watch(row admin.Replica, f admin.Follower) {
	key := fmt.Sprintf("%d of %d in term %d", f.ReplicaID, row.ReplicaID, row.Term)
	if f.State != "StateSnapshot" || !f.Alive {
		delete(c.stuck, key)
		return
	}
	since, ok := c.stuck[key]
	if !ok {
		c.stuck[key] = time.Now()
	} else if time.Since(since) > patience {
		c.w.fail("a snapshot comes to something", "%s: follower %s in StateSnapshot for %v", row.Group, key, time.Since(since))
	}
}

// image checks that nodes with metadata of one index have the same metadata.
func (c *checker) image(n *node, cl admin.Cluster) {
	at := cl.MetaIndex
	cl.Node = 0
	for i := range cl.Nodes {
		cl.Nodes[i].Alive = false
	}
	forget := func(ps []admin.Partition) {
		for i := range ps {
			ps[i].Leader, ps[i].Term = 0, 0
		}
	}
	forget(cl.Internal)
	for _, t := range cl.Topics {
		forget(t.Partitions)
	}
	b, err := json.Marshal(cl)
	if err != nil || at == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if was, ok := c.images[at]; ok && was != string(b) {
		c.w.fail("metadata of one index is the same everywhere", "node %d, index %d: %s, elsewhere %s", n.id, at, b, was)
	}
	c.images[at] = string(b)
}

// end checks the mended cluster against everything that was promised.
func (c *checker) end() {
	final := c.readAll()
	if c.w.failed() {
		return
	}
	l := c.w.load
	for at, v := range l.acked {
		if at.offset < l.deleted[at.partition] {
			continue
		}
		switch got, ok := final[at]; {
		case !ok:
			c.w.fail("nothing acknowledged is lost", "%v %.40s is gone", at, v)
		case got != v:
			c.w.fail("a record never changes", "%v was acknowledged as %.40s, is %.40s", at, v, got)
		}
	}
	c.order(final)
	for at, v := range c.seen {
		if got, ok := final[at]; at.offset >= l.deleted[at.partition] && (!ok || got != v) {
			c.w.fail("what was read stays", "%v was read as %.40s, is %.40s", at, v, got)
		}
	}
	c.digests()
	c.states()
	c.remains()
	c.rest()
}

// states compares what checkpoints say of each group: some replicas came to their state by a
// snapshot, others by their log, and it must be one, producers and all.
func (c *checker) states() {
	type point struct {
		group ident.GroupID
		index ident.Index
	}
	states := map[point][]byte{}
	for _, n := range c.w.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := n.source().TakeCheckpoint(ctx, "", -1, false)
		cancel()
		if err != nil {
			c.w.fail("converges", "node %d takes no checkpoints: %v", n.id, err)
			return
		}
	}
	for _, n := range c.w.nodes {
		mem := n.disk.durable()
		lives := map[string]bool{}
		for _, row := range n.source().Replicas().Replicas {
			lives[strconv.FormatUint(row.ReplicaID, 10)] = true
		}
		walk(mem, "data/replicas", func(name string) {
			if path.Base(name) != "checkpoint" {
				return
			}
			// What a replica of an earlier life left only gives bytes, and nobody mends it.
			if base := path.Dir(path.Dir(name)); !lives[base[strings.LastIndexByte(base, '.')+1:]] {
				return
			}
			ck, blob, err := snapshot.Read(mem, path.Dir(name))
			if err != nil {
				c.w.fail("checkpoints are readable", "node %d: %v", n.id, err)
				return
			}
			at := point{ck.Group, ck.Point.Index}
			if was, ok := states[at]; ok && !bytes.Equal(was, blob) {
				c.w.fail("state by snapshot is state by replay", "node %d, %s, index %d: %x, elsewhere %x", n.id, name, at.index, blob, was)
			} else if ok {
				c.w.count("states compared", 1)
			}
			states[at] = blob
		})
	}
}

// endsOf asks until it is told or ctx ends: connections that a fault has spoiled end
// up to three seconds after it, and may take a leader with them.
func endsOf(ctx context.Context, adm *kadm.Client) (ends kadm.ListedOffsets, err error) {
	for {
		ends, err = adm.ListEndOffsets(ctx, topic)
		if err == nil {
			err = ends.Error()
		}
		if err == nil || ctx.Err() != nil {
			return ends, err
		}
		select {
		case <-time.After(step):
		case <-ctx.Done():
		}
	}
}

// readAll reads both partitions to their ends.
func (c *checker) readAll() map[place]string {
	final := map[place]string{}
	cl := c.w.client(c.w.load.from(kgo.NewOffset().AtStart())...)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), convergence)
	defer cancel()
	ends, err := endsOf(ctx, kadm.NewClient(cl))
	if err != nil {
		c.w.fail("converges", "ends are not told: %v", err)
		return nil
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) { left[o.Partition] = o.Offset })
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			c.w.fail("converges", "the end is not reached: %v: %v", left, fs.Err())
			return nil
		}
		fs.EachRecord(func(r *kgo.Record) {
			at := place{r.Partition, r.Offset}
			final[at] = string(r.Value)
			c.read(at, string(r.Value))
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
		})
	}
	return final
}

// order checks what each producer wrote: an idempotent one's records stand once, in order.
func (c *checker) order(final map[place]string) {
	for p := range int32(partitions) {
		next := map[string]int{}
		seen := map[string]int64{}
		end := int64(0)
		for at := range final {
			if at.partition == p {
				end = max(end, at.offset+1)
			}
		}
		for off := c.w.load.deleted[p]; off < end; off++ {
			v, ok := final[place{p, off}]
			if !ok {
				continue // deleted, or the last of the deleted ones' batch
			}
			parts := strings.SplitN(v, "/", 4)
			if parts[0] != "idempotent" {
				continue
			}
			n, _ := strconv.Atoi(parts[2]) // made by produce
			if was, ok := seen[parts[2]]; ok {
				c.w.fail("an idempotent producer's records stand once", "partition %d: %s at %d and %d", p, parts[2], was, off)
			}
			seen[parts[2]] = off
			if n < next["n"] {
				c.w.fail("an idempotent producer's records stand in order", "partition %d: %d after %d", p, n, next["n"])
			}
			next["n"] = n
		}
	}
}

// digests compares what the replicas hold. Damage that nobody has read until now is found by this, and
// its replica replaced: then there are three to compare.
func (c *checker) digests() {
	for p := range int32(partitions) {
		c.w.await(fmt.Sprintf("digests of partition %d", p), convergence, func() error { return c.digest(p) })
	}
}

func (c *checker) digest(p int32) error {
	from, to := int64(0), int64(-1)
	for _, n := range c.w.nodes {
		for _, r := range n.source().Replicas().Replicas {
			if r.Topic == topic && r.Partition == p {
				from = max(from, r.LogStartOffset)
				if to < 0 || r.HighWatermark < to {
					to = r.HighWatermark
				}
			}
		}
	}
	var sums []string
	var failed error
	for _, n := range c.w.nodes {
		d, err := n.source().Digest(topic, p, from, to)
		if err == nil {
			sums = append(sums, d.SHA256)
		} else {
			failed = fmt.Errorf("node %d: %w", n.id, err)
		}
	}
	for _, s := range sums {
		if s != sums[0] {
			c.w.fail("replicas hold the same bytes", "partition %d, %d to %d: %v", p, from, to, sums)
		}
	}
	if len(sums) < 3 {
		return fmt.Errorf("%d replicas have told: %w", len(sums), failed)
	}
	return nil
}

// rest waits until every group rests but the metadata's: nothing goes on any more, and nothing that went on
// may have left a group awake, or a node out of contact. That may take as long as a pin lasts: one made for a
// follower by a leader that lost its term before it heard that the snapshot had arrived holds the log until then.
func (c *checker) rest() {
	c.w.await("idle groups rest", pinsEnd, func() error {
		for _, n := range c.w.nodes {
			src := n.source()
			if src == nil {
				return fmt.Errorf("node %d is down", n.id)
			}
			for _, r := range src.Replicas().Replicas {
				if r.Group != metadata.MetaTopic && !r.Resting {
					return fmt.Errorf("node %d: %s is awake: %+v", n.id, r.Group, r)
				}
			}
		}
		return nil
	})
}

// pinsEnd is how long a pin outlives a receiver that died without a word: snapshot's PinExpiry, and a little.
const pinsEnd = 2*time.Minute + 10*time.Second

// remains waits until what is under way is over, and looks for what must be gone then.
func (c *checker) remains() {
	c.w.await("pins and staging return to nothing", pinsEnd, func() error {
		for _, n := range c.w.nodes {
			if t := n.source().Transfers(); len(t) > 0 {
				return fmt.Errorf("node %d: %+v", n.id, t)
			}
			left := ""
			walk(n.disk.files(), "data/replicas", func(name string) {
				if strings.Contains(name, ".staging/") {
					left = name
				}
			})
			if left != "" {
				return fmt.Errorf("node %d: %s", n.id, left)
			}
		}
		return nil
	})
}
