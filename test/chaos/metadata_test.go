package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/test/check"
	"chronik/test/harness"
)

// metaLoad creates, alters, describes and deletes one topic after another, through every
// node at the same time, and knows each call and its answer.
type metaLoad struct {
	t      *testing.T
	pause  time.Duration
	cancel context.CancelFunc
	wg     sync.WaitGroup
	began  time.Time

	version atomic.Int64
	mu      sync.Mutex
	topics  []*topicCalls
}

type topicCalls struct {
	name    string
	calls   []check.Call
	started int
	unknown int
}

const (
	// A topic's history ends after so many calls, or so many of unknown outcome: what an order
	// has to explain grows fast with them.
	callsEach   = 60
	unknownEach = 6
	// settingBase makes a version a retention.ms that drops nothing.
	settingBase = 1_000_000_000
	callTimeout = 3 * time.Second
)

// startMetaLoad makes a call through each node every pause.
func startMetaLoad(t *testing.T, c *harness.Cluster, seed uint64, pause time.Duration) *metaLoad {
	t.Helper()
	m := &metaLoad{t: t, pause: pause, began: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	for _, n := range c.Nodes() {
		cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka), kgo.DialTimeout(time.Second), kgo.RequestTimeoutOverhead(time.Second), kgo.RequestRetries(0))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		m.wg.Go(func() { m.run(ctx, cl, n.ID, rand.New(rand.NewPCG(seed, uint64(n.ID)))) })
	}
	return m
}

func (m *metaLoad) run(ctx context.Context, cl *kgo.Client, node int, rng *rand.Rand) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(m.pause):
		}
		topic := m.current()
		c := check.Call{Client: node, Node: node, Topic: topic.name, Action: check.Action(rng.IntN(4)), Version: int(m.version.Add(1)), Call: time.Since(m.began)}
		m.call(cl, &c)
		c.Return = time.Since(m.began)
		m.mu.Lock()
		topic.calls = append(topic.calls, c)
		if c.Answer == check.Unknown {
			topic.unknown++
		}
		m.mu.Unlock()
	}
}

// current is the topic that calls are about now.
func (m *metaLoad) current() *topicCalls {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.topics); n == 0 || m.topics[n-1].started >= callsEach || m.topics[n-1].unknown >= unknownEach {
		m.topics = append(m.topics, &topicCalls{name: fmt.Sprintf("meta-%d", n)})
	}
	topic := m.topics[len(m.topics)-1]
	topic.started++
	return topic
}

// call makes one call, once, to this client's only node, and notes the answer.
func (m *metaLoad) call(cl *kgo.Client, c *check.Call) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	var code int16
	resp, err := cl.SeedBrokers()[0].Request(ctx, metaRequest(c))
	if err != nil {
		c.Answer = check.Unknown
		return
	}
	switch r := resp.(type) {
	case *kmsg.CreateTopicsResponse:
		code = r.Topics[0].ErrorCode
	case *kmsg.DeleteTopicsResponse:
		code = r.Topics[0].ErrorCode
	case *kmsg.IncrementalAlterConfigsResponse:
		code = r.Resources[0].ErrorCode
	case *kmsg.DescribeConfigsResponse:
		code = r.Resources[0].ErrorCode
		for _, s := range r.Resources[0].Configs {
			if s.Name == "retention.ms" && s.Value != nil {
				v, _ := strconv.Atoi(*s.Value) // what is no number is no version either
				c.Version = v - settingBase
			}
		}
	}
	switch err := kerr.ErrorForCode(code); {
	case err == nil:
		c.Answer = check.OK
	case errors.Is(err, kerr.TopicAlreadyExists):
		c.Answer = check.Exists
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
		c.Answer = check.Absent
	default:
		c.Answer = check.Unknown
	}
}

func metaRequest(c *check.Call) kmsg.Request {
	setting := strconv.Itoa(settingBase + c.Version)
	millis := int32((callTimeout - time.Second) / time.Millisecond)
	switch c.Action {
	case check.Create:
		req, t, s := kmsg.NewPtrCreateTopicsRequest(), kmsg.NewCreateTopicsRequestTopic(), kmsg.NewCreateTopicsRequestTopicConfig()
		s.Name, s.Value = "retention.ms", &setting
		t.Topic, t.NumPartitions, t.ReplicationFactor, t.Configs = c.Topic, 1, 3, append(t.Configs, s)
		req.TimeoutMillis, req.Topics = millis, append(req.Topics, t)
		return req
	case check.Delete:
		req, t := kmsg.NewPtrDeleteTopicsRequest(), kmsg.NewDeleteTopicsRequestTopic()
		t.Topic = kmsg.StringPtr(c.Topic)
		req.TimeoutMillis, req.TopicNames, req.Topics = millis, append(req.TopicNames, c.Topic), append(req.Topics, t)
		return req
	case check.Alter:
		req, r, s := kmsg.NewPtrIncrementalAlterConfigsRequest(), kmsg.NewIncrementalAlterConfigsRequestResource(), kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		s.Name, s.Op, s.Value = "retention.ms", kmsg.IncrementalAlterConfigOpSet, &setting
		r.ResourceType, r.ResourceName, r.Configs = kmsg.ConfigResourceTypeTopic, c.Topic, append(r.Configs, s)
		req.Resources = append(req.Resources, r)
		return req
	default:
		req, r := kmsg.NewPtrDescribeConfigsRequest(), kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName, r.ConfigNames = kmsg.ConfigResourceTypeTopic, c.Topic, []string{"retention.ms"}
		req.Resources = append(req.Resources, r)
		return req
	}
}

// finish stops the calls and judges them.
func (m *metaLoad) finish() (calls, unknown, undecided int, found []check.Violation) {
	m.t.Helper()
	m.cancel()
	m.wg.Wait()
	for _, topic := range m.topics {
		calls += len(topic.calls)
		unknown += topic.unknown
		vs, decided := check.Metadata(topic.name, topic.calls, 20*time.Second)
		if !decided {
			undecided++
		}
		for _, v := range vs {
			m.t.Error(v)
		}
		found = append(found, vs...)
	}
	m.t.Logf("metadata: %d calls about %d topics, %d of unknown outcome, %d histories not decided in time, %d violations", calls, len(m.topics), unknown, undecided, len(found))
	return calls, unknown, undecided, found
}
