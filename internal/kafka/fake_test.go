package kafka

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/bytepool"
	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
	"chronik/internal/record"
	"chronik/internal/wire"
)

// fakeCluster is a node with the real metadata state machine, whose commands
// apply at once, and partitions in memory that it leads unless a test says else.
type fakeCluster struct {
	t       testing.TB
	store   *metadata.Store
	leaders *metadata.Leaders
	cfg     Config

	mu     sync.Mutex
	sm     raftgroup.StateMachine
	index  ident.Index
	parts  map[ident.GroupID]*fakePartition
	coords map[ident.GroupID]Coordinator
	down   map[ident.NodeID]bool
	full   bool
	// leaderless: groups get no leader when they are created.
	leaderless bool
	// submitErr: what Submit returns in place of applying.
	submitErr error
	submitted []metadata.Command
}

const fakeSelf ident.NodeID = 1

func newFakeCluster(t testing.TB) *fakeCluster {
	f := &fakeCluster{
		t:       t,
		store:   metadata.NewStore(),
		leaders: metadata.NewLeaders(fakeSelf),
		cfg:     Config{AutoCreateTopics: true, DefaultPartitions: 2, ReplicationFactor: 3, MinInsyncReplicas: 2, MaxFetchSessions: 3, DataDir: "/var/lib/chronik"},
		parts:   map[ident.GroupID]*fakePartition{},
		coords:  map[ident.GroupID]Coordinator{},
		down:    map[ident.NodeID]bool{},
	}
	sm, err := metadata.Open(f.store)(nil, "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.sm = sm
	genesis := &metadata.Genesis{ClusterID: "abcdefghijklmnopqrstuv", Coordinators: 4}
	for n := ident.NodeID(1); n <= 3; n++ {
		genesis.Members = append(genesis.Members, metadata.GenesisMember{Node: n, Store: fakeStore(n), Replica: ident.ReplicaID(n)})
	}
	f.apply(genesis)
	for n := ident.NodeID(1); n <= 3; n++ {
		f.apply(&metadata.RegisterBroker{
			Node: n, Store: fakeStore(n), Previous: f.Image().StoreOf(n),
			KafkaHost: fmt.Sprintf("node-%d", n), KafkaPort: 9091 + int32(n), RaftAddr: "r", AdminAddr: "a", Rack: fmt.Sprintf("rack-%d", n),
		})
	}
	return f
}

func fakeStore(n ident.NodeID) ident.StoreID { return ident.StoreID{0: 0xaa, 15: byte(n)} }

// apply applies a command that must not be refused.
func (f *fakeCluster) apply(cmd metadata.Command) any {
	f.t.Helper()
	res, err := f.Submit(context.Background(), cmd)
	if err != nil {
		f.t.Fatalf("%s: %v", cmd.Kind(), err)
	}
	return res
}

func (f *fakeCluster) Submit(_ context.Context, cmd metadata.Command) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.submitted = append(f.submitted, cmd)
	if f.submitErr != nil {
		return nil, f.submitErr
	}
	data, err := metadata.Encode(cmd)
	if err != nil {
		return nil, err
	}
	f.index++
	results, err := f.sm.Apply([]raftgroup.Entry{{Index: f.index, Term: 1, Data: data}})
	if err != nil {
		return nil, err
	}
	for g := range f.store.Image().Groups() {
		f.host(g)
	}
	r := results[0].(*metadata.Reply)
	return r.Result, r.Err
}

// host makes this node the leader of a group it does not know yet. f.mu is held.
func (f *fakeCluster) host(g *metadata.Partition) {
	if g.Topic == metadata.OffsetsTopic && f.coords[g.Group] == nil {
		f.coords[g.Group] = newShard(f.t)
		f.leaders.Set(g.Group, 1, true)
		return
	}
	if g.TopicID.IsZero() || f.parts[g.Group] != nil {
		return
	}
	p := newFakePartition()
	f.parts[g.Group] = p
	if f.leaderless {
		p.leading = false
		return
	}
	f.leaders.Set(g.Group, ident.Term(p.epoch), true)
}

func (f *fakeCluster) Image() *metadata.Image { return f.store.Image() }
func (f *fakeCluster) Self() ident.NodeID     { return fakeSelf }
func (f *fakeCluster) Config() Config         { return f.cfg }

func (f *fakeCluster) Leader(g ident.GroupID) (ident.NodeID, int32, bool) {
	l := f.leaders.Get(g)
	return l.Node, int32(l.Term), l.Node != 0
}

func (f *fakeCluster) Alive(n ident.NodeID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.down[n]
}

func (f *fakeCluster) Changed() (image, leaders <-chan struct{}) {
	return f.store.Changed(), f.leaders.Changed()
}

func (f *fakeCluster) Partition(g ident.GroupID) Partition {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.parts[g]; p != nil {
		return p
	}
	return nil
}

func (f *fakeCluster) Coordinator(g ident.GroupID) Coordinator {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.coords[g]
}

func (f *fakeCluster) DiskBytes() (total, free int64) { return 1 << 40, 1 << 39 }

func (f *fakeCluster) Full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.full
}

// topic creates a topic and returns its partitions in memory.
func (f *fakeCluster) topic(name string, partitions int32, configs map[string]string) []*fakePartition {
	f.t.Helper()
	return f.topicWithID(newTopicID(), name, partitions, configs)
}

func (f *fakeCluster) topicWithID(id metadata.TopicID, name string, partitions int32, configs map[string]string) []*fakePartition {
	f.t.Helper()
	res := f.apply(&metadata.CreateTopics{Topics: []metadata.NewTopic{{
		Name: name, ID: id, Partitions: partitions, ReplicationFactor: 3, Configs: configs,
	}}}).(*metadata.CreateTopicsResult)
	if err := res.Topics[0].Err; err != nil {
		f.t.Fatalf("topic %s: %v", name, err)
	}
	var parts []*fakePartition
	for _, mp := range f.Image().Topic(name).Partitions {
		parts = append(parts, f.parts[mp.Group])
	}
	return parts
}

// moveLeader makes another node the leader of a partition.
func (f *fakeCluster) moveLeader(topic string, n int32, to ident.NodeID, term ident.Term) {
	f.t.Helper()
	mp := f.Image().TopicPartition(topic, n)
	f.parts[mp.Group].resign()
	other := metadata.NewLeaders(to)
	if err := f.leaders.Merge(to, other.Set(mp.Group, term, true)); err != nil {
		f.t.Fatal(err)
	}
}

// fakePartition is a partition in memory.
type fakePartition struct {
	mu       sync.Mutex
	batches  [][]byte // stamped
	next     int64
	start    int64
	epoch    int32
	leading  bool
	watchers map[*partition.Watcher]bool
	// appendErr and readIndexErr are answered in place of doing it.
	appendErr    error
	appendResult *partition.AppendResult
	readIndexErr error
	// onReadIndex runs in ReadIndex.
	onReadIndex func()
	// readIndexStuck: no majority answers ReadIndex.
	readIndexStuck bool
	// held collects appends until release, if hold is set.
	hold bool
	held []func()
	opts []partition.AppendOptions
	// reads counts calls of Read.
	reads int
}

func newFakePartition() *fakePartition {
	return &fakePartition{epoch: 5, leading: true, watchers: map[*partition.Watcher]bool{}}
}

func (p *fakePartition) Append(batch []byte, opt partition.AppendOptions, done func(partition.AppendResult)) {
	p.mu.Lock()
	p.opts = append(p.opts, opt)
	run := func() { done(p.apply(batch)) }
	if p.hold {
		p.held = append(p.held, run)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	run()
}

func (p *fakePartition) apply(batch []byte) partition.AppendResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.appendResult != nil:
		return *p.appendResult
	case p.appendErr != nil:
		return partition.AppendResult{BaseOffset: -1, LogAppendTimeMs: -1, LogStartOffset: -1, Err: p.appendErr}
	case !p.leading:
		return partition.AppendResult{BaseOffset: -1, LogAppendTimeMs: -1, LogStartOffset: -1, Err: partition.ErrNotLeader}
	}
	b, err := record.Header(batch)
	if err != nil {
		return partition.AppendResult{Err: err}
	}
	stamped := append([]byte(nil), batch...)
	record.Stamp(stamped, p.next, p.epoch)
	res := partition.AppendResult{BaseOffset: p.next, LogAppendTimeMs: -1, LogStartOffset: p.start}
	p.next += int64(b.LastOffsetDelta()) + 1
	p.batches = append(p.batches, stamped)
	if b.TimestampType() == record.LogAppendTime {
		res.LogAppendTimeMs = b.MaxTimestamp()
	}
	p.wake()
	return res
}

// release lets held appends go on.
func (p *fakePartition) release() {
	p.mu.Lock()
	held := p.held
	p.held, p.hold = nil, false
	p.mu.Unlock()
	for _, run := range held {
		run()
	}
}

func (p *fakePartition) resign() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leading = false
	p.wake()
}

func (p *fakePartition) Read(offset int64, maxBytes int) (partition.ReadResult, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reads++
	res := partition.ReadResult{HighWatermark: p.next, LastStableOffset: p.next, LogStartOffset: p.start, LeaderEpoch: p.epoch}
	if offset < p.start || offset > p.next {
		return res, partition.ErrOffsetOutOfRange
	}
	for _, raw := range p.batches {
		b, _ := record.Header(raw)
		if b.LastOffset() < offset {
			continue
		}
		if len(res.Data) > 0 && len(res.Data)+len(raw) > maxBytes {
			break
		}
		res.Data = append(res.Data, raw...)
	}
	if res.Data != nil { // lies in a buffer that is used again, as a partition's does
		res.Buffer = bytepool.Get(len(res.Data) + 10)
		res.Data = res.Buffer[10:][:copy(res.Buffer[10:], res.Data)]
	}
	return res, nil
}

func (p *fakePartition) Leader() (bool, int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leading, p.epoch
}

func (p *fakePartition) HighWatermark() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
}

func (p *fakePartition) LogStartOffset() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.start
}

func (p *fakePartition) find(ok func(record.Record) bool) (int64, int64, int32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	offset, ts := int64(-1), int64(-1)
	for _, raw := range p.batches {
		err := record.ForEach(raw, func(r record.Record) error {
			if ok(r) {
				offset, ts = r.Offset, r.Timestamp
			}
			return nil
		})
		if err != nil {
			return -1, -1, -1, err
		}
	}
	return offset, ts, p.epoch, nil
}

func (p *fakePartition) OffsetForTimestamp(ts int64) (int64, int64, int32, error) {
	found := false
	return p.find(func(r record.Record) bool {
		hit := !found && r.Timestamp >= ts
		found = found || hit
		return hit
	})
}

func (p *fakePartition) MaxTimestamp() (int64, int64, int32, error) {
	high := int64(-1)
	return p.find(func(r record.Record) bool {
		if r.Timestamp > high {
			high = r.Timestamp
			return true
		}
		return false
	})
}

func (p *fakePartition) EpochEndOffset(epoch int32) (int32, int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if epoch > p.epoch || epoch < 0 {
		return -1, -1
	}
	if epoch < p.epoch {
		return epoch, 0 // everything is of the newest epoch
	}
	return p.epoch, p.next
}

func (p *fakePartition) ReadIndex(ctx context.Context) error {
	p.mu.Lock()
	f, err, stuck := p.onReadIndex, p.readIndexErr, p.readIndexStuck
	p.mu.Unlock()
	if stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	if f != nil {
		f()
	}
	return err
}

func (p *fakePartition) Watch(w *partition.Watcher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watchers[w] = true
}

func (p *fakePartition) Unwatch(w *partition.Watcher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.watchers, w)
}

// wake tells the watchers. p.mu is held.
func (p *fakePartition) wake() {
	for w := range p.watchers {
		w.Notify()
	}
}

func (p *fakePartition) Size() int64 { return p.HighWatermark() }

func (p *fakePartition) SetLogStart(_ context.Context, offset int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.start = max(p.start, offset)
	return nil
}

// roundTrip sends req as a client's bytes would arrive and returns the response
// as the client decodes it; nil if there was none.
func roundTrip[R kmsg.Response](t testing.TB, h *Handler, req kmsg.Request) R {
	t.Helper()
	resp, _ := serve(t, h, req).(R)
	return resp
}

// serve is roundTrip for any response.
func serve(t testing.TB, h *Handler, req kmsg.Request) kmsg.Response {
	t.Helper()
	replies := make(chan kmsg.Response, 2)
	h.Serve(t.Context(), request(t, req), func(r kmsg.Response) { replies <- r })
	return decoded(t, req, <-replies)
}

// request brings req into the form that wire hands on.
func request(t testing.TB, req kmsg.Request) *wire.Request {
	t.Helper()
	body := kmsg.RequestForKey(req.Key())
	body.SetVersion(req.GetVersion())
	if err := body.ReadFrom(req.AppendTo(nil)); err != nil {
		t.Fatalf("%T version %d: request: %v", req, req.GetVersion(), err)
	}
	return &wire.Request{Key: req.Key(), Version: req.GetVersion(), ClientID: "test", Body: body}
}

// decoded encodes a response and decodes it again.
func decoded(t testing.TB, req kmsg.Request, resp kmsg.Response) kmsg.Response {
	t.Helper()
	if resp == nil {
		return nil
	}
	if resp.GetVersion() != req.GetVersion() || resp.Key() != req.Key() {
		t.Fatalf("%T version %d answered by %T version %d", req, req.GetVersion(), resp, resp.GetVersion())
	}
	again := req.ResponseKind()
	if err := again.ReadFrom(resp.AppendTo(nil)); err != nil {
		t.Fatalf("%T version %d: response: %v", req, req.GetVersion(), err)
	}
	return again
}
