package kafka

import (
	"context"
	"errors"
	"math"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/bytepool"
	"chronik/internal/partition"
	"chronik/internal/record"
	"chronik/internal/wire"
)

func fetched(t testing.TB, h *Handler, req *kmsg.FetchRequest) kmsg.FetchResponseTopicPartition {
	t.Helper()
	return roundTrip[*kmsg.FetchResponse](t, h, req).Topics[0].Partitions[0]
}

// waiting asks for partition 0 of "orders" at its end, and waits up to 10 s.
func waiting(offset int64) *kmsg.FetchRequest {
	req := fetchOf("orders", 0, offset)
	req.MaxWaitMillis = 10_000
	return req
}

func TestFetchWaits(t *testing.T) {
	for _, tc := range []struct {
		name string
		// during happens one second into the wait.
		during func(t *testing.T, f *fakeCluster, p *fakePartition, cancel func())
		min    int32
		took   time.Duration
		want   *kerr.Error
		bytes  bool
	}{
		{"for nothing", func(*testing.T, *fakeCluster, *fakePartition, func()) {}, 1, 10 * time.Second, nil, false},
		{"for records", func(t *testing.T, _ *fakeCluster, p *fakePartition, _ func()) { appendRecords(t, p, 1) }, 1, time.Second, nil, true},
		{"for more than there is", func(t *testing.T, _ *fakeCluster, p *fakePartition, _ func()) { appendRecords(t, p, 1) }, 100_000, 10 * time.Second, nil, true},
		{"until the leader moves", func(_ *testing.T, f *fakeCluster, _ *fakePartition, _ func()) { f.moveLeader("orders", 0, 2, 9) }, 1, time.Second, kerr.NotLeaderForPartition, false},
		{"until the client leaves", func(_ *testing.T, _ *fakeCluster, _ *fakePartition, cancel func()) { cancel() }, 1, time.Second, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, f := newHandler(t)
				p := f.topic("orders", 1, nil)[0]
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				req := waiting(0)
				req.MinBytes = tc.min
				began := time.Now()
				done := make(chan kmsg.Response, 1)
				go h.Serve(ctx, request(t, req), func(r kmsg.Response) { done <- r })
				time.Sleep(time.Second)
				tc.during(t, f, p, cancel)
				resp := decoded(t, req, <-done).(*kmsg.FetchResponse)
				if took := time.Since(began); took != tc.took {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				got := resp.Topics[0].Partitions[0]
				wantCode(t, "fetch", got.ErrorCode, tc.want)
				if (len(got.RecordBatches) > 0) != tc.bytes || got.RecordBatches == nil {
					t.Errorf("%d bytes of records, nil: %v", len(got.RecordBatches), got.RecordBatches == nil)
				}
				if len(p.watchers) != 0 {
					t.Error("a watcher stayed")
				}
			})
		})
	}
}

// TestFetchGathersWhatItWaitsFor: what was read before is read again with what came, and
// its buffer given back at once.
func TestFetchGathersWhatItWaitsFor(t *testing.T) {
	defer bytepool.Poison()()
	synctest.Test(t, func(t *testing.T) {
		h, f := newHandler(t)
		p := f.topic("orders", 1, nil)[0]
		size := int32(len(batchOf(t, record.None, 1)))
		req := waiting(0)
		req.MinBytes = 3 * size
		done := make(chan kmsg.Response, 1)
		go h.Serve(t.Context(), request(t, req), func(r kmsg.Response) { done <- r })
		for range 3 {
			synctest.Wait()
			appendRecords(t, p, 1)
		}
		resp := decoded(t, req, <-done).(*kmsg.FetchResponse)
		if got := values(t, resp.Topics[0].Partitions[0].RecordBatches); !slices.Equal(got, []string{"0=v0", "1=v0", "2=v0"}) {
			t.Errorf("records %v", got)
		}
		if p.reads != 3 {
			t.Errorf("%d reads for three batches", p.reads)
		}
	})
}

// TestFetchReadsAgainOnlyWhatMoved: a wait over many partitions costs what
// arrives, not what is there.
func TestFetchReadsAgainOnlyWhatMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := newHandler(t)
		parts := f.topic("orders", 2, nil)
		appendRecords(t, parts[0], 1)
		req := waiting(0)
		req.MinBytes = 4 * int32(len(batchOf(t, record.None, 1)))
		other := req.Topics[0].Partitions[0]
		other.Partition = 1
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, other)
		done := make(chan kmsg.Response, 1)
		go h.Serve(t.Context(), request(t, req), func(r kmsg.Response) { done <- r })
		for range 3 {
			synctest.Wait()
			appendRecords(t, parts[1], 1)
		}
		<-done
		if parts[0].reads != 1 || parts[1].reads != 3 {
			t.Errorf("%d and %d reads, want 1 and 3", parts[0].reads, parts[1].reads)
		}
	})
}

// TestFetchDoesNotWaitForWhatDoesNotFit: a second partition's batch that is over
// its limit will not fit later either.
func TestFetchDoesNotWaitForWhatDoesNotFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := newHandler(t)
		parts := f.topic("orders", 2, nil)
		appendRecords(t, parts[0], 1)
		appendRecords(t, parts[1], 1, 2, 3)
		req := waiting(0)
		req.MinBytes = 1 << 19
		other := req.Topics[0].Partitions[0]
		other.Partition, other.PartitionMaxBytes = 1, 1
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, other)
		began := time.Now()
		resp := roundTrip[*kmsg.FetchResponse](t, h, req)
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		if p := resp.Topics[0].Partitions; len(p[0].RecordBatches) == 0 || len(p[1].RecordBatches) != 0 {
			t.Errorf("%d and %d bytes", len(p[0].RecordBatches), len(p[1].RecordBatches))
		}
	})
}

func TestFetchLimits(t *testing.T) {
	h, f := newHandler(t)
	parts := f.topic("orders", 3, nil)
	var size int32
	for _, p := range parts {
		for range 4 {
			appendRecords(t, p, 1)
		}
		size = int32(len(p.batches[0]))
	}
	for _, tc := range []struct {
		name             string
		maxBytes, perOne int32
		want             []int // batches of each partition
	}{
		{"plenty", 1 << 20, 1 << 20, []int{4, 4, 4}},
		{"a partition's bytes", 1 << 20, 2 * size, []int{2, 2, 2}},
		{"the response's bytes", 5 * size, 1 << 20, []int{4, 1, 0}},
		{"less than a batch", 1, 1 << 20, []int{1, 0, 0}},
		{"less than a batch for each", 1 << 20, 1, []int{1, 0, 0}},
		{"nothing", 0, 0, []int{1, 0, 0}},
		{"below nothing", -5, -5, []int{1, 0, 0}},
	} {
		req := fetchOf("orders", 0, 0)
		req.MaxBytes = tc.maxBytes
		first := req.Topics[0].Partitions[0]
		req.Topics[0].Partitions = nil
		for i := range parts {
			p := first
			p.Partition, p.PartitionMaxBytes = int32(i), tc.perOne
			req.Topics[0].Partitions = append(req.Topics[0].Partitions, p)
		}
		resp := roundTrip[*kmsg.FetchResponse](t, h, req)
		for i, p := range resp.Topics[0].Partitions {
			wantCode(t, tc.name, p.ErrorCode, nil)
			if got := len(p.RecordBatches) / int(size); got != tc.want[i] || p.HighWatermark != 4 || p.RecordBatches == nil {
				t.Errorf("%s: partition %d: %d batches, high watermark %d", tc.name, i, got, p.HighWatermark)
			}
		}
	}
}

func TestFetchOffsets(t *testing.T) {
	h, f := newHandler(t)
	p := f.topic("orders", 1, nil)[0]
	appendRecords(t, p, 1, 2, 3)
	if err := p.SetLogStart(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		offset int64
		want   *kerr.Error
		empty  bool
	}{
		{-1, kerr.OffsetOutOfRange, true},
		{0, kerr.OffsetOutOfRange, true},
		{1, nil, false},
		{2, nil, false}, // the middle of a batch: all of it
		{3, nil, true},
		{4, kerr.OffsetOutOfRange, true},
		{1 << 62, kerr.OffsetOutOfRange, true},
	} {
		got := fetched(t, h, fetchOf("orders", 0, tc.offset))
		wantCode(t, "fetch", got.ErrorCode, tc.want)
		if (len(got.RecordBatches) == 0) != tc.empty || got.RecordBatches == nil {
			t.Errorf("offset %d: %d bytes", tc.offset, len(got.RecordBatches))
		}
	}
}

// TestFetchAboveTheHighWatermarkAsksTheMajority holds correctness rule 26.
func TestFetchAboveTheHighWatermarkAsksTheMajority(t *testing.T) {
	h, f := newHandler(t)
	p := f.topic("orders", 1, nil)[0]
	p.onReadIndex = func() { appendRecords(t, p, 1, 2) } // was committed all along
	got := fetched(t, h, fetchOf("orders", 0, 1))
	wantCode(t, "the watermark was behind", got.ErrorCode, nil)
	if got.HighWatermark != 2 || len(got.RecordBatches) == 0 {
		t.Errorf("%+v", got)
	}
	p.onReadIndex = nil
	p.readIndexErr = partition.ErrNotLeader
	got = fetched(t, h, fetchOf("orders", 0, 9))
	wantCode(t, "no majority", got.ErrorCode, kerr.NotLeaderForPartition)
}

// TestFetchThatCannotBeConfirmed: consumers take REQUEST_TIMED_OUT of a partition, and
// NOT_ENOUGH_REPLICAS, for a bug of the broker. The partitions of a request wait together.
func TestFetchThatCannotBeConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := newHandler(t)
		parts := f.topic("orders", 3, nil)
		for _, err := range []error{partition.ErrTimeout, partition.ErrBusy} {
			parts[0].readIndexErr = err
			wantCode(t, err.Error(), fetched(t, h, fetchOf("orders", 0, 9)).ErrorCode, kerr.OffsetNotAvailable)
		}
		req := fetchOf("orders", 0, 9)
		for i, p := range parts {
			p.readIndexStuck = true
			if i > 0 {
				rp := req.Topics[0].Partitions[0]
				rp.Partition = int32(i)
				req.Topics[0].Partitions = append(req.Topics[0].Partitions, rp)
			}
		}
		began := time.Now()
		resp := roundTrip[*kmsg.FetchResponse](t, h, req)
		if took := time.Since(began); took != fetchConfirm+time.Duration(len(parts)-1)*fetchConfirmLeast {
			t.Errorf("took %v", took)
		}
		for _, rp := range resp.Topics[0].Partitions {
			wantCode(t, "no majority answers", rp.ErrorCode, kerr.OffsetNotAvailable)
		}
	})
}

// TestFetchWaitsNotForEver: that the client is gone is not noticed while its request waits.
func TestFetchWaitsNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := newHandler(t)
		f.topic("orders", 1, nil)
		req := waiting(0)
		req.MinBytes, req.MaxWaitMillis = 1, math.MaxInt32
		began := time.Now()
		wantCode(t, "nothing came", fetched(t, h, req).ErrorCode, nil)
		if took := time.Since(began); took != 5*time.Minute {
			t.Errorf("took %v", took)
		}
	})
}

func TestFetchEpochs(t *testing.T) {
	h, f := newHandler(t)
	p := f.topic("orders", 1, nil)[0] // epoch 5
	appendRecords(t, p, 1, 2)
	for _, tc := range []struct {
		claimed int32
		want    *kerr.Error
	}{{-1, nil}, {5, nil}, {4, kerr.FencedLeaderEpoch}, {6, kerr.UnknownLeaderEpoch}} {
		req := fetchOf("orders", 0, 0)
		req.Topics[0].Partitions[0].CurrentLeaderEpoch = tc.claimed
		got := fetched(t, h, req)
		wantCode(t, "epoch", got.ErrorCode, tc.want)
		if tc.want == kerr.FencedLeaderEpoch && (got.CurrentLeader.LeaderID != 1 || got.CurrentLeader.LeaderEpoch != 5) {
			t.Errorf("%+v", got.CurrentLeader)
		}
	}
	req := fetchOf("orders", 0, 1)
	req.Topics[0].Partitions[0].LastFetchedEpoch = 3 // it ended at 0
	req.MaxWaitMillis = 60_000
	got := fetched(t, h, req)
	wantCode(t, "divergence", got.ErrorCode, nil)
	if got.DivergingEpoch.Epoch != 3 || got.DivergingEpoch.EndOffset != 0 || len(got.RecordBatches) != 0 {
		t.Errorf("%+v", got)
	}
	req.Topics[0].Partitions[0].LastFetchedEpoch = 5
	if got := fetched(t, h, req); got.DivergingEpoch.EndOffset != -1 || len(got.RecordBatches) == 0 {
		t.Errorf("%+v", got)
	}
}

func TestFetchCompressed(t *testing.T) {
	h, f := newHandler(t)
	for codec := record.None; codec <= record.Zstd; codec++ {
		p := f.topic("c-"+codec.String(), 1, nil)[0]
		p.Append(batchOf(t, codec, 1, 2), partition.AppendOptions{}, func(partition.AppendResult) {})
		for _, version := range []int16{0, 2, 4, 9, 10, 12} {
			req := fetchOf("c-"+codec.String(), 0, 0)
			req.Version = version
			got := fetched(t, h, req)
			if codec == record.Zstd && version < 10 {
				wantCode(t, "zstd", got.ErrorCode, kerr.UnsupportedCompressionType)
				continue
			}
			wantCode(t, codec.String(), got.ErrorCode, nil)
			data := got.RecordBatches
			if version < 4 {
				up, err := record.UpConvert(data, record.ValidateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				data = up
			}
			if v := values(t, data); !slices.Equal(v, []string{"0=v0", "1=v1"}) {
				t.Errorf("%s version %d: %v", codec, version, v)
			}
		}
	}
}

// appendZeros writes n batches, each of one record of size bytes that compress to next to nothing.
func appendZeros(t testing.TB, p *fakePartition, n, size int) {
	t.Helper()
	for range n {
		b := record.Builder{Codec: record.Gzip}
		b.Append(record.Record{Timestamp: 1, Value: make([]byte, size)})
		raw, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		p.Append(raw, partition.AppendOptions{}, func(partition.AppendResult) {})
	}
}

// TestFetchOfMessagesIsBounded: what old versions get is held to the bytes they ask for, not the batches it is made of. The
// first batch of the response comes whole.
func TestFetchOfMessagesIsBounded(t *testing.T) {
	h, f := newHandler(t)
	const size = 100 << 10
	for _, p := range f.topic("orders", 2, nil) {
		appendZeros(t, p, 8, size)
	}
	for _, tc := range []struct {
		name             string
		maxBytes, perOne int32
		want             []int // batches of each partition
	}{
		{"plenty", 4 << 20, 4 << 20, []int{8, 8}},
		{"a partition's bytes", 4 << 20, 3*size + size/2, []int{3, 3}},
		{"the response's bytes", 5*size + size/2, 3*size + size/2, []int{3, 2}},
		{"less than a batch", 4 << 20, size / 2, []int{1, 0}},
	} {
		for _, version := range []int16{0, 2, 3} {
			req := fetchOf("orders", 0, 0)
			req.Version, req.MaxBytes = version, tc.maxBytes
			req.Topics[0].Partitions[0].PartitionMaxBytes = tc.perOne
			other := req.Topics[0].Partitions[0]
			other.Partition = 1
			req.Topics[0].Partitions = append(req.Topics[0].Partitions, other)
			if version < 3 && tc.name == "the response's bytes" {
				continue // such versions have no limit of the whole
			}
			for i, p := range roundTrip[*kmsg.FetchResponse](t, h, req).Topics[0].Partitions {
				wantCode(t, tc.name, p.ErrorCode, nil)
				if got := len(p.RecordBatches) / size; got != tc.want[i] {
					t.Errorf("%s, version %d: partition %d: %d batches, want %d", tc.name, version, i, got, tc.want[i])
				}
			}
		}
	}
}

// TestFetchOfMessagesTakesRoom: what a response holds until its client has read it counts as it is sent, not as it is stored.
func TestFetchOfMessagesTakesRoom(t *testing.T) {
	h, f := newHandler(t)
	const size = 16 << 20 // more than the buffers of a socket
	appendZeros(t, f.topic("orders", 1, nil)[0], 1, size)
	room := wire.NewQuota(64 << 20)
	addr := listenWith(t, wire.Options{Handler: h, Responses: room}, f)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	req := fetchOf("orders", 0, 0)
	req.Version = 3
	if _, err := conn.Write(kmsg.NewRequestFormatter().AppendRequest(nil, req, 1)); err != nil {
		t.Fatal(err)
	}
	used := func(ok func(int64) bool) bool {
		for range 500 {
			if ok(room.Used()) {
				return true
			}
			time.Sleep(10 * time.Millisecond)
		}
		return false
	}
	if !used(func(n int64) bool { return n >= size }) {
		t.Errorf("%d bytes are held, %d counted", size, room.Used())
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if !used(func(n int64) bool { return n == 0 }) {
		t.Errorf("%d bytes held by nobody", room.Used())
	}
}

func TestFetchUnknown(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1, nil)
	for _, req := range []*kmsg.FetchRequest{fetchOf("none", 0, 0), fetchOf("orders", 1, 0), fetchOf("orders", -1, 0)} {
		req.MaxWaitMillis = 60_000 // an error does not wait
		got := fetched(t, h, req)
		wantCode(t, "unknown", got.ErrorCode, kerr.UnknownTopicOrPartition)
	}
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxWaitMillis, req.MinBytes, req.SessionEpoch = 12, 60_000, 1, -1
	if resp := roundTrip[*kmsg.FetchResponse](t, h, req); len(resp.Topics) != 0 || resp.ErrorCode != 0 {
		t.Errorf("%+v", resp)
	}
}

func TestFetchOfADamagedBatch(t *testing.T) {
	if _, err := forVersion(3, make([]byte, 80), 1<<20); err == nil {
		t.Error("bytes that are no batch were converted")
	}
	raw := batchOf(t, record.None, 1)
	if _, err := forVersion(3, raw[:len(raw)-1], 1<<20); !errors.Is(err, record.ErrShort) {
		t.Errorf("a cut batch: %v", err)
	}
}

// TestFetchReadsInTurn: only so many reads run at a time, and one that waits for its turn goes on with it.
func TestFetchReadsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := newHandler(t)
		appendRecords(t, f.topic("orders", 1, nil)[0], 1)
		for range maxReads {
			h.reads <- struct{}{}
		}
		req := waiting(0)
		done := make(chan kmsg.Response, 1)
		go h.Serve(t.Context(), request(t, req), func(r kmsg.Response) { done <- r })
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("read beside those that run")
		default:
		}
		<-h.reads
		resp := decoded(t, req, <-done).(*kmsg.FetchResponse)
		if len(resp.Topics[0].Partitions[0].RecordBatches) == 0 {
			t.Error("no records")
		}
		if len(h.reads) != maxReads-1 {
			t.Errorf("%d reads run", len(h.reads))
		}
	})
}
