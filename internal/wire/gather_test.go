package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"chronik/internal/bytepool"
)

// drawFetch draws a response with everything that a Fetch response can carry.
func drawFetch(t *rapid.T) *kmsg.FetchResponse {
	text := rapid.StringN(0, 300, 300)
	i32, i64 := rapid.Int32Min(-1), rapid.Int64Min(-1)
	resp := kmsg.NewPtrFetchResponse()
	resp.Version = int16(rapid.IntRange(0, 18).Draw(t, "version"))
	resp.ThrottleMillis, resp.SessionID = i32.Draw(t, "throttle"), i32.Draw(t, "session")
	resp.ErrorCode = rapid.Int16().Draw(t, "error")
	for range rapid.IntRange(0, 3).Draw(t, "topics") {
		ft := kmsg.NewFetchResponseTopic()
		ft.Topic = text.Draw(t, "topic")
		copy(ft.TopicID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		for range rapid.IntRange(0, 3).Draw(t, "partitions") {
			fp := kmsg.NewFetchResponseTopicPartition()
			fp.Partition, fp.PreferredReadReplica = i32.Draw(t, "partition"), i32.Draw(t, "replica")
			fp.ErrorCode = rapid.Int16().Draw(t, "code")
			fp.HighWatermark, fp.LastStableOffset, fp.LogStartOffset = i64.Draw(t, "high"), i64.Draw(t, "stable"), i64.Draw(t, "low")
			if rapid.Bool().Draw(t, "tags") {
				fp.DivergingEpoch.Epoch, fp.DivergingEpoch.EndOffset = i32.Draw(t, "epoch"), i64.Draw(t, "end")
				fp.CurrentLeader.LeaderID, fp.CurrentLeader.LeaderEpoch = i32.Draw(t, "leader"), i32.Draw(t, "leader epoch")
				fp.SnapshotID.EndOffset, fp.SnapshotID.Epoch = i64.Draw(t, "snapshot"), i32.Draw(t, "snapshot epoch")
			}
			if n := rapid.IntRange(-1, 2).Draw(t, "aborted"); n >= 0 {
				fp.AbortedTransactions = make([]kmsg.FetchResponseTopicPartitionAbortedTransaction, n)
				for k := range fp.AbortedTransactions {
					fp.AbortedTransactions[k].ProducerID, fp.AbortedTransactions[k].FirstOffset = i64.Draw(t, "producer"), i64.Draw(t, "first")
				}
			}
			if n := rapid.SampledFrom([]int{-1, 0, 1, 127, minCut - 1, minCut, minCut + 1, 70_000}).Draw(t, "records"); n >= 0 {
				fp.RecordBatches = bytes.Repeat([]byte{byte(n), 7}, n)[:n]
			}
			ft.Partitions = append(ft.Partitions, fp)
		}
		resp.Topics = append(resp.Topics, ft)
	}
	for range rapid.IntRange(0, 2).Draw(t, "brokers") {
		b := kmsg.NewFetchResponseBroker()
		b.NodeID, b.Port, b.Host = i32.Draw(t, "node"), i32.Draw(t, "port"), text.Draw(t, "host")
		if rapid.Bool().Draw(t, "rack") {
			rack := text.Draw(t, "its rack")
			b.Rack = &rack
		}
		resp.Brokers = append(resp.Brokers, b)
	}
	return resp
}

// TestGatherWritesWhatKmsgWrites holds the encoder of Fetch responses to kmsg's.
func TestGatherWritesWhatKmsgWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		resp := drawFetch(t)
		var g gather
		g.fetch(resp)
		n := g.size()
		got, want := bytes.Join(g.slices(), nil), resp.AppendTo(nil)
		if !bytes.Equal(got, want) || n != len(want) {
			t.Fatalf("version %d: %d bytes that are not the %d of kmsg\n%x\n%x", resp.Version, len(got), len(want), got, want)
		}
	})
}

// dribble is a connection that takes as much as it likes of each write.
type dribble struct {
	net.Conn
	got   bytes.Buffer
	takes []int
	most  int // of one write
}

func (d *dribble) SetWriteDeadline(time.Time) error { return nil }

func (d *dribble) Write(b []byte) (int, error) {
	d.most = max(d.most, len(b))
	n := len(b)
	if len(d.takes) > 0 {
		n, d.takes = min(d.takes[0], n), d.takes[1:]
	}
	d.got.Write(b[:n])
	if n < len(b) {
		return n, context.DeadlineExceeded
	}
	return n, nil
}

// TestGatherSends: what is written, in whatever pieces it is taken, is what was encoded.
func TestGatherSends(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		resp := drawFetch(rt)
		p := &pending{id: 7, key: resp.Key(), resp: resp}
		var g gather
		g.reset(nil)
		g.response(p)
		g.response(p)
		want := bytes.Join(g.slices(), nil)
		d := &dribble{takes: rapid.SliceOf(rapid.IntRange(1, 5000)).Draw(rt, "takes")}
		parts := g.parts
		for left := g.size(); left > 0; {
			n, err := g.send(d, parts, 30_000)
			if n == 0 {
				rt.Fatalf("nothing is taken: %v", err)
			}
			parts = skip(parts, n)
			left -= n
		}
		if !bytes.Equal(d.got.Bytes(), want) || d.most > 30_000 {
			rt.Fatalf("%d bytes in writes of up to %d, want %d", d.got.Len(), d.most, len(want))
		}
		if size := int(binary.BigEndian.Uint32(want)); size != len(want)/2-4 {
			rt.Fatalf("a frame of %d bytes says %d", len(want)/2, size)
		}
	})
}

// TestRecordsAreGivenBackOnceWritten: buffers are used again, and nobody gets what another
// response wrote into them.
func TestRecordsAreGivenBackOnceWritten(t *testing.T) {
	defer bytepool.Poison()()
	const size = 300_000
	var mu sync.Mutex
	seen := map[*byte]bool{} // distinct buffers
	r := start(t, Options{}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		resp := req.Body.ResponseKind().(*kmsg.FetchResponse)
		ft := kmsg.NewFetchResponseTopic()
		for range 3 {
			b := bytepool.Get(size)
			for i := range b {
				b[i] = byte(req.CorrelationID)
			}
			mu.Lock()
			seen[&b[0]] = true
			mu.Unlock()
			fp := kmsg.NewFetchResponseTopicPartition()
			fp.RecordBatches = b
			ft.Partitions = append(ft.Partitions, fp)
			req.Hold(b)
		}
		resp.Topics = append(resp.Topics, ft)
		reply(resp)
	})
	const clients, requests = 4, 30
	var wg sync.WaitGroup
	for k := range clients {
		c := r.dial()
		wg.Go(func() {
			for i := range requests {
				id := int32(k*requests + i)
				req := kmsg.NewPtrFetchRequest()
				req.Version = 4
				c.send(id, req)
				_, body := c.recv()
				resp := kmsg.NewPtrFetchResponse()
				resp.Version = 4
				if err := resp.ReadFrom(body); err != nil {
					t.Error(err)
					return
				}
				want := bytes.Repeat([]byte{byte(id)}, size)
				for _, fp := range resp.Topics[0].Partitions {
					if !bytes.Equal(fp.RecordBatches, want) {
						t.Errorf("request %d got another's bytes", id)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if n := len(seen); n > clients*requests { // a quarter of what was asked for; the collector takes some
		t.Errorf("%d buffers for %d responses of three", n, clients*requests)
	}
}

// TestRecordsOfADeadConnectionAreNotGivenBack: the writer may be at them still.
func TestRecordsOfADeadConnectionAreNotGivenBack(t *testing.T) {
	defer bytepool.Poison()()
	held := make(chan []byte, 1)
	r := start(t, Options{}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		b := bytepool.Get(8 << 20) // more than sockets take
		for i := range b {
			b[i] = 1
		}
		resp := req.Body.ResponseKind().(*kmsg.FetchResponse)
		ft, fp := kmsg.NewFetchResponseTopic(), kmsg.NewFetchResponseTopicPartition()
		fp.RecordBatches = b
		ft.Partitions = append(ft.Partitions, fp)
		resp.Topics = append(resp.Topics, ft)
		req.Hold(b)
		reply(resp)
		held <- b
	})
	c := r.dial()
	req := kmsg.NewPtrFetchRequest()
	req.Version = 4
	c.send(1, req)
	b := <-held
	if _, err := io.ReadFull(c, make([]byte, 1<<10)); err != nil { // it is being written
		t.Fatal(err)
	}
	_ = c.Close()
	if err := r.srv.Close(t.Context()); err != nil { // reader and writer have ended
		t.Fatal(err)
	}
	if b[0] != 1 || b[len(b)-1] != 1 {
		t.Error("given back")
	}
}
