package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/check"
	"chronik/test/harness"
)

// loadOptions says what a load produces.
type loadOptions struct {
	topic      string // "load" when empty
	partitions int    // 6 when 0
	size       int    // of a record's value, at least what names it
	window     int    // records outstanding a partition; 50 when 0
	acks1      bool   // acks=1 without idempotence: a record may come twice
	settings   []string
	rate       time.Duration // between two records of a partition; 0: as fast as acknowledged
	first      int           // records of a partition that are sent before rate holds
}

// load keeps records outstanding on every partition until finished, reads along,
// and knows which record was acknowledged where.
type load struct {
	t      *testing.T
	c      *harness.Cluster
	o      loadOptions
	cl     *kgo.Client
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	parts  []partLoad
	slow   []time.Duration // acknowledgement latencies
	// death is the moment after which records are looked for that were sent later: served.
	death time.Time
	seen  check.Seen
	// delivered counts what the one who reads along was given, found what was wrong.
	delivered int
	found     []check.Violation
}

type partLoad struct {
	acked   map[int64]int // offset -> record number
	lastAck time.Time
	worst   time.Duration // longest time without an acknowledgement since worstGap was last asked
	sent    int
	read    int64     // next offset of the one who reads along
	served  time.Time // when the first record sent after death was acknowledged
}

func startLoad(t *testing.T, c *harness.Cluster, o loadOptions) *load {
	t.Helper()
	if o.topic == "" {
		o.topic = "load"
	}
	if o.partitions == 0 {
		o.partitions = 6
	}
	if o.window == 0 {
		o.window = 50
	}
	l := &load{t: t, c: c, o: o, parts: make([]partLoad, o.partitions)}
	for i := range l.parts {
		l.parts[i].acked = map[int64]int{}
	}
	c.CreateTopic(o.topic, o.partitions, append([]string{"max.message.bytes=4194304"}, o.settings...)...)
	opts := []kgo.Opt{
		kgo.DefaultProduceTopic(o.topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(2 * time.Millisecond),
		kgo.MaxBufferedRecords(100 * o.partitions), kgo.ProduceRequestTimeout(time.Second), kgo.RequestTimeoutOverhead(time.Second),
		kgo.ProducerBatchMaxBytes(2 << 20),
	}
	if o.acks1 {
		opts = append(opts, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite(), kgo.MaxProduceRequestsInflightPerBroker(1))
	}
	l.cl = c.Client(opts...)
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	for p := range o.partitions {
		l.wg.Go(func() { l.produce(ctx, p) })
	}
	l.wg.Go(func() { l.readAlong(ctx) })
	c.Eventually(20*time.Second, "load runs", func() error { return l.acceptedSince(time.Time{}) })
	return l
}

// value is record n of partition p: its name, and bytes that follow from it.
func (l *load) value(p, n int) []byte {
	v := fmt.Appendf(nil, "%d:%d:", p, n)
	x := uint64(p)<<32 | uint64(n)
	for len(v) < l.o.size {
		x = x*6364136223846793005 + 1442695040888963407
		v = append(v, byte(x>>56))
	}
	return v
}

func (l *load) produce(ctx context.Context, p int) {
	window := make(chan struct{}, l.o.window)
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			l.parts[p].sent = n
			return
		case window <- struct{}{}:
		}
		if l.o.rate > 0 && n >= l.o.first {
			select {
			case <-ctx.Done():
			case <-time.After(l.o.rate):
			}
		}
		began := time.Now()
		l.cl.Produce(context.Background(), &kgo.Record{Partition: int32(p), Value: l.value(p, n)}, func(r *kgo.Record, err error) {
			<-window
			if err != nil {
				if !l.t.Failed() || !errors.Is(err, kgo.ErrClientClosed) { // what a failed test leaves is no news
					l.t.Errorf("produce record %d to %s-%d: %v", n, l.o.topic, p, err)
				}
				return
			}
			l.acknowledged(p, n, r.Offset, began)
		})
	}
}

func (l *load) acknowledged(p, n int, offset int64, began time.Time) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	pl := &l.parts[p]
	if !pl.lastAck.IsZero() {
		pl.worst = max(pl.worst, now.Sub(pl.lastAck))
	}
	pl.lastAck = now
	l.slow = append(l.slow, now.Sub(began))
	if !l.death.IsZero() && pl.served.IsZero() && began.After(l.death) {
		pl.served = now
	}
	if was, ok := pl.acked[offset]; ok {
		l.violateLocked(check.Violation{Kind: check.Divergent, Place: l.name(p), What: fmt.Sprintf("offset %d was given to record %d and to %d", offset, was, n)})
	}
	pl.acked[offset] = n
}

// died says that a node died at t: from now on served tells when each partition accepted a record again
// that was sent later.
func (l *load) died(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.death = t
	for i := range l.parts {
		l.parts[i].served = time.Time{}
	}
}

// servedAfter is how long after the death the last of the partitions accepted a record that was sent after it.
func (l *load) servedAfter() (time.Duration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var worst time.Duration
	for p := range l.parts {
		if l.parts[p].served.IsZero() {
			return 0, fmt.Errorf("%s has accepted nothing that was sent since", l.name(p))
		}
		worst = max(worst, l.parts[p].served.Sub(l.death))
	}
	return worst, nil
}

func (l *load) name(p int) string { return fmt.Sprintf("%s-%d", l.o.topic, p) }

// violate notes and tells what a sound cluster cannot have done.
func (l *load) violate(vs ...check.Violation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.violateLocked(vs...)
}

func (l *load) violateLocked(vs ...check.Violation) {
	for _, v := range vs {
		l.t.Error(v)
	}
	l.found = append(l.found, vs...)
}

// number is which record of partition p a value is.
func (l *load) number(p int, value []byte) int {
	var at, n int
	if _, err := fmt.Sscanf(string(value[:min(len(value), 40)]), "%d:%d:", &at, &n); err != nil || at != p || string(value) != string(l.value(p, n)) {
		return check.Foreign
	}
	return n
}

// totals are what was acknowledged and what the one who reads along was given.
func (l *load) totals() (acked, delivered int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.parts {
		acked += len(l.parts[i].acked)
	}
	return acked, l.delivered
}

// p99 returns the latency of acknowledgements since it was last asked, and how many there were.
func (l *load) p99() (time.Duration, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slow
	l.slow = nil
	if len(s) == 0 {
		return 0, 0
	}
	slices.Sort(s)
	return s[len(s)*99/100], len(s)
}

// worstGap returns the longest time any partition went without an acknowledgement since it was last asked.
func (l *load) worstGap() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	worst := time.Duration(0)
	for i := range l.parts {
		worst = max(worst, l.parts[i].worst)
		l.parts[i].worst = 0
	}
	return worst
}

// acceptedSince tells whether every partition had a record acknowledged after t; some
// are outstanding at all times.
func (l *load) acceptedSince(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var late []int
	for p := range l.parts {
		if !l.parts[p].lastAck.After(t) {
			late = append(late, p)
		}
	}
	if len(late) > 0 {
		return fmt.Errorf("partitions %v of %s accepted nothing since", late, l.o.topic)
	}
	return nil
}

// readAlong reads all partitions as they grow. Whatever a consumer sees stays.
func (l *load) readAlong(ctx context.Context) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(l.c.Bootstrap()...), kgo.ConsumeTopics(l.o.topic), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond), kgo.FetchMaxBytes(8<<20), kgo.MetadataMinAge(50*time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }))
	if err != nil {
		l.t.Error(err)
		return
	}
	defer cl.Close()
	for ctx.Err() == nil {
		fs := cl.PollFetches(ctx)
		fs.EachError(func(_ string, p int32, err error) {
			if ctx.Err() == nil {
				l.t.Errorf("reading along %s-%d: %v", l.o.topic, p, err)
			}
		})
		fs.EachRecord(func(r *kgo.Record) {
			pl := &l.parts[r.Partition]
			if r.Offset != pl.read {
				l.violate(check.Violation{Kind: check.Lost, Place: l.name(int(r.Partition)), What: fmt.Sprintf("reading along: offset %d came after %d", r.Offset, pl.read-1)})
			}
			pl.read = r.Offset + 1
			n := l.number(int(r.Partition), r.Value)
			l.violate(l.seen.See("who reads along", l.name(int(r.Partition)), r.Offset, n)...)
			if !l.o.acks1 && n != int(r.Offset) { // nobody sent anything else to that place
				l.violate(check.Violation{Kind: check.Divergent, Place: l.name(int(r.Partition)), What: fmt.Sprintf("reading along: offset %d holds record %d, %.40q", r.Offset, n, r.Value)})
			}
			l.mu.Lock()
			l.delivered++
			l.mu.Unlock()
		})
	}
}

// stop ends the load and lets everything outstanding be acknowledged.
func (l *load) stop() {
	l.t.Helper()
	l.cancel()
	l.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := l.cl.Flush(ctx); err != nil {
		l.t.Fatalf("records remain unacknowledged: %v", err)
	}
}

// finish stops the load and checks: nothing lost, nothing twice, order kept, replicas equal.
func (l *load) finish() {
	l.t.Helper()
	l.stop()
	total := 0
	for p := range l.o.partitions {
		total += l.parts[p].sent
		end := l.check(p)
		l.c.Eventually(30*time.Second, "digests are equal", func() error { return l.c.DigestsEqual(l.o.topic, p, end) })
	}
	l.t.Logf("%d records of %s acknowledged, %d violations", total, l.o.topic, len(l.found))
}

// check reads partition p back, judges it and returns its end.
func (l *load) check(p int) int64 {
	l.t.Helper()
	pl := &l.parts[p]
	end := int64(pl.sent)
	if l.o.acks1 {
		end = l.highWatermark(p)
	}
	h := check.Partition{Name: l.name(p), Sent: pl.sent, Idempotent: !l.o.acks1, AllKnown: true, Reads: l.readBack(p, end)}
	for offset, n := range pl.acked {
		h.Acks = append(h.Acks, check.Ack{Offset: offset, Number: n})
	}
	for _, r := range h.Reads {
		l.violate(l.seen.See("who reads back", h.Name, r.Offset, r.Number)...)
	}
	l.violate(h.Check()...)
	return end
}

// readBack reads partition p from its start to end.
func (l *load) readBack(p int, end int64) (reads []check.Read) {
	l.t.Helper()
	cl := l.c.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{l.o.topic: {int32(p): kgo.NewOffset().AtStart()}}),
		kgo.FetchMaxWait(200*time.Millisecond), kgo.FetchMaxBytes(8<<20))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for next := int64(0); next < end; {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			l.violate(check.Violation{Kind: check.Lost, Place: l.name(p), What: fmt.Sprintf("read %d of %d records", next, end)})
			return reads
		}
		fs.EachRecord(func(r *kgo.Record) {
			reads = append(reads, check.Read{Offset: r.Offset, Number: l.number(p, r.Value)})
			next = r.Offset + 1
		})
	}
	return reads
}

// highWatermark is the end of partition p as its leader says.
func (l *load) highWatermark(p int) int64 {
	l.t.Helper()
	hw := int64(-1)
	l.c.Eventually(20*time.Second, "a leader tells the end", func() error {
		_, r, err := l.c.Leader(fmt.Sprintf("%s-%d", l.o.topic, p))
		hw = r.HighWatermark
		return err
	})
	return hw
}

// clusterView is what a test wants of /v1/cluster.
type clusterView struct {
	Topics []struct {
		Topic      string          `json:"topic"`
		Partitions []partitionView `json:"partitions"`
	} `json:"topics"`
	Internal []partitionView `json:"internal"`
}

type partitionView struct {
	Group    string `json:"group"`
	Replicas []struct {
		Node    int  `json:"node"`
		Joining bool `json:"joining"`
		Lost    bool `json:"lost"`
		Learner bool `json:"learner"`
	} `json:"replicas"`
}

// whole tells whether every node serves, every group has its three plain members
// everywhere, and nothing is received or quarantined any more.
func whole(c *harness.Cluster) error {
	for _, n := range c.Nodes() {
		if err := c.Ready(n.ID); err != nil {
			return err
		}
		var raw json.RawMessage
		if err := c.Get(n.ID, "/v1/cluster", &raw); err != nil {
			return err
		}
		var v clusterView
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		groups := v.Internal
		for _, t := range v.Topics {
			groups = append(groups, t.Partitions...)
		}
		for _, g := range groups {
			if len(g.Replicas) != 3 {
				return fmt.Errorf("node %d: %s has %d replicas: %+v", n.ID, g.Group, len(g.Replicas), g.Replicas)
			}
			for _, r := range g.Replicas {
				if r.Joining || r.Lost || r.Learner {
					return fmt.Errorf("node %d: %s is still being replaced: %+v", n.ID, g.Group, g.Replicas)
				}
			}
		}
		if err := members(c, n.ID, len(groups)); err != nil {
			return err
		}
	}
	return nil
}

// members tells whether node id's replicas are plain running members.
func members(c *harness.Cluster, id, groups int) error {
	var v struct {
		Replicas []struct {
			Group  string `json:"group"`
			State  string `json:"state"`
			Role   string `json:"role"`
			Reason string `json:"reason"`
		} `json:"replicas"`
	}
	if err := c.Get(id, "/v1/replicas", &v); err != nil {
		return err
	}
	if len(v.Replicas) != groups {
		return fmt.Errorf("node %d has %d replicas of %d groups", id, len(v.Replicas), groups)
	}
	for _, r := range v.Replicas {
		if r.State != "running" || r.Role == "learner" {
			return fmt.Errorf("node %d: %s is %s %s %s", id, r.Group, r.State, r.Role, r.Reason)
		}
	}
	return nil
}

// trouble returns the log lines of all nodes that a healthy run must not have.
func trouble(c *harness.Cluster, allowed ...string) []string {
	var bad []string
	for line := range strings.SplitSeq(c.Logs(), "\n") {
		if !strings.Contains(line, "level=ERROR") && !strings.Contains(line, "quarantined") && !strings.Contains(line, "chronik: error") {
			continue
		}
		if !slices.ContainsFunc(allowed, func(s string) bool { return strings.Contains(line, s) }) {
			bad = append(bad, line)
		}
	}
	return bad
}
