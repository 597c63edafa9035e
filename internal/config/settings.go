package config

import (
	"time"
)

// setting is one row of the table.
type setting struct {
	name  string
	kind  kind
	def   string // as text; parse reads it
	doc   string
	alias string // a second environment variable
	flag  string // start's own flag; others are set with --set
	// parse reads the value from text, checks its own range and stores it.
	parse func(c *Config, text string) error
	// text writes it back so that parse reads it.
	text func(c *Config) string
}

// settings is the table. Sections stand together; the order is the reference's.
var settings = []setting{
	intSetting("node.id", "1", 1, 1<<31-1, "This node's id, unique in the cluster: Kafka's broker id. It survives a wiped disk.",
		func(c *Config) intPtr { return ref(&c.Node.ID) }).withFlag("node-id"),
	textSetting("node.data_dir", "data", "The directory of everything the node stores. One node, one directory.",
		func(c *Config) *string { return &c.Node.DataDir }).withFlag("data-dir").check(notEmpty),
	textSetting("node.rack", "", "The failure domain the node stands in. Replicas of a partition are spread over racks.",
		func(c *Config) *string { return &c.Node.Rack }),

	addrSetting("kafka.listen", "127.0.0.1:9092", "Where Kafka clients connect.",
		func(c *Config) *string { return &c.Kafka.Listen }).withFlag("kafka-addr").check(listenAddr),
	addrSetting("kafka.advertised", "", "What clients are told to connect to: `host:port`, or a host that gets the port of `kafka.listen`. "+
		"Empty: `kafka.listen`, which must then name a host.",
		func(c *Config) *string { return &c.Kafka.Advertised }).withFlag("advertised-addr").withAlias("CHRONIK_ADVERTISED_ADDR"),
	intSetting("kafka.max_connections", "0", 0, 1<<31-1, "Connections of Kafka clients at a time; more are refused. 0: three quarters of the files that the process may have open, "+
		"so that clients cannot take what the log needs.",
		func(c *Config) intPtr { return ref(&c.Kafka.MaxConnections) }),
	intSetting("kafka.max_fetch_sessions", "1000", 0, 1<<20, "Incremental fetch sessions of consumers at a time, in at most 64 MiB. Consumers beyond them name all their partitions in each request. "+
		"0: no sessions.",
		func(c *Config) intPtr { return ref(&c.Kafka.MaxFetchSessions) }),

	addrSetting("raft.listen", "", "Where other nodes connect. Empty: as this node's entry in `cluster.peers` says; 127.0.0.1:9192 without peers.",
		func(c *Config) *string { return &c.Raft.Listen }).withFlag("raft-addr"),
	durationSetting("raft.election_timeout", "1s", 10*time.Millisecond, time.Minute,
		"How long a follower hears nothing from its leader before it stands for election. At least twice the heartbeat interval.",
		func(c *Config) *time.Duration { return &c.Raft.ElectionTimeout }),
	durationSetting("raft.heartbeat_interval", "100ms", time.Millisecond, time.Minute, "How often a leader says that it is alive.",
		func(c *Config) *time.Duration { return &c.Raft.HeartbeatInterval }),
	boolSetting("raft.quiesce", "true", "Whether groups in which nothing goes on stop to send heartbeats until something does.",
		func(c *Config) *bool { return &c.Raft.Quiesce }),
	sizeSetting("raft.max_inflight_bytes", "16MiB", 64<<10, 1<<30, "How much a leader sends to one follower of a group before it waits for an answer.",
		func(c *Config) *Size { return &c.Raft.MaxInflightBytes }),

	addrSetting("admin.listen", "127.0.0.1:9292", "Where health, metrics and state are served over HTTP.",
		func(c *Config) *string { return &c.Admin.Listen }).withFlag("admin-addr").check(listenAddr),

	peersSetting("cluster.peers", "The nodes of a new cluster, the same on every node: `1@host:9192,2@host:9192,3@host:9192`, or an array of such entries. "+
		"Addresses are those of `raft.listen`. Empty: a standalone node. A node that is not in its own list joins the others.",
		func(c *Config) *[]Peer { return &c.Cluster.Peers }).withFlag("peers"),
	intSetting("cluster.replication_factor", "3", 1, 1000, "Replicas of a new topic's partitions, at most the number of nodes.",
		func(c *Config) intPtr { return ref(&c.Cluster.ReplicationFactor) }),
	intSetting("cluster.min_insync_replicas", "2", 1, 1000, "Replicas that must have a write on disk before acks=all is answered. At most the replication factor.",
		func(c *Config) intPtr { return ref(&c.Cluster.MinInsyncReplicas) }),

	intSetting("snapshot.threshold_entries", "10000", 1, 1<<40, "Log entries after which a replica takes a snapshot.",
		func(c *Config) intPtr { return ref(&c.Snapshot.ThresholdEntries) }),
	sizeSetting("snapshot.threshold_bytes", "64MiB", 1<<10, 1<<50, "Bytes of log entries after which a replica takes a snapshot.",
		func(c *Config) *Size { return &c.Snapshot.ThresholdBytes }),
	durationSetting("snapshot.interval", "1h", time.Second, 365*24*time.Hour, "Time after which a replica with anything new takes a snapshot.",
		func(c *Config) *time.Duration { return &c.Snapshot.Interval }),
	intSetting("snapshot.keep_entries", "auto", 0, 1<<40, "Log entries kept behind a snapshot for followers a little late. "+
		"`auto`: a tenth of `snapshot.threshold_entries`, at most 5000.",
		func(c *Config) intPtr { return ref(&c.Snapshot.KeepEntries) }).orAuto(func(c *Config) { c.Snapshot.KeepEntries = -1 }),
	sizeSetting("snapshot.hold_bytes", "64MiB", 0, 1<<50, "How much log is kept for a live follower that is behind, before it is sent a snapshot.",
		func(c *Config) *Size { return &c.Snapshot.HoldBytes }),
	enumSetting("snapshot.compression", "zstd", "Compression of a snapshot's state on disk.",
		func(c *Config) *string { return &c.Snapshot.Compression }, "zstd", "gzip", "none"),
	intSetting("snapshot.max_concurrent", "2", 1, 1000, "Snapshots that are taken, sent or received at a time. One of at most 1 MiB counts an eighth: of what is to be moved, or of entries since the last.",
		func(c *Config) intPtr { return ref(&c.Snapshot.MaxConcurrent) }),
	sizeSetting("snapshot.max_bytes_per_second", "0", 0, 1<<50, "How fast snapshots are sent. 0: as fast as they can.",
		func(c *Config) *Size { return &c.Snapshot.MaxBytesPerSecond }),
	intSetting("snapshot.retention_count", "3", 1, 1_000_000, "Snapshots kept in the object store for each replica group.",
		func(c *Config) intPtr { return ref(&c.Snapshot.RetentionCount) }),

	textSetting("object_store.url", "", "Where snapshots are kept besides: `file:///dir` or `s3://bucket/prefix?endpoint=…&region=…`. Empty: nowhere.",
		func(c *Config) *string { return &c.ObjectStore.URL }).check(storeURL),
	durationSetting("object_store.upload_interval", "1m", time.Second, 365*24*time.Hour,
		"The least time between two uploads of a group's snapshots. Those of the cluster's metadata go at once.",
		func(c *Config) *time.Duration { return &c.ObjectStore.UploadInterval }),
	durationSetting("object_store.grace", "1h", time.Minute, 365*24*time.Hour,
		"How long bytes in the object store must have belonged to no snapshot before they are removed. An upload may take half of it. The same on every node.",
		func(c *Config) *time.Duration { return &c.ObjectStore.Grace }),

	sizeSetting("raftlog.max_bytes", "512MiB", 1<<20, 1<<50, "How much the node's Raft log may grow before replicas take snapshots to shorten it.",
		func(c *Config) *Size { return &c.Raftlog.MaxBytes }),
	sizeSetting("raftlog.file_bytes", "64MiB", 64<<10, 2<<30, "The size of one file of the Raft log. At most half of `raftlog.max_bytes`.",
		func(c *Config) *Size { return &c.Raftlog.FileBytes }),

	intSetting("group.partitions", "8", 1, 1000, "Replica groups that consumer groups are spread over. Fixed when the cluster is made.",
		func(c *Config) intPtr { return ref(&c.Group.Partitions) }),
	intSetting("txn.partitions", "8", 1, 1000, "Replica groups that transactions are spread over. Fixed when the cluster is made.",
		func(c *Config) intPtr { return ref(&c.Txn.Partitions) }),

	boolSetting("topic.auto_create", "true", "Whether a topic comes into being when a client asks for it.",
		func(c *Config) *bool { return &c.Topic.AutoCreate }),
	intSetting("topic.default_partitions", "1", 1, 100_000, "Partitions of a topic that comes into being so.",
		func(c *Config) intPtr { return ref(&c.Topic.DefaultPartitions) }),

	enumSetting("log.level", "info", "What is logged.",
		func(c *Config) *string { return &c.Log.Level }, "debug", "info", "warn", "error"),
	enumSetting("log.format", "text", "How: `key=value` or one JSON object a line.",
		func(c *Config) *string { return &c.Log.Format }, "text", "json"),
}

// find returns the setting of that name.
func find(name string) *setting {
	for i := range settings {
		if settings[i].name == name {
			return &settings[i]
		}
	}
	return nil
}
