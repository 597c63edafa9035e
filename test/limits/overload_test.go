package limits

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/test/harness"
)

const (
	topic      = "load"
	partitions = 6
	crowd      = 200 // connections that offer too much
	times      = 10  // of what is sustained
	recovery   = 5 * time.Second

	// maxMemory bounds each node, whatever is offered. Live are at most 256 MiB of
	// requests, what is worked on of them once more as entries, the raftlog's cache of
	// 64 MiB, and what followers are sent; the collector lets as much again lie.
	maxMemory = 1536 << 20

	// standstill of a processor explains an election: half an election timeout.
	standstill = 500 * time.Millisecond
	attempts   = 3
)

// TestOverload offers ten times what the cluster sustains, from 200 connections
// that do not wait for answers. Memory stays below its bound, no leadership moves,
// and latency is as before within five seconds of the end.
func TestOverload(t *testing.T) {
	if !whole() {
		harness.Long(t)
	}
	lasts := 10 * time.Second
	if whole() {
		lasts = time.Minute
	}
	machine := watchCPUs(t)
	c := harness.Start(t, harness.Options{Set: []string{"log.level=debug"}}) // elections are told at that level
	c.CreateTopic(topic, partitions, "retention.bytes=268435456", "segment.bytes=67108864")
	addrs := leaders(c, topic)
	b := batch(t, 16, 1024)

	calm := newProbe(t, c)
	calmed := time.Now()
	<-time.After(3 * time.Second)
	base, n := calm.between(calmed, time.Now(), 0.99)
	t.Logf("latency of a single record, nothing else going on: p99 %v of %d", base, n)

	began := time.Now()
	l := startLoaders(t, addrs, b, 12, 16, 0)
	<-time.After(3 * time.Second)
	l.stop()
	rate := float64(l.acked.Load()*int64(len(b))) / time.Since(began).Seconds()
	t.Logf("sustained: %.1f MB/s, %d requests, %d refused", rate/1e6, l.acked.Load(), l.refused.Load())
	if l.acked.Load() == 0 {
		t.Fatal("nothing was acknowledged")
	}
	bound := max(5*base, 100*time.Millisecond)
	for i := 1; ; i++ {
		before := terms(c)
		machine.stood()
		recovered := overload(t, calm, func() *loaders { return startLoaders(t, addrs, b, crowd, 0, times*rate) }, lasts, bound)
		stood, elected := machine.stood(), elections(c, before)
		t.Logf("longest standstill of a processor: %v", stood)
		if len(elected) > 0 && stood >= standstill {
			// Nothing of this can be told from the cluster's own doing.
			if i == attempts {
				t.Fatalf("%d times a processor of this machine stood still: this says nothing", i)
			}
			t.Logf("once more, for a processor stood still: %q", elected)
			addrs = leaders(c, topic)
			continue
		}
		for _, where := range elected {
			t.Errorf("an election: %s", where)
		}
		if recovered < 0 || recovered > recovery {
			t.Errorf("latency came back after %v (-1: not at all), want %v", recovered, recovery)
		}
		break
	}
	calm.stop()
	for _, n := range c.Nodes() {
		p := peak(t, n)
		t.Logf("node %d had at most %d MB", n.ID, p/1e6)
		if p > maxMemory {
			t.Errorf("node %d had %d MB, the bound is %d", n.ID, p/1e6, maxMemory/1_000_000)
		}
	}
}

// overload offers a load for a while. It returns how long after the end of it latency was within bound again,
// -1 if it was not.
func overload(t *testing.T, calm *probe, start func() *loaders, lasts, bound time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	l := start()
	<-time.After(lasts)
	worst, _ := calm.between(began, time.Now(), 0.99)
	l.stop() // with what still waits in their sockets
	ended := time.Now()
	perSecond := func(n int64) float64 { return float64(n*int64(l.size)) / ended.Sub(began).Seconds() / 1e6 }
	t.Logf("offered for %v: %.1f MB/s asked for, %.1f MB/s taken by sockets, %.1f MB/s acknowledged, %d requests refused; a record meanwhile: p99 %v",
		lasts, l.rate/1e6, perSecond(l.sent.Load()), perSecond(l.acked.Load()), l.refused.Load(), worst)
	for i := range 2 * int(recovery/time.Second) {
		from := ended.Add(time.Duration(i) * time.Second)
		<-time.After(time.Until(from.Add(time.Second)))
		calm.settle(from.Add(time.Second), ended.Add(2*recovery))
		p90, n := calm.between(from, from.Add(time.Second), 0.90)
		t.Logf("second %d after the end: p90 %v of %d", i+1, p90, n)
		if n > 0 && p90 <= bound {
			return time.Duration(i+1) * time.Second // the second that just ended was good
		}
	}
	return -1
}

// probe produces single records as an ordinary client does, on time, whether or not
// those before were answered.
type probe struct {
	samples
	pending sync.Map // of time.Time: begun, not answered
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

func newProbe(t *testing.T, c *harness.Cluster) *probe {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &probe{cancel: cancel}
	cl := c.Client(kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	for i := range int32(partitions) {
		if err := cl.ProduceSync(ctx, &kgo.Record{Partition: i, Value: []byte("first")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	p.wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for i := int32(0); ; i = (i + 1) % partitions {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			began := time.Now()
			p.pending.Store(began, true)
			cl.TryProduce(context.Background(), &kgo.Record{Partition: i, Value: []byte("probe")}, func(_ *kgo.Record, err error) {
				p.pending.Delete(began)
				p.add(began)
				if err != nil {
					t.Errorf("an ordinary record was refused: %v", err)
				}
			})
		}
	})
	t.Cleanup(p.stop)
	return p
}

func (p *probe) stop() {
	p.cancel()
	p.wg.Wait()
}

// settle waits until what began before limit is answered, but not beyond end.
func (p *probe) settle(limit, end time.Time) {
	for ; time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		open := false
		p.pending.Range(func(k, _ any) bool {
			open = k.(time.Time).Before(limit)
			return !open
		})
		if !open {
			return
		}
	}
}

// loaders send one batch again and again.
type loaders struct {
	t                    *testing.T
	conns                []*rawConn
	quit                 chan struct{}
	over                 sync.Once
	wg                   sync.WaitGroup
	sent, acked, refused atomic.Int64
	size                 int     // of a batch, in bytes
	rate                 float64 // bytes a second asked for; 0: as many as are answered
}

// startLoaders opens n connections. With a window each waits for answers when that
// many requests are out; without, all of them together send rate bytes a second as
// long as the kernel takes them.
func startLoaders(t *testing.T, addrs []string, b []byte, n, window int, rate float64) *loaders {
	t.Helper()
	l := &loaders{t: t, quit: make(chan struct{}), size: len(b), rate: rate}
	for i := range n {
		c, err := dial(addrs[i%len(addrs)], 0)
		if err != nil {
			t.Fatal(err)
		}
		l.conns = append(l.conns, c)
		frame := formatter.AppendRequest(nil, produceRequest(topic, int32(i%len(addrs)), b), 1)
		var slots chan struct{}
		if window > 0 {
			slots = make(chan struct{}, window)
		}
		var pause time.Duration
		if rate > 0 {
			pause = time.Duration(float64(len(frame)) * float64(n) / rate * float64(time.Second))
		}
		l.wg.Go(func() { l.write(c, frame, slots, pause) })
		l.wg.Go(func() { l.read(c, slots) })
	}
	t.Cleanup(l.stop)
	return l
}

func (l *loaders) write(c *rawConn, frame []byte, slots chan struct{}, pause time.Duration) {
	for due := time.Now(); ; due = due.Add(pause) {
		if slots != nil {
			select {
			case slots <- struct{}{}:
			case <-l.quit:
				return
			}
		}
		if wait := time.Until(due); wait > 0 {
			select {
			case <-time.After(wait):
			case <-l.quit:
				return
			}
		} else if wait < -time.Second {
			due = time.Now() // what could not be offered is not made up for
		}
		select {
		case <-l.quit:
			return
		default:
		}
		if _, err := c.Write(frame); err != nil {
			return
		}
		l.sent.Add(1)
	}
}

func (l *loaders) read(c *rawConn, slots chan struct{}) {
	for {
		b, err := c.frame()
		if err != nil {
			return
		}
		resp := kmsg.NewPtrProduceResponse()
		resp.Version = 9
		if err := resp.ReadFrom(b[1:]); err != nil {
			l.t.Errorf("a response that cannot be read: %v", err)
			return
		}
		if code := produceError(resp); code != 0 {
			l.refused.Add(1)
		} else {
			l.acked.Add(1)
		}
		if slots != nil {
			<-slots
		}
	}
}

// stop ends the load and closes the connections.
func (l *loaders) stop() {
	l.over.Do(func() { close(l.quit) })
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.wg.Wait()
}
