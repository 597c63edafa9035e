package kafka

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/partition"
)

func TestConfigTable(t *testing.T) {
	if !slices.IsSortedFunc(topicConfigs, func(a, b configDef) int { return strings.Compare(a.name, b.name) }) {
		t.Fatal("topicConfigs is not in order of name")
	}
	for _, d := range topicConfigs {
		if topicConfig(d.name) == nil || d.doc == "" || d.check(d.value) != nil {
			t.Errorf("%s: found %v, text %q, its default %q: %v", d.name, topicConfig(d.name) != nil, d.doc, d.value, d.check(d.value))
		}
	}
}

func TestConfigValues(t *testing.T) {
	for _, tc := range []struct {
		name, value string
		ok          bool
	}{
		{"cleanup.policy", "compact", true},
		{"cleanup.policy", "compact, delete", true},
		{"cleanup.policy", "", false},
		{"cleanup.policy", "shred", false},
		{"retention.ms", "-1", true},
		{"retention.ms", "-2", false},
		{"retention.ms", "9223372036854775807", true},
		{"retention.ms", "9223372036854775808", false},
		{"min.insync.replicas", "0", false},
		{"max.message.bytes", strconv.Itoa(partition.MaxBatch), true},
		{"max.message.bytes", strconv.Itoa(partition.MaxBatch + 1), false},
		{"min.cleanable.dirty.ratio", "0.25", true},
		{"min.cleanable.dirty.ratio", "NaN", false},
		{"min.cleanable.dirty.ratio", "1.5", false},
		{"unclean.leader.election.enable", "true", false},
		{"compression.type", "producer", true},
		{"no.such.setting", "1", false},
	} {
		if err := checkConfig(tc.name, tc.value); (err == nil) != tc.ok {
			t.Errorf("%s=%q: %v", tc.name, tc.value, err)
		}
	}
}

// TestStoredMessageBytesAreClamped: a bound above what replicas take, stored by an older release or said by the node,
// stands for that.
func TestStoredMessageBytesAreClamped(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1, map[string]string{"max.message.bytes": "104857600"})
	topic := f.Image().Topic("orders")
	if n := h.topicSettings(topic).maxMessageBytes; n != partition.MaxBatch {
		t.Errorf("a topic's: %d", n)
	}
	if v := h.effective(topic.Configs, topicConfig("max.message.bytes"))[0].value; v != strconv.Itoa(partition.MaxBatch) {
		t.Errorf("shown as %s", v)
	}
	h.config.MaxMessageBytes = math.MaxInt32
	if n := h.topicSettings(&metadata.Topic{}).maxMessageBytes; n != partition.MaxBatch {
		t.Errorf("the node's: %d", n)
	}
}

func incremental(resource string, ops ...kmsg.IncrementalAlterConfigsRequestResourceConfig) *kmsg.IncrementalAlterConfigsRequest {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.Version = 1
	req.Resources = []kmsg.IncrementalAlterConfigsRequestResource{{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: resource, Configs: ops}}
	return req
}

func TestIncrementalAlterConfigs(t *testing.T) {
	op := func(name string, op kmsg.IncrementalAlterConfigOp, value string) kmsg.IncrementalAlterConfigsRequestResourceConfig {
		return kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: name, Op: op, Value: &value}
	}
	const set, del, add, sub = kmsg.IncrementalAlterConfigOpSet, kmsg.IncrementalAlterConfigOpDelete, kmsg.IncrementalAlterConfigOpAppend, kmsg.IncrementalAlterConfigOpSubtract
	h, f := newHandler(t)
	f.topic("orders", 1, nil)
	for i, step := range []struct {
		op   kmsg.IncrementalAlterConfigsRequestResourceConfig
		want *kerr.Error
		name string
		is   string // "" = not set
	}{
		{op("cleanup.policy", add, "compact"), nil, "cleanup.policy", "delete,compact"},
		{op("cleanup.policy", sub, "delete"), nil, "cleanup.policy", "compact"},
		{op("cleanup.policy", sub, "compact"), kerr.InvalidConfig, "cleanup.policy", "compact"},
		{op("cleanup.policy", add, "shred"), kerr.InvalidConfig, "cleanup.policy", "compact"},
		{op("cleanup.policy", del, ""), nil, "cleanup.policy", ""},
		{op("retention.ms", set, "7"), nil, "retention.ms", "7"},
		{op("retention.ms", add, "8"), kerr.InvalidConfig, "retention.ms", "7"},
		{op("retention.ms", set, "x"), kerr.InvalidConfig, "retention.ms", "7"},
		{op("retention.ms", 9, "8"), kerr.InvalidRequest, "retention.ms", "7"},
		{op("no.such", set, "8"), kerr.InvalidConfig, "no.such", ""},
		{kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: "retention.ms", Op: set}, kerr.InvalidConfig, "retention.ms", "7"},
	} {
		req := incremental("orders", step.op)
		req.ValidateOnly = true
		before := f.Image().Topic("orders").Configs[step.name]
		wantCode(t, "validate", roundTrip[*kmsg.IncrementalAlterConfigsResponse](t, h, req).Resources[0].ErrorCode, step.want)
		if now := f.Image().Topic("orders").Configs[step.name]; now != before {
			t.Errorf("step %d: validation set %s to %q", i, step.name, now)
		}
		req.ValidateOnly = false
		wantCode(t, "alter", roundTrip[*kmsg.IncrementalAlterConfigsResponse](t, h, req).Resources[0].ErrorCode, step.want)
		if now := f.Image().Topic("orders").Configs[step.name]; now != step.is {
			t.Errorf("step %d: %s is %q, want %q", i, step.name, now, step.is)
		}
	}
	twice := incremental("orders", op("retention.ms", set, "1"), op("retention.ms", set, "2"))
	wantCode(t, "a setting twice", roundTrip[*kmsg.IncrementalAlterConfigsResponse](t, h, twice).Resources[0].ErrorCode, kerr.InvalidConfig)
	again := incremental("orders", op("retention.ms", set, "1"))
	again.Resources = append(again.Resources, again.Resources[0])
	wantCode(t, "a resource twice", roundTrip[*kmsg.IncrementalAlterConfigsResponse](t, h, again).Resources[1].ErrorCode, kerr.InvalidRequest)
}

func TestAlterConfigsReplaces(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1, map[string]string{"retention.ms": "5", "segment.ms": "6"})
	req := kmsg.NewPtrAlterConfigsRequest()
	req.Resources = []kmsg.AlterConfigsRequestResource{{
		ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "orders",
		Configs: []kmsg.AlterConfigsRequestResourceConfig{{Name: "segment.ms", Value: ptr("7")}},
	}}
	wantCode(t, "replace", roundTrip[*kmsg.AlterConfigsResponse](t, h, req).Resources[0].ErrorCode, nil)
	if c := f.Image().Topic("orders").Configs; len(c) != 1 || c["segment.ms"] != "7" {
		t.Errorf("%v", c)
	}
}

func TestDescribeConfigsChooses(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1, nil)
	for _, tc := range []struct {
		names []string
		want  int
	}{{nil, len(topicConfigs)}, {[]string{}, len(topicConfigs)}, {[]string{"retention.ms", "none"}, 1}} {
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.Resources = []kmsg.DescribeConfigsRequestResource{{
			ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "orders", ConfigNames: tc.names,
		}}
		if got := roundTrip[*kmsg.DescribeConfigsResponse](t, h, req).Resources[0].Configs; len(got) != tc.want {
			t.Errorf("%v: %d settings, want %d", tc.names, len(got), tc.want)
		}
	}
}

func TestDescribeConfigsSources(t *testing.T) {
	h, f := newHandler(t)
	h.config.Node = map[string]string{"raft.election_timeout": "1s"}
	f.topic("orders", 1, map[string]string{"retention.ms": "5", "min.insync.replicas": "3"})
	describe := func(typ kmsg.ConfigResourceType, name string) kmsg.DescribeConfigsResponseResource {
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.Version, req.IncludeSynonyms = 4, true
		req.Resources = []kmsg.DescribeConfigsRequestResource{{ResourceType: typ, ResourceName: name}}
		return roundTrip[*kmsg.DescribeConfigsResponse](t, h, req).Resources[0]
	}
	byName := map[string]kmsg.DescribeConfigsResponseResourceConfig{}
	for _, c := range describe(kmsg.ConfigResourceTypeTopic, "orders").Configs {
		byName[c.Name] = c
	}
	if len(byName) != len(topicConfigs) {
		t.Errorf("%d settings", len(byName))
	}
	isr := byName["min.insync.replicas"]
	var sources []kmsg.ConfigSource
	for _, s := range isr.ConfigSynonyms {
		sources = append(sources, s.Source)
	}
	if *isr.Value != "3" || !slices.Equal(sources, []kmsg.ConfigSource{kmsg.ConfigSourceDynamicTopicConfig, kmsg.ConfigSourceStaticBrokerConfig, kmsg.ConfigSourceDefaultConfig}) {
		t.Errorf("%+v", isr)
	}
	if c := byName["retention.ms"]; *c.Value != "5" || c.Source != kmsg.ConfigSourceDynamicTopicConfig {
		t.Errorf("%+v", c)
	}
	if c := byName["segment.bytes"]; c.Source != kmsg.ConfigSourceDefaultConfig || c.ConfigSynonyms[0].Name != "log.segment.bytes" {
		t.Errorf("%+v", c)
	}
	node := describe(kmsg.ConfigResourceTypeBroker, "2")
	wantCode(t, "node 2", node.ErrorCode, nil)
	if !slices.IsSortedFunc(node.Configs, func(a, b kmsg.DescribeConfigsResponseResourceConfig) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("settings of a node are not in order, or twice")
	}
	shown := map[string]string{}
	for _, c := range node.Configs {
		shown[c.Name] = *c.Value
	}
	if shown["broker.id"] != "2" || shown["raft.election_timeout"] != "1s" || shown["log.dirs"] != "" || shown["log.segment.bytes"] == "" {
		t.Errorf("%v", shown)
	}
	wantCode(t, "no such node", describe(kmsg.ConfigResourceTypeBroker, "9").ErrorCode, kerr.InvalidRequest)
	wantCode(t, "no node", describe(kmsg.ConfigResourceTypeBroker, "x").ErrorCode, kerr.InvalidRequest)
	wantCode(t, "all nodes", describe(kmsg.ConfigResourceTypeBroker, "").ErrorCode, nil)
	wantCode(t, "loggers", describe(kmsg.ConfigResourceTypeBrokerLogger, "1").ErrorCode, kerr.InvalidRequest)
	wantCode(t, "bad topic", describe(kmsg.ConfigResourceTypeTopic, "a b").ErrorCode, kerr.InvalidTopicException)
}
