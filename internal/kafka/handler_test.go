package kafka

import (
	"slices"
	"strconv"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newHandler(t testing.TB) (*Handler, *fakeCluster) {
	f := newFakeCluster(t)
	return NewHandler(Options{Cluster: f}), f
}

func wantCode(t testing.TB, what string, got int16, want *kerr.Error) {
	t.Helper()
	var code int16
	if want != nil {
		code = want.Code
	}
	if got != code {
		t.Errorf("%s: error %d (%v), want %v", what, got, kerr.ErrorForCode(got), want)
	}
}

func ptr[T any](v T) *T { return &v }

// call is how one API is asked, and how its answer must look, at any version.
type call struct {
	req   func(version int16) kmsg.Request
	check func(t *testing.T, version int16, resp kmsg.Response)
}

// TestEveryVersion answers each key at each version that is announced, through
// the bytes of request and response.
func TestEveryVersion(t *testing.T) {
	for _, a := range apis {
		c, ok := calls[a.key]
		if !ok {
			t.Errorf("%s is announced and not tested", a.name)
			continue
		}
		if a.min != 0 {
			t.Errorf("%s begins at version %d", a.name, a.min)
		}
		for v := a.min; v <= a.max; v++ {
			t.Run(a.name+"/"+strconv.Itoa(int(v)), func(t *testing.T) {
				h, f := newHandler(t)
				prepare(t, f)
				req := c.req(v)
				req.SetVersion(v)
				c.check(t, v, serve(t, h, req))
			})
		}
	}
}

// TestVersionsAreKnownToTheCodec: an announced version that kmsg cannot encode
// would break the client that picks it.
func TestVersionsAreKnownToTheCodec(t *testing.T) {
	h, _ := newHandler(t)
	for key := int16(-1); key < 120; key++ {
		low, high, ok := h.Versions(key)
		if !ok {
			continue
		}
		req := kmsg.RequestForKey(key)
		if req == nil || low < 0 || high < low || high > req.MaxVersion() {
			t.Errorf("key %d: versions %d to %d, codec knows %v", key, low, high, req)
		}
	}
}

func TestUnknownVersionIsNotAnswered(t *testing.T) {
	h, _ := newHandler(t)
	for _, r := range []wire.Request{{Key: 999}, {Key: -1}, {Key: keyMetadata, Version: 14}, {Key: keyMetadata, Version: -1}} {
		replies := 0
		h.Serve(t.Context(), &r, func(resp kmsg.Response) {
			replies++
			if resp != nil {
				t.Errorf("key %d version %d answered by %T", r.Key, r.Version, resp)
			}
		})
		if replies != 1 {
			t.Errorf("key %d version %d: %d replies", r.Key, r.Version, replies)
		}
	}
}

func TestAPIVersions(t *testing.T) {
	h, _ := newHandler(t)
	req := kmsg.NewPtrApiVersionsRequest()
	req.Version = 3
	req.ClientSoftwareName, req.ClientSoftwareVersion = "apache-kafka-java", "4.1.0"
	resp := roundTrip[*kmsg.ApiVersionsResponse](t, h, req)
	wantCode(t, "announcement", resp.ErrorCode, nil)
	if len(resp.ApiKeys) != len(apis) || !slices.IsSortedFunc(resp.ApiKeys, func(a, b kmsg.ApiVersionsResponseApiKey) int { return int(a.ApiKey - b.ApiKey) }) {
		t.Errorf("announced: %v", resp.ApiKeys)
	}
	for _, name := range []string{"", " ", "-a", "a.", "a b", "a/b"} {
		req.ClientSoftwareName = name
		resp := roundTrip[*kmsg.ApiVersionsResponse](t, h, req)
		wantCode(t, "software name "+strconv.Quote(name), resp.ErrorCode, kerr.InvalidRequest)
	}
}

func TestMetricsCountRequestsAndErrors(t *testing.T) {
	f := newFakeCluster(t)
	reg := prometheus.NewRegistry()
	m, err := NewMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	h := NewHandler(Options{Cluster: f, Metrics: m})
	req := kmsg.NewPtrMetadataRequest()
	req.Version = 9
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = ptr("no such")
	req.Topics = append(req.Topics, topic)
	roundTrip[*kmsg.MetadataResponse](t, h, req)
	families, err := reg.Gather()
	if err != nil || len(families) != 4 {
		t.Fatalf("gathered %v, %v", families, err)
	}
	for _, f := range families {
		switch m := f.GetMetric(); f.GetName() {
		case "chronik_kafka_errors_total":
			if len(m) != 1 || m[0].GetCounter().GetValue() != 1 {
				t.Errorf("errors: %v", m)
			}
		case "chronik_kafka_fetch_sessions", "chronik_kafka_fetch_sessions_evicted_total":
		case "chronik_kafka_request_seconds":
			count := uint64(0)
			for i := range m {
				count += m[i].GetHistogram().GetSampleCount()
			}
			if len(m) != len(apis) || count != 1 {
				t.Errorf("%d histograms with %d requests", len(m), count)
			}
		default:
			t.Errorf("metric %s", f.GetName())
		}
	}
	if _, err := NewMetrics(reg); err == nil {
		t.Error("registered twice")
	}
}

// preparedID is the id of prepare's topic.
var preparedID = metadata.TopicID{0: 7, 15: 7}

// prepare makes what the calls of TestEveryVersion ask about: topic "orders" of
// two partitions, with three records at times 1000, 2000 and 3000 in the first,
// and group "sums", without members, that has committed offset 2 of it.
func prepare(t testing.TB, f *fakeCluster) {
	parts := f.topicWithID(preparedID, "orders", 2, nil)
	appendRecords(t, parts[0], 1000, 2000, 3000)
	withShards(t, f)
	h := NewHandler(Options{Cluster: f})
	resp := roundTrip[*kmsg.OffsetCommitResponse](t, h, commitOf(9, "sums"))
	wantCode(t, "prepare", resp.Topics[0].Partitions[0].ErrorCode, nil)
}

func ordersID(f *fakeCluster) metadata.TopicID { return f.Image().Topic("orders").ID }
