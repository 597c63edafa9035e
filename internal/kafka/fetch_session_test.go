package kafka

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// sessionClient fetches with a session as a consumer does.
type sessionClient struct {
	t         testing.TB
	h         *Handler
	conn      *wire.Conn
	ctx       context.Context
	version   int16
	id, epoch int32
	maxBytes  int32
}

func newSessionClient(t testing.TB, h *Handler) *sessionClient {
	return &sessionClient{t: t, h: h, conn: &wire.Conn{}, ctx: t.Context(), version: 12, maxBytes: 1 << 20}
}

// want is a partition that a client asks for.
type want struct {
	topic  string
	n      int32
	offset int64
}

// request asks for some partitions and forgets others.
func (c *sessionClient) request(ask []want, forget ...want) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxBytes, req.MinBytes = c.version, c.maxBytes, 1
	req.SessionID, req.SessionEpoch = c.id, c.epoch
	for _, w := range ask {
		rt := kmsg.NewFetchRequestTopic()
		rt.Topic = w.topic
		rp := kmsg.NewFetchRequestTopicPartition()
		rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = w.n, w.offset, 1<<20
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
	}
	for _, w := range forget {
		ft := kmsg.NewFetchRequestForgottenTopic()
		ft.Topic, ft.Partitions = w.topic, []int32{w.n}
		req.ForgottenTopics = append(req.ForgottenTopics, ft)
	}
	return req
}

// send sends a request and takes over the session that the response names.
func (c *sessionClient) send(req *kmsg.FetchRequest) *kmsg.FetchResponse {
	c.t.Helper()
	r := request(c.t, req)
	r.Conn = c.conn
	replies := make(chan kmsg.Response, 1)
	c.h.Serve(c.ctx, r, func(resp kmsg.Response) { replies <- resp })
	resp := decoded(c.t, req, <-replies).(*kmsg.FetchResponse)
	switch {
	case resp.ErrorCode != 0:
	case resp.SessionID == 0:
		c.id, c.epoch = 0, 0
	default:
		c.id = resp.SessionID
		c.epoch++
	}
	return resp
}

func (c *sessionClient) fetch(ask []want, forget ...want) *kmsg.FetchResponse {
	c.t.Helper()
	return c.send(c.request(ask, forget...))
}

// told lists the partitions of a response: "orders/1 high 3 (2 batches)".
func told(resp *kmsg.FetchResponse) []string {
	var all []string
	for _, rt := range resp.Topics {
		for _, rp := range rt.Partitions {
			s := fmt.Sprintf("%s/%d %d-%d", rt.Topic, rp.Partition, rp.LogStartOffset, rp.HighWatermark)
			if rp.ErrorCode != 0 {
				s = fmt.Sprintf("%s/%d error %d", rt.Topic, rp.Partition, rp.ErrorCode)
			}
			if len(rp.RecordBatches) > 0 {
				s += " records"
			}
			all = append(all, s)
		}
	}
	slices.Sort(all)
	return all
}

func wantTold(t *testing.T, what string, resp *kmsg.FetchResponse, want ...string) {
	t.Helper()
	wantCode(t, what, resp.ErrorCode, nil)
	if got := told(resp); !slices.Equal(got, want) {
		t.Errorf("%s: told %q, want %q", what, got, want)
	}
}

func TestFetchSessionTellsWhatIsNew(t *testing.T) {
	h, f := newHandler(t)
	parts := f.topic("orders", 3, nil)
	c := newSessionClient(t, h)
	wantTold(t, "full", c.fetch([]want{{"orders", 0, 0}, {"orders", 1, 0}, {"none", 0, 0}}), "none/0 error 3", "orders/0 0-0", "orders/1 0-0")
	if c.id == 0 {
		t.Fatal("no session")
	}
	// An error is told each time, what is known is not.
	wantTold(t, "unchanged", c.fetch(nil, want{"none", 0, 0}))
	wantTold(t, "unchanged again", c.fetch(nil))
	appendRecords(t, parts[1], 1, 2)
	wantTold(t, "records", c.fetch(nil), "orders/1 0-2 records")
	wantTold(t, "records, not taken note of", c.fetch(nil), "orders/1 0-2 records")
	wantTold(t, "offset moved", c.fetch([]want{{"orders", 1, 2}}))
	appendRecords(t, parts[0], 1)
	wantTold(t, "offset moved with the high watermark", c.fetch([]want{{"orders", 0, 1}}), "orders/0 0-1")
	if err := parts[1].SetLogStart(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	wantTold(t, "log start", c.fetch(nil), "orders/1 1-2")
	wantTold(t, "added", c.fetch([]want{{"orders", 2, 0}}), "orders/2 0-0")
	appendRecords(t, parts[0], 1)
	appendRecords(t, parts[2], 1)
	wantTold(t, "forgotten", c.fetch(nil, want{"orders", 0, 0}, want{"orders", 7, 0}, want{"other", 0, 0}), "orders/2 0-1 records")
	parts[1].mu.Lock()
	parts[1].leading = false
	parts[1].mu.Unlock()
	wantTold(t, "an error", c.fetch([]want{{"orders", 2, 1}}), "orders/1 error 6")
	parts[1].mu.Lock()
	parts[1].leading = true
	parts[1].mu.Unlock()
	wantTold(t, "the error is over", c.fetch(nil), "orders/1 1-2")
	if resp := c.fetch(nil, want{"orders", 1, 0}, want{"orders", 2, 0}); resp.SessionID != 0 || len(resp.Topics) != 0 || resp.ErrorCode != 0 {
		t.Errorf("nothing left: %+v", resp)
	}
	if n := len(h.sessions.byID); n != 0 || h.sessions.bytes != 0 {
		t.Errorf("%d sessions, %d bytes stay", n, h.sessions.bytes)
	}
}

// TestFetchSessionTellsOfDivergence: a diverging epoch is news each time.
func TestFetchSessionTellsOfDivergence(t *testing.T) {
	h, f := newHandler(t)
	appendRecords(t, f.topic("orders", 1, nil)[0], 1, 2)
	c := newSessionClient(t, h)
	c.fetch([]want{{"orders", 0, 2}})
	req := c.request([]want{{"orders", 0, 1}})
	req.Topics[0].Partitions[0].LastFetchedEpoch = 3
	for _, req := range []*kmsg.FetchRequest{req, nil} {
		if req == nil {
			req = c.request(nil)
		}
		resp := c.send(req)
		if len(resp.Topics) != 1 || resp.Topics[0].Partitions[0].DivergingEpoch.EndOffset != 0 {
			t.Fatalf("%+v", resp)
		}
	}
}

func TestFetchSessionErrors(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1, nil)
	all := []want{{"orders", 0, 0}}
	for _, tc := range []struct {
		name string
		// change makes the second request of a session another one.
		change func(c *sessionClient, req *kmsg.FetchRequest)
		want   *kerr.Error
		// lives: the session is there afterwards.
		lives bool
	}{
		{"the next", func(*sessionClient, *kmsg.FetchRequest) {}, nil, true},
		{"another session", func(_ *sessionClient, r *kmsg.FetchRequest) { r.SessionID ^= 1 }, kerr.FetchSessionIDNotFound, true},
		{"no session", func(_ *sessionClient, r *kmsg.FetchRequest) { r.SessionID = 0 }, kerr.FetchSessionIDNotFound, true},
		{"an epoch ahead", func(_ *sessionClient, r *kmsg.FetchRequest) { r.SessionEpoch = 2 }, kerr.InvalidFetchSessionEpoch, true},
		{"an epoch below all", func(_ *sessionClient, r *kmsg.FetchRequest) { r.SessionEpoch = math.MinInt32 }, kerr.InvalidFetchSessionEpoch, true},
		{"sent twice", func(c *sessionClient, r *kmsg.FetchRequest) { c.send(r) }, kerr.InvalidFetchSessionEpoch, true},
		{"by id", func(_ *sessionClient, r *kmsg.FetchRequest) { r.Version = 13 }, kerr.FetchSessionTopicIDError, true},
		{"full, without", func(_ *sessionClient, r *kmsg.FetchRequest) { r.SessionEpoch = -1 }, nil, false},
		{"too much", func(_ *sessionClient, r *kmsg.FetchRequest) {
			rt := kmsg.NewFetchRequestTopic()
			rt.Topic, rt.Partitions = "many", make([]kmsg.FetchRequestTopicPartition, maxSessionBytes/sessionPartCost)
			r.Topics = append(r.Topics, rt)
		}, kerr.FetchSessionIDNotFound, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newSessionClient(t, h)
			c.fetch(all)
			id := c.id
			req := c.request(nil)
			tc.change(c, req)
			resp := c.send(req)
			wantCode(t, tc.name, resp.ErrorCode, tc.want)
			if tc.want != nil && (resp.SessionID != 0 || len(resp.Topics) != 0) {
				t.Errorf("%+v", resp)
			}
			if _, lives := h.sessions.byID[id]; lives != tc.lives {
				t.Errorf("lives: %v", lives)
			}
			h.sessions.end(id)
		})
	}
	if h.sessions.bytes != 0 {
		t.Errorf("%d bytes are counted for no session", h.sessions.bytes)
	}
}

// TestFetchSessionEpochs: after the last epoch comes 1.
func TestFetchSessionEpochs(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1, nil)
	c := newSessionClient(t, h)
	c.fetch([]want{{"orders", 0, 0}})
	h.sessions.byID[c.id].epoch, c.epoch = math.MaxInt32, math.MaxInt32
	wantCode(t, "last", c.fetch(nil).ErrorCode, nil)
	c.epoch = 1
	wantCode(t, "first again", c.fetch(nil).ErrorCode, nil)
}

// TestFetchSessionByID: topics are named by id, one that is gone is an error of its own.
func TestFetchSessionByID(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1, nil)
	c := newSessionClient(t, h)
	c.version = 17
	req := c.request([]want{{"orders", 0, 0}})
	req.Topics[0].TopicID = f.Image().Topic("orders").ID
	if resp := c.send(req); resp.SessionID == 0 || resp.Topics[0].TopicID != req.Topics[0].TopicID {
		t.Fatalf("%+v", resp)
	}
	if resp := c.fetch(nil); len(resp.Topics) != 0 {
		t.Errorf("%+v", resp)
	}
	f.apply(&metadata.DeleteTopics{Topics: []metadata.TopicRef{{Name: "orders"}}})
	resp := c.fetch(nil)
	if len(resp.Topics) != 1 || resp.Topics[0].TopicID != req.Topics[0].TopicID {
		t.Fatalf("%+v", resp)
	}
	wantCode(t, "deleted", resp.Topics[0].Partitions[0].ErrorCode, kerr.UnknownTopicID)
}

// TestFetchSessionHoldsOneRequest: a second request while the first waits is refused, and
// what the first is answered is right.
func TestFetchSessionHoldsOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := newHandler(t)
		p := f.topic("orders", 1, nil)[0]
		c := newSessionClient(t, h)
		c.fetch([]want{{"orders", 0, 0}})
		first := c.request(nil)
		first.MaxWaitMillis = 10_000
		done := make(chan *kmsg.FetchResponse, 1)
		go func() { done <- c.send(first) }()
		synctest.Wait()
		other := newSessionClient(t, h)
		other.id, other.epoch = c.id, 2
		wantCode(t, "second", other.fetch(nil).ErrorCode, kerr.InvalidFetchSessionEpoch)
		appendRecords(t, p, 1)
		wantTold(t, "first", <-done, "orders/0 0-1 records")
	})
}

// TestFetchSessionsAreBounded: by number, by connection, by bytes; what is idle makes room.
func TestFetchSessionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := newHandler(t) // three sessions
		f.topic("orders", 1, nil)
		all := []want{{"orders", 0, 0}}
		ctx, cancel := context.WithCancel(t.Context())
		var cs []*sessionClient
		for range 4 {
			c := newSessionClient(t, h)
			c.ctx = ctx
			c.fetch(all)
			cs = append(cs, c)
		}
		if cs[2].id == 0 || cs[3].id != 0 {
			t.Fatalf("ids %d and %d", cs[2].id, cs[3].id)
		}
		again := newSessionClient(t, h)
		again.conn, again.ctx = cs[0].conn, ctx
		again.fetch(all) // the same connection: in place of its first
		wantCode(t, "replaced", cs[0].fetch(nil).ErrorCode, kerr.FetchSessionIDNotFound)
		time.Sleep(sessionIdle - time.Second)
		wantCode(t, "used", cs[1].fetch(nil).ErrorCode, nil)
		if cs[3].fetch(all); cs[3].id != 0 {
			t.Error("a session although none is idle for long")
		}
		time.Sleep(2 * time.Second)
		if cs[3].fetch(all); cs[3].id == 0 {
			t.Error("no session although two are idle")
		}
		wantCode(t, "the least used", cs[2].fetch(nil).ErrorCode, kerr.FetchSessionIDNotFound)
		wantCode(t, "used lately", cs[1].fetch(nil).ErrorCode, nil)
		cancel()
		synctest.Wait()
		if n := len(h.sessions.byID) + len(h.sessions.byConn); n != 0 || h.sessions.bytes != 0 || h.sessions.oldest != nil || h.sessions.newest != nil {
			t.Errorf("%d sessions, %d bytes after their connections", n, h.sessions.bytes)
		}
	})
}

func TestFetchSessionsAreBoundedInBytes(t *testing.T) {
	h, f := newHandler(t)
	h.sessions.limit = 1000
	f.topic("orders", 1, nil)
	// Topics that do not exist, of the longest names.
	ask := func(topics int) []want {
		var ws []want
		for i := range topics {
			ws = append(ws, want{strings.Repeat("x", 30_000) + fmt.Sprint(i), 0, 0})
		}
		return ws
	}
	if c := newSessionClient(t, h); c.fetch(ask(300)).SessionID != 0 {
		t.Error("a session of 9 MB")
	}
	n := 0
	for range 12 {
		c := newSessionClient(t, h)
		if c.fetch(ask(250)); c.id != 0 {
			n++
		}
	}
	if n != 8 || h.sessions.bytes > maxSessionsBytes {
		t.Errorf("%d sessions of 7.6 MB, %d bytes", n, h.sessions.bytes)
	}
	h.sessions.limit = 0
	if c := newSessionClient(t, h); c.fetch([]want{{"orders", 0, 0}}).SessionID != 0 {
		t.Error("a session although there are to be none")
	}
}

// TestFetchSessionTakesTurns: a response that has room for one partition's records does
// not give it to the same one each time.
func TestFetchSessionTakesTurns(t *testing.T) {
	h, f := newHandler(t)
	parts := f.topic("orders", 4, nil)
	c := newSessionClient(t, h)
	var all []want
	for i := range parts {
		appendRecords(t, parts[i], 1)
		all = append(all, want{"orders", int32(i), 1})
	}
	c.fetch(all)
	for i := range parts {
		all[i].offset = 0 // read everything again
	}
	c.maxBytes = 1
	c.fetch(all)
	got := map[int32]int{}
	for range 8 {
		resp := c.fetch(nil)
		for _, rp := range resp.Topics[0].Partitions {
			if len(rp.RecordBatches) > 0 {
				got[rp.Partition]++
			}
		}
	}
	if len(got) != 4 || got[0] != 2 {
		t.Errorf("records of each partition: %v", got)
	}
}

// TestFetchSessionModel: whatever happens, who fetches with a session knows what one
// without would be told.
func TestFetchSessionModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h, f := newHandler(t)
		parts := f.topic("orders", 3, nil)
		parts = append(parts, f.topic("bills", 3, nil)...)
		name := func(i int) (string, int32) { return []string{"orders", "bills"}[i/3], int32(i % 3) }
		c := newSessionClient(t, h)
		asked, known := map[int]int64{}, map[string]string{} // offsets; the client's picture
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			i := rapid.IntRange(0, 5).Draw(rt, "partition")
			var ask, forget []want
			topic, n := name(i)
			switch rapid.IntRange(0, 5).Draw(rt, "what") {
			case 0:
				if leads, _ := parts[i].Leader(); leads {
					appendRecords(t, parts[i], 1)
				}
			case 1:
				_ = parts[i].SetLogStart(t.Context(), parts[i].HighWatermark()) // never fails
			case 2:
				parts[i].mu.Lock()
				parts[i].leading = !parts[i].leading
				parts[i].mu.Unlock()
			case 3:
				if _, ok := asked[i]; ok {
					delete(asked, i)
					delete(known, fmt.Sprintf("%s/%d", topic, n))
					forget = append(forget, want{topic, n, 0})
				}
			default:
				asked[i] = parts[i].HighWatermark()
				ask = append(ask, want{topic, n, asked[i]})
			}
			if c.epoch == 0 {
				ask, forget = nil, nil
				for i, offset := range asked {
					topic, n := name(i)
					ask = append(ask, want{topic, n, offset})
				}
			}
			got := told(c.fetch(ask, forget...))
			for _, s := range got {
				p, what, _ := strings.Cut(s, " ")
				known[p] = strings.TrimSuffix(what, " records")
			}
			plain := newSessionClient(t, h)
			plain.epoch = -1
			var all []want
			for i, offset := range asked {
				topic, n := name(i)
				all = append(all, want{topic, n, offset})
			}
			for _, s := range told(plain.fetch(all)) {
				p, what, _ := strings.Cut(s, " ")
				marks, records := strings.CutSuffix(what, " records")
				if known[p] != marks || records && !slices.Contains(got, s) {
					rt.Fatalf("%s: the session says %q, of these now %q, a full fetch %q", p, known[p], got, what)
				}
			}
			if len(known) != len(asked) {
				rt.Fatalf("knows %v of %v", known, asked)
			}
		}
	})
}

// TestFetchOfNothingNewAllocatesNothing: what an incremental fetch without news allocates
// does not depend on how many partitions the session has.
func TestFetchOfNothingNewAllocatesNothing(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1000, nil)
	allocs := func(n int) float64 {
		c := newSessionClient(t, h)
		var all []want
		for i := range n {
			all = append(all, want{"orders", int32(i), 0})
		}
		c.fetch(all)
		r := request(t, c.request(nil))
		req := r.Body.(*kmsg.FetchRequest)
		req.MaxWaitMillis = 1
		return testing.AllocsPerRun(50, func() {
			h.Serve(c.ctx, r, func(resp kmsg.Response) {
				if resp := resp.(*kmsg.FetchResponse); resp.ErrorCode != 0 || len(resp.Topics) != 0 {
					t.Fatalf("%d, %d topics", resp.ErrorCode, len(resp.Topics))
				}
			})
			req.SessionEpoch++
		})
	}
	few, many := allocs(10), allocs(1000)
	t.Logf("%.0f allocations for 10 partitions, %.0f for 1000", few, many)
	if many > few+2 || many > 16 {
		t.Errorf("%.0f allocations for 10 partitions, %.0f for 1000", few, many)
	}
}
