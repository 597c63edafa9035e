package broker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"chronik/internal/vfs"
)

// TestReplacedDiskComesBack puts a disk back whose store was replaced while it
// was away, and that lacks nothing a peer ever saw of it.
func TestReplacedDiskComesBack(t *testing.T) {
	c := newTrio(t)
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	c.produce(0, 3)
	c.records(3, 3)
	c.stop(3)
	first := c.disk(3)
	c.fs[3] = vfs.NewCrashableMem()
	c.start(3)
	c.serving(3)
	c.records(3, 3)
	c.stop(3)
	c.fs[3] = first
	c.start(3)
	c.serving(3)
	c.produce(3, 3)
	c.records(3, 6)
}

// TestSuccessorOutlivesAClaim starts a node on an empty disk before its peers know that the process before it is gone:
// they refuse it, and it waits until they do.
func TestSuccessorOutlivesAClaim(t *testing.T) {
	c := newTrio(t)
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	before := c.b[3]
	addr := freeAddr(t)
	c.cfg[3] = testConfig(t, map[string]string{
		"node.id": "3", "raft.listen": addr, "group.partitions": "1",
		"cluster.peers": fmt.Sprintf("1@%s,2@%s,3@%s", c.cfg[1].Raft.Listen, c.cfg[2].Raft.Listen, addr),
	})
	c.fs[3], c.b[3] = vfs.NewCrashableMem(), nil
	c.start(3)
	eventually(t, 10*time.Second, "both refuse the successor", func() error {
		refused := 0
		for _, p := range c.b[3].session().tr.Peers() {
			if strings.Contains(p.Refusal, claimed) {
				refused++
			}
		}
		if refused < 2 {
			return fmt.Errorf("%d do", refused)
		}
		return nil
	})
	before.Stop()
	if err := before.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	c.serving(3)
}
