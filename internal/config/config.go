package config

import (
	"net"
	"time"

	"chronik/internal/ident"
)

// Config is all settings of a node. settings.go says what each means.
type Config struct {
	Node        Node
	Kafka       Kafka
	Raft        Raft
	Admin       Admin
	Cluster     Cluster
	Snapshot    Snapshot
	ObjectStore ObjectStore
	Raftlog     Raftlog
	Group       Group
	Txn         Txn
	Topic       Topic
	Log         Log

	// origins says where a setting's value comes from, by name; absent: the default.
	origins map[string]string
}

// Node is the section node.
type Node struct {
	ID      ident.NodeID
	DataDir string
	Rack    string
}

// Kafka is the section kafka.
type Kafka struct {
	Listen     string
	Advertised string // after Load never empty
	// MaxConnections at a time; 0: as many as the limit of open files has room for.
	MaxConnections int
	// MaxFetchSessions is how many incremental fetch sessions are kept; 0: none.
	MaxFetchSessions int
}

// Raft is the section raft.
type Raft struct {
	Listen            string // after Load never empty
	ElectionTimeout   time.Duration
	HeartbeatInterval time.Duration
	Quiesce           bool
	MaxInflightBytes  Size
}

// Admin is the section admin.
type Admin struct{ Listen string }

// Cluster is the section cluster.
type Cluster struct {
	Peers             []Peer
	ReplicationFactor int
	MinInsyncReplicas int
}

// Peer is one of the first nodes of a cluster.
type Peer struct {
	ID   ident.NodeID
	Addr string // its raft.listen as the others reach it
}

// Snapshot is the section snapshot.
type Snapshot struct {
	ThresholdEntries  uint64
	ThresholdBytes    Size
	Interval          time.Duration
	KeepEntries       int64 // after Load never negative
	HoldBytes         Size
	Compression       string
	MaxConcurrent     int
	MaxBytesPerSecond Size // 0: unlimited
	RetentionCount    int
}

// ObjectStore is the section object_store.
type ObjectStore struct {
	URL            string
	UploadInterval time.Duration
	Grace          time.Duration
}

// Raftlog is the section raftlog.
type Raftlog struct {
	MaxBytes  Size
	FileBytes Size
}

// Group is the section group.
type Group struct{ Partitions int }

// Txn is the section txn.
type Txn struct{ Partitions int }

// Topic is the section topic.
type Topic struct {
	AutoCreate        bool
	DefaultPartitions int
}

// Log is the section log.
type Log struct {
	Level  string
	Format string
}

// AdvertisedAddr is what clients are told to connect to.
func (c *Config) AdvertisedAddr() string { return c.Kafka.Advertised }

// Error is a problem with the configuration, and what to do about it.
type Error struct {
	Msg  string // where, and what is wrong
	Hint string // what to do; may be empty
	Flag bool   // the command line is at fault, not the file or the environment
}

// Error implements error.
func (e *Error) Error() string { return e.Msg }

// Advice is what to do about it.
func (e *Error) Advice() string { return e.Hint }

// Default returns the configuration of a node for which nothing is set.
func Default() *Config {
	c := &Config{origins: map[string]string{}}
	for i := range settings {
		if err := settings[i].parse(c, settings[i].def); err != nil {
			panic("config: default of " + settings[i].name + ": " + err.Error())
		}
	}
	c.derive()
	return c
}

// derive fills in what follows from other settings. It runs after all sources
// and before Validate, and only touches what is not set.
func (c *Config) derive() {
	if c.Raft.Listen == "" {
		c.Raft.Listen = defaultRaftListen
		for _, p := range c.Cluster.Peers {
			if p.ID != c.Node.ID {
				continue
			}
			c.Raft.Listen = p.Addr
			if host, port, err := net.SplitHostPort(p.Addr); err == nil && !isLoopback(host) {
				c.Raft.Listen = ":" + port
			}
			c.origins["raft.listen"] = "from cluster.peers"
		}
	}
	switch host, port, err := net.SplitHostPort(c.Kafka.Listen); {
	case err != nil: // Validate says so
	case c.Kafka.Advertised == "" && !isWildcard(host):
		c.Kafka.Advertised = c.Kafka.Listen
		c.origins["kafka.advertised"] = "from kafka.listen"
	case c.Kafka.Advertised != "" && !hasPort(c.Kafka.Advertised):
		c.Kafka.Advertised = net.JoinHostPort(trimBrackets(c.Kafka.Advertised), port)
	}
	if c.Snapshot.KeepEntries < 0 {
		c.Snapshot.KeepEntries = int64(min(c.Snapshot.ThresholdEntries/10, 5000))
		c.origins["snapshot.keep_entries"] = "from snapshot.threshold_entries"
	}
}

const defaultRaftListen = "127.0.0.1:9192"

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// isWildcard tells whether host means every address of this machine.
func isWildcard(host string) bool {
	if host == "" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsUnspecified()
}

func hasPort(addr string) bool {
	_, _, err := net.SplitHostPort(addr)
	return err == nil
}

func trimBrackets(host string) string {
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		return host[1 : len(host)-1]
	}
	return host
}
