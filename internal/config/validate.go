package config

import (
	"fmt"
	"net"
	"slices"
)

// Validate checks what no setting can check alone. Errors are *Error and name
// the settings.
func (c *Config) Validate() error {
	for _, check := range []func() error{c.checkAddresses, c.checkAdvertised, c.checkRaft, c.checkCluster, c.checkSizes} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// at names a setting and where its value comes from.
func (c *Config) at(name string) string {
	if o := c.origins[name]; o != "" {
		return fmt.Sprintf("%s (%s)", name, o)
	}
	return name
}

func (c *Config) errorf(hint, format string, args ...any) error {
	return &Error{Msg: fmt.Sprintf(format, args...), Hint: hint}
}

func (c *Config) checkAddresses() error {
	type listener struct{ name, addr string }
	ls := []listener{{"kafka.listen", c.Kafka.Listen}, {"raft.listen", c.Raft.Listen}, {"admin.listen", c.Admin.Listen}}
	for i, l := range ls {
		if err := checkAddr(l.addr); err != nil {
			return c.errorf(find(l.name).hint(), "%s: %v", c.at(l.name), err)
		}
		for _, other := range ls[:i] {
			if clash(l.addr, other.addr) {
				return c.errorf("give each its own port", "%s and %s both listen on %s", c.at(other.name), c.at(l.name), l.addr)
			}
		}
	}
	return nil
}

// clash tells whether two listeners want the same port of the same address.
func clash(a, b string) bool {
	ha, pa, _ := net.SplitHostPort(a)
	hb, pb, _ := net.SplitHostPort(b)
	return pa == pb && (ha == hb || isWildcard(ha) || isWildcard(hb))
}

func (c *Config) checkAdvertised() error {
	const how = "set kafka.advertised (CHRONIK_ADVERTISED_ADDR, --advertised-addr) to the address by which clients reach this node, for example broker-1.example.com:9092"
	if c.Kafka.Advertised == "" {
		return c.errorf(how, "%s is %s, and no client can connect to that address", c.at("kafka.listen"), c.Kafka.Listen)
	}
	if err := checkAddr(c.Kafka.Advertised); err != nil {
		return c.errorf(how, "%s: %v", c.at("kafka.advertised"), err)
	}
	if host, _, _ := net.SplitHostPort(c.Kafka.Advertised); isWildcard(host) {
		return c.errorf(how, "%s is %s, and no client can connect to that address", c.at("kafka.advertised"), c.Kafka.Advertised)
	}
	return nil
}

func (c *Config) checkRaft() error {
	if c.Raft.ElectionTimeout < 2*c.Raft.HeartbeatInterval {
		return c.errorf("a follower must be able to miss one heartbeat", "%s is %s, less than twice %s (%s)",
			c.at("raft.election_timeout"), durationText(c.Raft.ElectionTimeout), c.at("raft.heartbeat_interval"), durationText(c.Raft.HeartbeatInterval))
	}
	return nil
}

func (c *Config) checkCluster() error {
	if c.Cluster.MinInsyncReplicas > c.Cluster.ReplicationFactor {
		return c.errorf("no write with acks=all could ever succeed", "%s is %d, more than %s (%d)",
			c.at("cluster.min_insync_replicas"), c.Cluster.MinInsyncReplicas, c.at("cluster.replication_factor"), c.Cluster.ReplicationFactor)
	}
	host, _, _ := net.SplitHostPort(c.Raft.Listen)
	if err := c.checkJoiner(host); err != nil {
		return err
	}
	if isLoopback(host) {
		for _, p := range c.Cluster.Peers {
			if h, _, _ := net.SplitHostPort(p.Addr); p.ID == c.Node.ID && !isLoopback(h) {
				return c.errorf("leave raft.listen empty, or listen on :"+portOf(p.Addr),
					"%s is %s, but %s tells the others to connect to %s", c.at("raft.listen"), c.Raft.Listen, c.at("cluster.peers"), p.Addr)
			}
		}
	}
	return nil
}

// checkJoiner: a node that is not among its peers joins them, and registers raft.listen for them to connect to.
func (c *Config) checkJoiner(host string) error {
	if !isLoopback(host) && !isWildcard(host) || slices.ContainsFunc(c.Cluster.Peers, func(p Peer) bool { return p.ID == c.Node.ID }) {
		return nil
	}
	for _, p := range c.Cluster.Peers {
		if h, _, _ := net.SplitHostPort(p.Addr); !isLoopback(h) {
			return c.errorf("set raft.listen to an address of this host that they reach",
				"%s is %s, to which node %d at %s cannot connect: this node is not in %s, joins those, and tells them its raft.listen",
				c.at("raft.listen"), c.Raft.Listen, p.ID, p.Addr, c.at("cluster.peers"))
		}
	}
	return nil
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

func (c *Config) checkSizes() error {
	if c.Raftlog.MaxBytes < 2*c.Raftlog.FileBytes {
		return c.errorf("the log needs at least two files", "%s is %s, less than twice %s (%s)",
			c.at("raftlog.max_bytes"), c.Raftlog.MaxBytes, c.at("raftlog.file_bytes"), c.Raftlog.FileBytes)
	}
	return nil
}
