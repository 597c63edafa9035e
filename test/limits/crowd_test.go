package limits

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/test/harness"
)

const (
	idlers      = 5000
	slowReaders = 500
	stored      = 96 << 20 // what slow readers ask for

	// maxCrowdMemory bounds the node they are all connected to: 128 MiB of responses on their
	// way and as much that the collector has not seen to, 20 KiB a connection, and the rest of a node.
	maxCrowdMemory = 1 << 30
)

// TestCrowd connects five thousand clients that are silent and five hundred that ask for
// much and read little or nothing, all to one node. An ordinary client's records and
// fetches take about as long as before, memory stays below its bound, and the node lets
// go of all of them, when they leave and when it stops itself.
func TestCrowd(t *testing.T) {
	if !whole() {
		harness.Long(t)
	}
	lasts := 8 * time.Second
	if whole() {
		lasts = 30 * time.Second
	}
	idle := idlers
	if s := os.Getenv("CHRONIK_TEST_IDLE"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("CHRONIK_TEST_IDLE=%q", s)
		}
		idle = n
	}
	needFiles(t, uint64(idle+slowReaders)*5/4+1000) // the node keeps a fifth and more for itself
	c := harness.Start(t, harness.Options{})
	c.CreateTopic(topic, 1)
	addr := leaders(c, topic)[0]
	node := nodeAt(c, addr)
	fill(t, addr)
	before, was := files(t, node.PID), terms(c)
	defer func() { // also when something below ends the test
		if node.Alive() {
			sameTerms(c, was)
		}
	}()

	o := newOrdinary(t, c, addr)
	began := time.Now()
	<-time.After(5 * time.Second)
	o.running(t)
	crowded := time.Now()
	var conns []*rawConn
	defer func() {
		for _, x := range conns {
			_ = x.Close()
		}
	}()
	for range idle {
		x, err := dial(addr, 0)
		if err != nil {
			t.Fatalf("idle connection %d: %v", len(conns), err)
		}
		conns = append(conns, x)
		if err := x.ask(kmsg.NewPtrApiVersionsRequest(), kmsg.NewPtrApiVersionsResponse()); err != nil {
			t.Fatalf("idle connection %d: %v", len(conns), err)
		}
	}
	t.Logf("%d idle connections: node %d has %d MB, %d files", idle, node.ID, status(t, node.PID, "VmRSS")/1e6, files(t, node.PID))
	quit := make(chan struct{})
	var wg sync.WaitGroup
	for i := range slowReaders {
		x, err := dial(addr, 4<<10)
		if err != nil {
			t.Fatalf("slow reader %d: %v", i, err)
		}
		conns = append(conns, x)
		for range 4 {
			if err := x.send(fetchRequest(topic, 0, 0, 50<<20)); err != nil {
				t.Fatalf("slow reader %d: %v", i, err)
			}
		}
		if i%2 == 0 { // the others do not read at all
			wg.Go(func() { trickle(x, quit) })
		}
	}
	all := time.Now()
	<-time.After(lasts)
	o.running(t)
	ended := time.Now()
	for _, k := range []struct {
		name string
		s    *samples
	}{{"produce", &o.produced}, {"fetch", &o.fetched}} {
		calm, n := k.s.between(began, crowded, 0.99)
		busy, m := k.s.between(all, ended, 0.99)
		t.Logf("%s: p99 %v of %d before, %v of %d with the crowd", k.name, calm, n, busy, m)
		if m == 0 || busy > max(5*calm, 250*time.Millisecond) {
			t.Errorf("%s: p99 went from %v to %v", k.name, calm, busy)
		}
	}
	p := peak(t, node)
	t.Logf("node %d had at most %d MB; %v", node.ID, p/1e6, lines(t, node, "chronik_wire_connections"))
	if p > maxCrowdMemory {
		t.Errorf("node %d had %d MB, the bound is %d", node.ID, p/1e6, maxCrowdMemory/1_000_000)
	}

	// Half of them leave; the node lets go of them. The rest stays until it is stopped.
	for _, x := range conns[:len(conns)/2] {
		_ = x.Close()
	}
	c.Eventually(10*time.Second, "connections that left are closed", func() error {
		if n := files(t, node.PID); n > before+len(conns)/2+100 {
			return fmt.Errorf("%d files open, %d before", n, before)
		}
		return nil
	})
	o.stop()
	sameTerms(c, was)
	stopping := time.Now()
	c.Stop(node.ID)
	t.Logf("the node stopped in %v with %d connections left", time.Since(stopping), len(conns)-len(conns)/2)
	close(quit)
	wg.Wait()
}

// trickle reads a few bytes a second.
func trickle(x *rawConn, quit <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var b [8]byte
	for {
		select {
		case <-quit:
			return
		case <-tick.C:
		}
		_ = x.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := x.Read(b[:]); errors.Is(err, io.EOF) {
			return
		}
	}
}

func nodeAt(c *harness.Cluster, addr string) harness.Node {
	c.TB.Helper()
	for _, n := range c.Nodes() {
		if n.Kafka == addr {
			return n
		}
	}
	c.TB.Fatalf("no node has %s", addr)
	return harness.Node{}
}

// fill produces what slow readers ask for, in batches of about 100 KB.
func fill(t *testing.T, addr string) {
	t.Helper()
	x, err := dial(addr, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	b := batch(t, 100, 1000)
	for n := 0; n < stored; n += len(b) {
		resp := kmsg.NewPtrProduceResponse()
		if err := x.ask(produceRequest(topic, 0, b), resp); err != nil {
			t.Fatal(err)
		}
		if code := produceError(resp); code != 0 {
			t.Fatalf("produce: error %d", code)
		}
	}
}

// lines returns the metrics whose names begin with prefix.
func lines(t *testing.T, n harness.Node, prefix string) []string {
	t.Helper()
	resp, err := http.Get("http://" + n.Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.HasPrefix(line, prefix) {
			out = append(out, line)
		}
	}
	return out
}

// ordinary is a client like most: it produces a record and fetches a megabyte, again and again.
type ordinary struct {
	produced, fetched samples
	cancel            context.CancelFunc
	wg                sync.WaitGroup
	mu                sync.Mutex
	err               error
}

func newOrdinary(t *testing.T, c *harness.Cluster, addr string) *ordinary {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	o := &ordinary{cancel: cancel}
	t.Cleanup(o.stop)
	cl := c.Client(kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(0))
	o.every(ctx, func() error {
		began := time.Now()
		err := cl.ProduceSync(ctx, &kgo.Record{Value: []byte("ordinary")}).FirstErr()
		o.produced.add(began)
		return err
	})
	x, err := dial(addr, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	offset := int64(0)
	o.every(ctx, func() error {
		began := time.Now()
		resp := kmsg.NewPtrFetchResponse()
		if err := x.ask(fetchRequest(topic, 0, offset, 1<<20), resp); err != nil {
			return err
		}
		o.fetched.add(began)
		p := &resp.Topics[0].Partitions[0]
		if p.ErrorCode != 0 || len(p.RecordBatches) == 0 {
			return fmt.Errorf("fetch at %d: error %d, %d bytes", offset, p.ErrorCode, len(p.RecordBatches))
		}
		offset = (offset + 1000) % 90_000
		return nil
	})
	return o
}

// every runs f about fifty times a second until the context ends or it fails.
func (o *ordinary) every(ctx context.Context, f func() error) {
	o.wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := f(); err != nil {
				o.mu.Lock()
				if ctx.Err() == nil && o.err == nil {
					o.err = err
				}
				o.mu.Unlock()
				return
			}
		}
	})
}

// running fails the test when the client does not go on.
func (o *ordinary) running(t *testing.T) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		t.Fatalf("the ordinary client failed: %v", o.err)
	}
}

func (o *ordinary) stop() {
	o.cancel()
	o.wg.Wait()
}
