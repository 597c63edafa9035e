package metadata

import (
	"errors"
	"strings"
	"testing"
)

func TestConfigTables(t *testing.T) {
	for _, defs := range [][]ConfigDef{topicDefs, brokerDefs} {
		last := ""
		for i := range defs {
			d := &defs[i]
			if d.Name <= last {
				t.Errorf("%s comes after %s", d.Name, last)
			}
			last = d.Name
			if d.Doc == "" || d.Type == 0 {
				t.Errorf("%s: no doc or type", d.Name)
			}
			if err := d.check(d.Default); err != nil && d.Default != "" {
				t.Errorf("default of %s: %v", d.Name, err)
			}
			if d.Broker != "" && findDef(brokerDefs, d.Broker) == nil {
				t.Errorf("%s defaults to %s, which is no broker config", d.Name, d.Broker)
			}
		}
	}
}

func TestConfigValidation(t *testing.T) {
	for _, tc := range []struct {
		name, value string
		ok          bool
	}{
		{"cleanup.policy", "compact", true},
		{"cleanup.policy", "compact, delete", true},
		{"cleanup.policy", "", true},
		{"cleanup.policy", "shred", false},
		{"retention.ms", "-1", true},
		{"retention.ms", "-2", false},
		{"retention.ms", "1e3", false},
		{"retention.ms", "9223372036854775808", false},
		{"retention.bytes", "100", true},
		{"segment.bytes", "13", false},
		{"segment.bytes", "2147483648", false},
		{"segment.ms", "0", false},
		{"max.message.bytes", "0", true},
		{"min.insync.replicas", "0", false},
		{"min.insync.replicas", "2", true},
		{"compression.type", "zstd", true},
		{"compression.type", "rar", false},
		{"message.timestamp.type", "LogAppendTime", true},
		{"message.timestamp.type", "logappendtime", false},
		{"min.cleanable.dirty.ratio", "0.25", true},
		{"min.cleanable.dirty.ratio", "1.5", false},
		{"min.cleanable.dirty.ratio", "NaN", false},
		{"preallocate", "true", true},
		{"preallocate", "yes", false},
		{"unclean.leader.election.enable", "false", true},
		{"follower.replication.throttled.replicas", "0:1,2:3", true},
		{"leader.replication.throttled.replicas", "*", true},
		{"leader.replication.throttled.replicas", "1", false},
		{"leader.replication.throttled.replicas", "a:b", false},
		{"delete.retention.ms", "-1", false},
		{"no.such.config", "1", false},
		{"retention.ms", strings.Repeat("1", maxConfigValue+1), false},
	} {
		err := asError(checkTopicConfigs(map[string]string{tc.name: tc.value}))
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrInvalidConfig) {
			t.Errorf("%s=%.40s: %v", tc.name, tc.value, err)
		}
	}
	if err := asError(checkTopicConfigs(map[string]string{"min.compaction.lag.ms": "10", "max.compaction.lag.ms": "5"})); err == nil {
		t.Error("the shortest lag is above the longest")
	}
}

func alter(m *meta, typ ResourceType, name string, replace bool, ops ...ConfigAlterOp) error {
	m.t.Helper()
	res := m.must(&AlterConfigs{Resources: []AlterResource{{Type: typ, Name: name, Replace: replace, Ops: ops}}})
	if err := res.(*AlterConfigsResult).Resources[0].Err; err != nil {
		return err
	}
	return nil
}

func op(name string, o ConfigOp, value string) ConfigAlterOp {
	return ConfigAlterOp{Name: name, Op: o, Value: &value}
}

func TestAlterConfigs(t *testing.T) {
	m := cluster(t, 2)
	m.topic("a", 1, 1)
	get := func() string { return m.img().TopicConfigs("a")["cleanup.policy"] }
	for _, tc := range []struct {
		o    ConfigOp
		v    string
		want string
	}{
		{OpAppend, "compact", "delete,compact"}, // appended to the default
		{OpAppend, "compact", "delete,compact"},
		{OpSubtract, "delete", "compact"},
		{OpSet, "delete", "delete"},
		{OpDelete, "", ""},
	} {
		if err := alter(m, ResourceTopic, "a", false, op("cleanup.policy", tc.o, tc.v)); err != nil || get() != tc.want {
			t.Fatalf("%v %s: %q %v", tc.o, tc.v, get(), err)
		}
	}
	if err := alter(m, ResourceTopic, "a", false, op("retention.ms", OpSet, "5"), op("segment.ms", OpSet, "6")); err != nil {
		t.Fatal(err)
	}
	if err := alter(m, ResourceTopic, "a", true, op("segment.ms", OpSet, "7")); err != nil {
		t.Fatal(err)
	}
	if c := m.img().TopicConfigs("a"); len(c) != 1 || c["segment.ms"] != "7" {
		t.Fatalf("replaced: %v", c)
	}
	for name, err := range map[string]error{
		"list only":   alter(m, ResourceTopic, "a", false, op("retention.ms", OpAppend, "1")),
		"twice":       alter(m, ResourceTopic, "a", false, op("retention.ms", OpSet, "1"), op("retention.ms", OpSet, "2")),
		"no value":    alter(m, ResourceTopic, "a", false, ConfigAlterOp{Name: "retention.ms"}),
		"no topic":    alter(m, ResourceTopic, "b", false),
		"no broker":   alter(m, ResourceBroker, "3", false),
		"no resource": alter(m, 8, "a", false),
		"operation":   alter(m, ResourceTopic, "a", false, op("cleanup.policy", 9, "x")),
		"read only":   alter(m, ResourceBroker, "", false, op("num.partitions", OpSet, "3")),
		"second bad":  alter(m, ResourceTopic, "a", false, op("retention.ms", OpSet, "1"), op("segment.ms", OpSet, "x")),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if c := m.img().TopicConfigs("a"); len(c) != 1 {
		t.Fatalf("a refused change left %v", c)
	}
}

func TestEffectiveConfigs(t *testing.T) {
	m := cluster(t, 2)
	m.topic("a", 1, 1)
	static := map[string]string{"log.retention.ms": "4", "min.insync.replicas": "2"}
	check := func(step, value string, src ConfigSource, synonyms int) {
		t.Helper()
		v, ok := m.img().TopicConfig(m.img().Topic("a"), "retention.ms", 1, static)
		if !ok || v.Value != value || v.Source != src || len(v.Synonyms) != synonyms || v.Synonyms[0].Value != value {
			t.Fatalf("%s: %+v", step, v)
		}
	}
	set := func(typ ResourceType, name, config, value string) {
		t.Helper()
		if err := alter(m, typ, name, false, op(config, OpSet, value)); err != nil {
			t.Fatal(err)
		}
	}
	check("file", "4", SourceStaticBroker, 2)
	set(ResourceBroker, "", "log.retention.ms", "3")
	check("all brokers", "3", SourceDefaultBroker, 3)
	set(ResourceBroker, "1", "log.retention.ms", "2")
	check("this broker", "2", SourceBroker, 4)
	set(ResourceTopic, "a", "retention.ms", "1")
	check("topic", "1", SourceTopic, 5)
	static = nil
	v, _ := m.img().TopicConfig(m.img().Topic("a"), "segment.bytes", 1, static)
	if v.Source != SourceDefault || v.Value != "1073741824" || v.Synonyms[0].Name != "log.segment.bytes" {
		t.Fatalf("%+v", v)
	}
	if _, ok := m.img().TopicConfig(nil, "nonsense", 1, nil); ok {
		t.Fatal("an unknown config has a value")
	}
	s := m.img().Settings(m.img().Topic("a"), 1, map[string]string{"min.insync.replicas": "2", "log.segment.bytes": "rubbish"})
	if s.RetentionMs != 1 || s.MinInsyncReplicas != 2 || s.SegmentBytes != 1<<30 || !s.Delete || s.Compact || s.MinCleanableRatio != 0.5 {
		t.Fatalf("%+v", s)
	}
	if v, ok := m.img().BrokerConfig(1, "log.retention.ms", nil); !ok || v.Value != "2" || v.Source != SourceBroker {
		t.Fatalf("%+v", v)
	}
	if err := alter(m, ResourceBroker, "1", true); err != nil || m.img().BrokerConfigs(1) != nil {
		t.Fatal(err, m.img().BrokerConfigs(1))
	}
}
