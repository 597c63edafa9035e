package kafka

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/partition"
)

// configDef is one setting of a topic by Kafka's name.
type configDef struct {
	name  string
	typ   kmsg.ConfigType
	value string // the default
	check func(string) error
	doc   string
	// broker is the name of the node's setting that stands in when the topic
	// says nothing; "" if there is none.
	broker string
}

const maxInt64 = "9223372036854775807"

// topicConfigs are the settings a topic has, in order of name. Some are kept for
// clients that set them and have no effect here; their text says so.
var topicConfigs = []configDef{
	{
		name: "cleanup.policy", typ: kmsg.ConfigTypeList, value: "delete", check: listOf("delete", "compact"), broker: "log.cleanup.policy",
		doc: "What happens to old records: delete removes whole segments, compact keeps the last record of each key.",
	},
	{name: "compression.gzip.level", typ: kmsg.ConfigTypeInt, value: "-1", check: intIn(-1, 9), doc: noEffect},
	{name: "compression.lz4.level", typ: kmsg.ConfigTypeInt, value: "9", check: intIn(1, 17), doc: noEffect},
	{
		name: "compression.type", typ: kmsg.ConfigTypeString, value: "producer", check: oneOf("producer", "uncompressed", "none", "gzip", "snappy", "lz4", "zstd"), broker: "compression.type",
		doc: "Batches keep the compression that the producer chose, whatever is set here.",
	},
	{name: "compression.zstd.level", typ: kmsg.ConfigTypeInt, value: "3", check: intIn(-131072, 22), doc: noEffect},
	{
		name: "delete.retention.ms", typ: kmsg.ConfigTypeLong, value: "86400000", check: longFrom(0),
		doc: "How long compaction keeps a record without a value.",
	},
	{name: "file.delete.delay.ms", typ: kmsg.ConfigTypeLong, value: "60000", check: longFrom(0), doc: noEffect},
	{name: "flush.messages", typ: kmsg.ConfigTypeLong, value: maxInt64, check: longFrom(1), doc: noEffect},
	{name: "flush.ms", typ: kmsg.ConfigTypeLong, value: maxInt64, check: longFrom(0), doc: noEffect},
	{name: "follower.replication.throttled.replicas", typ: kmsg.ConfigTypeList, value: "", check: anything, doc: noEffect},
	{name: "index.interval.bytes", typ: kmsg.ConfigTypeInt, value: "4096", check: intIn(0, math.MaxInt32), doc: noEffect},
	{name: "leader.replication.throttled.replicas", typ: kmsg.ConfigTypeList, value: "", check: anything, doc: noEffect},
	{name: "local.retention.bytes", typ: kmsg.ConfigTypeLong, value: "-2", check: longFrom(-2), doc: noEffect},
	{name: "local.retention.ms", typ: kmsg.ConfigTypeLong, value: "-2", check: longFrom(-2), doc: noEffect},
	{
		name: "max.compaction.lag.ms", typ: kmsg.ConfigTypeLong, value: maxInt64, check: longFrom(1),
		doc: "How long a record may stay uncompacted at most.",
	},
	{
		name: "max.message.bytes", typ: kmsg.ConfigTypeInt, value: "1048588", check: intIn(0, partition.MaxBatch), broker: "message.max.bytes",
		doc: "The largest batch that is accepted, in bytes, as the producer compressed it. At most " + strconv.Itoa(partition.MaxBatch) + ".",
	},
	{
		name: "message.timestamp.after.max.ms", typ: kmsg.ConfigTypeLong, value: "3600000", check: longFrom(0),
		doc: "How far a record's time may lie ahead of the broker's clock.",
	},
	{
		name: "message.timestamp.before.max.ms", typ: kmsg.ConfigTypeLong, value: maxInt64, check: longFrom(0),
		doc: "How far a record's time may lie behind the broker's clock.",
	},
	{
		name: "message.timestamp.type", typ: kmsg.ConfigTypeString, value: "CreateTime", check: oneOf("CreateTime", "LogAppendTime"), broker: "log.message.timestamp.type",
		doc: "Whether a record keeps the time the producer gave it or gets the broker's.",
	},
	{
		name: "min.cleanable.dirty.ratio", typ: kmsg.ConfigTypeDouble, value: "0.5", check: ratio,
		doc: "The share of uncompacted bytes from which compaction starts.",
	},
	{
		name: "min.compaction.lag.ms", typ: kmsg.ConfigTypeLong, value: "0", check: longFrom(0),
		doc: "How long a record stays uncompacted at least.",
	},
	{
		name: "min.insync.replicas", typ: kmsg.ConfigTypeInt, value: "1", check: intIn(1, math.MaxInt32), broker: "min.insync.replicas",
		doc: "How many replicas must have a batch before acks=all is answered.",
	},
	{name: "preallocate", typ: kmsg.ConfigTypeBoolean, value: "false", check: oneOf("true", "false"), doc: noEffect},
	{
		name: "remote.storage.enable", typ: kmsg.ConfigTypeBoolean, value: "false", check: only("false", "tiered storage is not served"),
		doc: "Always false: there is no tiered storage.",
	},
	{
		name: "retention.bytes", typ: kmsg.ConfigTypeLong, value: "-1", check: longFrom(-1),
		doc: "How many bytes a partition keeps; -1 is all.",
	},
	{
		name: "retention.ms", typ: kmsg.ConfigTypeLong, value: "604800000", check: longFrom(-1),
		doc: "How long a partition keeps records; -1 is for ever.",
	},
	{
		name: "segment.bytes", typ: kmsg.ConfigTypeInt, value: "1073741824", check: intIn(14, math.MaxInt32), broker: "log.segment.bytes",
		doc: "The size at which a partition begins a new segment.",
	},
	{name: "segment.index.bytes", typ: kmsg.ConfigTypeInt, value: "10485760", check: intIn(4, math.MaxInt32), doc: noEffect},
	{name: "segment.jitter.ms", typ: kmsg.ConfigTypeLong, value: "0", check: longFrom(0), doc: noEffect},
	{
		name: "segment.ms", typ: kmsg.ConfigTypeLong, value: "604800000", check: longFrom(1),
		doc: "The age at which a partition begins a new segment.",
	},
	{
		name: "unclean.leader.election.enable", typ: kmsg.ConfigTypeBoolean, value: "false", check: only("false", "a replica that lacks committed records is never elected"),
		doc: "Always false: a replica that lacks committed records is never elected.",
	},
}

const noEffect = "Accepted for clients that set it; it has no effect here."

// topicConfig finds a setting by name; nil if topics have none of that name.
func topicConfig(name string) *configDef {
	i, ok := slices.BinarySearchFunc(topicConfigs, name, func(d configDef, name string) int { return strings.Compare(d.name, name) })
	if !ok {
		return nil
	}
	return &topicConfigs[i]
}

// checkConfig tells whether a topic's setting may have a value.
func checkConfig(name, value string) error {
	d := topicConfig(name)
	if d == nil {
		return failf(kerr.InvalidConfig, "topics have no setting %q", name)
	}
	if err := d.check(value); err != nil {
		return failf(kerr.InvalidConfig, "%s: %v", name, err)
	}
	return nil
}

func anything(string) error { return nil }

func intIn(low, high int64) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < low || n > high {
			return fmt.Errorf("%q is not a number from %d to %d", s, low, high)
		}
		return nil
	}
}

func longFrom(low int64) func(string) error { return intIn(low, math.MaxInt64) }

func ratio(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f <= 1) {
		return fmt.Errorf("%q is not a number from 0 to 1", s)
	}
	return nil
}

func oneOf(values ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(values, s) {
			return fmt.Errorf("%q is not one of %s", s, strings.Join(values, ", "))
		}
		return nil
	}
}

func listOf(values ...string) func(string) error {
	one := oneOf(values...)
	return func(s string) error {
		items := splitList(s)
		if len(items) == 0 {
			return fmt.Errorf("it needs one of %s", strings.Join(values, ", "))
		}
		for _, item := range items {
			if err := one(item); err != nil {
				return err
			}
		}
		return nil
	}
}

func only(value, why string) func(string) error {
	return func(s string) error {
		if s != value {
			return fmt.Errorf("only %s is possible: %s", value, why)
		}
		return nil
	}
}

// splitList splits a list setting; blanks around the commas do not count.
func splitList(s string) []string {
	var items []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// configSource is where a setting's value comes from.
type configValue struct {
	value  string
	source kmsg.ConfigSource
}

// nodeValue is the node's stand-in for a topic's setting, if it has one of its own.
func (h *Handler) nodeValue(name string) (string, bool) {
	c := &h.config
	switch name {
	case "min.insync.replicas":
		if c.MinInsyncReplicas > 0 {
			return strconv.Itoa(int(c.MinInsyncReplicas)), true
		}
	case "max.message.bytes":
		if c.MaxMessageBytes > 0 {
			return clamped(name, strconv.Itoa(int(c.MaxMessageBytes))), true
		}
	}
	return "", false
}

// clamped is what a stored value means. An older release took batches that are larger than any replica takes.
func clamped(name, value string) string {
	if name != "max.message.bytes" {
		return value
	}
	if n, err := strconv.ParseInt(value, 10, 64); err != nil || n <= partition.MaxBatch {
		return value
	}
	return strconv.Itoa(partition.MaxBatch)
}

// effective lists where a topic's setting may come from, the one that holds first.
func (h *Handler) effective(configs map[string]string, d *configDef) []configValue {
	values := make([]configValue, 0, 3)
	if v, ok := configs[d.name]; ok {
		values = append(values, configValue{clamped(d.name, v), kmsg.ConfigSourceDynamicTopicConfig})
	}
	if v, ok := h.nodeValue(d.name); ok {
		values = append(values, configValue{v, kmsg.ConfigSourceStaticBrokerConfig})
	}
	return append(values, configValue{d.value, kmsg.ConfigSourceDefaultConfig})
}

// topicSettings are a topic's settings as requests use them.
type topicSettings struct {
	maxMessageBytes   int
	logAppendTime     bool
	compacted         bool
	deleted           bool // cleanup.policy contains delete
	minInsync         int
	timestampBeforeMs int64
	timestampAfterMs  int64
}

// topicSettings reads what a topic's settings say, with the node's settings and
// Kafka's defaults behind them. A value that does not parse was not accepted
// here; the default stands in for it.
func (h *Handler) topicSettings(t *metadata.Topic) topicSettings {
	number := func(name string) int64 {
		var text string
		var set bool
		if len(t.Configs) > 0 {
			text, set = t.Configs[name]
			text = clamped(name, text)
		}
		if !set {
			text, set = h.nodeValue(name)
		}
		def := topicConfig(name)
		if !set || def.check(text) != nil {
			text = def.value
		}
		n, _ := strconv.ParseInt(text, 10, 64) // checked above
		return n
	}
	s := topicSettings{
		maxMessageBytes:   int(number("max.message.bytes")),
		logAppendTime:     t.Configs["message.timestamp.type"] == "LogAppendTime",
		deleted:           true,
		minInsync:         int(number("min.insync.replicas")),
		timestampBeforeMs: number("message.timestamp.before.max.ms"),
		timestampAfterMs:  number("message.timestamp.after.max.ms"),
	}
	if policy, ok := t.Configs["cleanup.policy"]; ok {
		items := splitList(policy)
		s.compacted, s.deleted = slices.Contains(items, "compact"), slices.Contains(items, "delete")
	}
	return s
}
