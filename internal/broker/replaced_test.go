package broker

import (
	"testing"

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
