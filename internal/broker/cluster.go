package broker

import (
	"context"

	"chronik/internal/ident"
	"chronik/internal/kafka"
	"chronik/internal/metadata"
)

// cluster is the session as the Kafka handlers see it.
type cluster struct{ s *session }

var _ kafka.Cluster = cluster{}

func (c cluster) Image() *metadata.Image { return c.s.meta.Image() }

func (c cluster) Self() ident.NodeID { return c.s.node }

// Leader is what the leader itself said, as long as its node can be reached.
func (c cluster) Leader(g ident.GroupID) (ident.NodeID, int32, bool) {
	l := c.s.leaders.Get(g)
	if l.Node == 0 || !c.Alive(l.Node) {
		return 0, 0, false
	}
	return l.Node, int32(l.Term), true
}

// Alive: a node that is connected and does not answer is not: a client sent there waits for its own
// time limit.
func (c cluster) Alive(node ident.NodeID) bool {
	return node == c.s.node || c.s.tr.Connected(node) && !c.s.host.Silent(node)
}

func (c cluster) Changed() (image, leaders <-chan struct{}) {
	return c.s.changed.wait(), c.s.leaders.Changed()
}

func (c cluster) Submit(ctx context.Context, cmd metadata.Command) (any, error) {
	return c.s.submit(ctx, cmd)
}

func (c cluster) Partition(g ident.GroupID) kafka.Partition {
	if p := c.s.registry.partition(g); p != nil {
		return p
	}
	return nil
}

func (c cluster) Coordinator(g ident.GroupID) kafka.Coordinator {
	if co := c.s.registry.coordinator(g); co != nil {
		return co
	}
	return nil
}

func (c cluster) DiskBytes() (total, free int64) { return c.s.disk.size() }

func (c cluster) Full() bool { return c.s.disk.Full() }

func (c cluster) Config() kafka.Config {
	cfg := c.s.cfg
	return kafka.Config{
		AutoCreateTopics:  cfg.Topic.AutoCreate,
		DefaultPartitions: int32(cfg.Topic.DefaultPartitions),
		ReplicationFactor: int16(cfg.Cluster.ReplicationFactor),
		MinInsyncReplicas: int32(cfg.Cluster.MinInsyncReplicas),
		MaxFetchSessions:  cfg.Kafka.MaxFetchSessions,
		DataDir:           cfg.Node.DataDir,
		Node:              map[string]string{"admin.listen": c.s.adminAddr},
	}
}
