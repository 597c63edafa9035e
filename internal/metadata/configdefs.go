package metadata

import (
	"math"
	"slices"
	"strings"
)

// ConfigType is a config's type in Kafka's numbers.
type ConfigType int8

// Config types.
const (
	TypeBoolean ConfigType = 1
	TypeString  ConfigType = 2
	TypeInt     ConfigType = 3
	TypeLong    ConfigType = 5
	TypeDouble  ConfigType = 6
	TypeList    ConfigType = 7
)

// ConfigDef describes one config by Kafka's name.
type ConfigDef struct {
	Name    string
	Type    ConfigType
	Default string
	Doc     string
	// Broker is, for a topic config, the broker config it defaults to; "" for none.
	Broker string
	// ReadOnly broker configs cannot be changed while the node runs.
	ReadOnly bool

	min, max int64    // bounds of TypeInt and TypeLong
	oneOf    []string // allowed values of TypeString and members of TypeList; nil = any
}

const (
	maxLong = math.MaxInt64
	maxInt  = math.MaxInt32
)

func boolDef(name, broker, def, doc string) ConfigDef {
	return ConfigDef{Name: name, Type: TypeBoolean, Broker: broker, Default: def, Doc: doc}
}

func intDef(name, broker, def string, low, high int64, doc string) ConfigDef {
	return ConfigDef{Name: name, Type: TypeInt, Broker: broker, Default: def, min: low, max: high, Doc: doc}
}

func longDef(name, broker, def string, low int64, doc string) ConfigDef {
	return ConfigDef{Name: name, Type: TypeLong, Broker: broker, Default: def, min: low, max: maxLong, Doc: doc}
}

func stringDef(name, broker, def string, oneOf []string, doc string) ConfigDef {
	return ConfigDef{Name: name, Type: TypeString, Broker: broker, Default: def, oneOf: oneOf, Doc: doc}
}

func listDef(name, broker, def string, oneOf []string, doc string) ConfigDef {
	return ConfigDef{Name: name, Type: TypeList, Broker: broker, Default: def, oneOf: oneOf, Doc: doc}
}

const longMax = "9223372036854775807"

// topicDefs are the topic configs. The order is Kafka's: by name.
var topicDefs = sortDefs([]ConfigDef{
	listDef("cleanup.policy", "log.cleanup.policy", "delete", []string{"compact", "delete"},
		"What happens to old records: delete drops segments by age and size, compact keeps the latest record of each key."),
	intDef("compression.gzip.level", "compression.gzip.level", "-1", -1, 9,
		"Level for gzip. Batches are stored as the producer compressed them, so it has no effect."),
	intDef("compression.lz4.level", "compression.lz4.level", "9", 1, 17,
		"Level for lz4. Batches are stored as the producer compressed them, so it has no effect."),
	intDef("compression.zstd.level", "compression.zstd.level", "3", -131072, 22,
		"Level for zstd. Batches are stored as the producer compressed them, so it has no effect."),
	stringDef("compression.type", "compression.type", "producer",
		[]string{"uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"},
		"Compression of stored batches. Chronik keeps the producer's."),
	longDef("delete.retention.ms", "log.cleaner.delete.retention.ms", "86400000", 0,
		"How long compaction keeps a tombstone."),
	longDef("file.delete.delay.ms", "log.segment.delete.delay.ms", "60000", 0,
		"How long a dropped segment's files stay on disk. Files pinned by a snapshot stay longer."),
	longDef("flush.messages", "log.flush.interval.messages", longMax, 1,
		"Records between flushes. Every acknowledged record is already durable, so it has no effect."),
	longDef("flush.ms", "log.flush.interval.ms", longMax, 0,
		"Time between flushes. Every acknowledged record is already durable, so it has no effect."),
	listDef("follower.replication.throttled.replicas", "", "", nil,
		"Replicas, as partition:node or *, whose incoming replication is throttled."),
	intDef("index.interval.bytes", "log.index.interval.bytes", "4096", 0, maxInt,
		"How many bytes of records share an entry of the offset index."),
	listDef("leader.replication.throttled.replicas", "", "", nil,
		"Replicas, as partition:node or *, whose outgoing replication is throttled."),
	longDef("max.compaction.lag.ms", "log.cleaner.max.compaction.lag.ms", longMax, 1,
		"The longest time a record may stay uncompacted."),
	intDef("max.message.bytes", "message.max.bytes", "1048588", 0, maxInt,
		"The largest record batch accepted, as it arrives."),
	longDef("message.timestamp.after.max.ms", "log.message.timestamp.after.max.ms", "3600000", 0,
		"How far a record's timestamp may lie ahead of the broker's clock."),
	longDef("message.timestamp.before.max.ms", "log.message.timestamp.before.max.ms", longMax, 0,
		"How far a record's timestamp may lie behind the broker's clock."),
	longDef("message.timestamp.difference.max.ms", "log.message.timestamp.difference.max.ms", longMax, 0,
		"How far a record's timestamp may differ from the broker's clock. Superseded by the before and after limits."),
	stringDef("message.timestamp.type", "log.message.timestamp.type", "CreateTime",
		[]string{"CreateTime", "LogAppendTime"},
		"Whose time a record carries: the producer's or the broker's."),
	{
		Name: "min.cleanable.dirty.ratio", Type: TypeDouble, Broker: "log.cleaner.min.cleanable.ratio",
		Default: "0.5", min: 0, max: 1,
		Doc: "The uncompacted share of a log that makes it worth compacting.",
	},
	longDef("min.compaction.lag.ms", "log.cleaner.min.compaction.lag.ms", "0", 0,
		"The shortest time a record stays uncompacted."),
	intDef("min.insync.replicas", "min.insync.replicas", "1", 1, maxInt,
		"On how many replicas a record must be before a write with acks=all is acknowledged. Never fewer than a majority."),
	boolDef("preallocate", "log.preallocate", "false",
		"Whether a segment's file is allocated at once."),
	longDef("retention.bytes", "log.retention.bytes", "-1", -1,
		"How many bytes of a partition are kept at least, with cleanup.policy delete. -1 is no limit."),
	longDef("retention.ms", "log.retention.ms", "604800000", -1,
		"How long records are kept, with cleanup.policy delete. -1 is for ever."),
	intDef("segment.bytes", "log.segment.bytes", "1073741824", 14, maxInt,
		"The size at which a segment is closed and the next begun."),
	intDef("segment.index.bytes", "log.index.size.max.bytes", "10485760", 4, maxInt,
		"The largest size of a segment's offset index."),
	longDef("segment.jitter.ms", "log.roll.jitter.ms", "0", 0,
		"How much earlier, at random, a segment may be closed. Segments close at the same offsets everywhere, so it has no effect."),
	longDef("segment.ms", "log.roll.ms", "604800000", 1,
		"The age at which a segment is closed even if it is not full."),
	boolDef("unclean.leader.election.enable", "unclean.leader.election.enable", "false",
		"Whether a replica that lacks acknowledged records may lead. Raft never allows that, so it has no effect."),
})

// brokerOnlyDefs are broker configs that no topic config defaults to.
var brokerOnlyDefs = []ConfigDef{
	readOnly(stringDef("advertised.listeners", "", "", nil, "The address clients are told.")),
	readOnly(boolDef("auto.create.topics.enable", "", "true", "Whether asking for an unknown topic creates it.")),
	readOnly(intDef("broker.id", "", "-1", -1, maxInt, "This node's id.")),
	readOnly(stringDef("broker.rack", "", "", nil, "The rack replicas are spread over.")),
	readOnly(intDef("default.replication.factor", "", "1", 1, 32767, "Replicas of a topic created without a number.")),
	readOnly(boolDef("delete.topic.enable", "", "true", "Whether topics can be deleted.")),
	longDef("follower.replication.throttled.rate", "", longMax, 0, "Bytes a second of throttled incoming replication."),
	readOnly(intDef("group.initial.rebalance.delay.ms", "", "500", 0, maxInt, "How long an empty group waits for more members.")),
	readOnly(intDef("group.max.session.timeout.ms", "", "1800000", 0, maxInt, "The longest session timeout a member may ask for.")),
	readOnly(intDef("group.min.session.timeout.ms", "", "6000", 0, maxInt, "The shortest session timeout a member may ask for.")),
	longDef("leader.replication.throttled.rate", "", longMax, 0, "Bytes a second of throttled outgoing replication."),
	readOnly(stringDef("listeners", "", "", nil, "The address clients are served on.")),
	readOnly(stringDef("log.dirs", "", "", nil, "The data directory.")),
	readOnly(intDef("node.id", "", "-1", -1, maxInt, "This node's id.")),
	readOnly(intDef("num.partitions", "", "1", 1, MaxPartitions, "Partitions of a topic created without a number.")),
	readOnly(intDef("offsets.retention.minutes", "", "10080", 1, maxInt, "How long an empty group's offsets are kept.")),
	readOnly(intDef("offsets.topic.num.partitions", "", "8", 1, maxCoordinators, "Shards of the consumer group coordinator.")),
	readOnly(intDef("offsets.topic.replication.factor", "", "3", 1, 32767, "Replicas of a coordinator shard.")),
}

// brokerDefs are all broker configs: those topic configs default to, and the rest.
var brokerDefs = makeBrokerDefs()

func makeBrokerDefs() []ConfigDef {
	defs := slices.Clone(brokerOnlyDefs)
	for _, t := range topicDefs {
		if t.Broker != "" {
			t.Name, t.Broker = t.Broker, ""
			defs = append(defs, t)
		}
	}
	return sortDefs(defs)
}

func readOnly(d ConfigDef) ConfigDef {
	d.ReadOnly = true
	return d
}

func sortDefs(defs []ConfigDef) []ConfigDef {
	slices.SortFunc(defs, func(a, b ConfigDef) int { return strings.Compare(a.Name, b.Name) })
	return defs
}

func findDef(defs []ConfigDef, name string) *ConfigDef {
	i, ok := slices.BinarySearchFunc(defs, name, func(d ConfigDef, n string) int { return strings.Compare(d.Name, n) })
	if !ok {
		return nil
	}
	return &defs[i]
}
