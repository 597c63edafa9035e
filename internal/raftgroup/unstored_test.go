package raftgroup

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/vfs"
)

// TestHangingDiskHoldsLittle: what a follower whose disk hangs takes from the leaders of all its groups is bounded for
// the node, not for each group; nobody else waits for it, and it catches up.
func TestHangingDiskHoldsLittle(t *testing.T) {
	const groups, each, size, limit = 6, 12, 64 << 10, 256 << 10
	var hang atomic.Pointer[chan struct{}] // of node 3's log
	inCluster(t, 3, func(c *cluster) {
		c.tune = func(o *Options) {
			o.MaxInflightBytes, o.MaxUnstoredBytes, o.Policy.KeepEntries = 64<<20, limit, -1
			if o.Node != 3 {
				return
			}
			slow := errorfs.Wrap(vfs.NewCrashableMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
				if h := hang.Load(); h != nil && op.Kind == errorfs.OpFileWriteAt {
					<-*h
				}
				return nil
			}))
			l, err := raftlog.Open(raftlog.Options{FS: slow, Dir: "/slow", Store: o.Store, Create: true, FileBytes: 1 << 20, MaxBytes: 8 << 20, Logger: c.log})
			must(t, err)
			must(t, o.Log.Close())
			o.Log = l
			c.nodes[3].log = l
		}
	}, func(c *cluster) {
		group := func(i int) ident.GroupID { return ident.GroupID(100 + i) }
		for i := range groups {
			ms := members(3)
			for j := range ms {
				ms[j].Replica += ident.ReplicaID(100 * (i + 1))
			}
			for _, m := range ms {
				s := specFor(m, ms)
				s.Group, s.Key = group(i), fmt.Sprintf("k%d-0", i)
				must(t, c.nodes[m.Node].host.Create([]Spec{s}))
				c.nodes[m.Node].host.Start(s.Group)
			}
		}
		leader := func(i int) *Replica {
			for n := ident.NodeID(1); n <= 2; n++ {
				if r := c.nodes[n].host.Replica(group(i)); r.IsLeader() {
					return r
				}
			}
			c.nodes[3].host.Replica(group(i)).TransferLeadership(0)
			return nil
		}
		third := c.nodes[3].host
		before := uint64(0)
		for i := range groups {
			c.eventually("node 1 or 2 leads, and node 3 follows", func() bool {
				r := leader(i)
				return r != nil && third.Replica(group(i)).last.Load() == r.last.Load() && third.unstored.Load() == 0
			})
			before += third.Replica(group(i)).last.Load()
		}
		h := make(chan struct{})
		hang.Store(&h)
		data := make([]byte, size)
		copy(data, "k=")
		for range each {
			for i := range groups {
				w := make(waiter, 1)
				leader(i).Propose(data, ProposeOptions{Deadline: time.Now().Add(5 * time.Second)}, w)
				must(t, (<-w).err)
			}
		}
		time.Sleep(2 * time.Second)
		held := -before * size
		for i := range groups {
			held += third.Replica(group(i)).last.Load() * size
		}
		if most := uint64(limit + groups*size); held > most || held < limit {
			t.Errorf("%d bytes are held and not on disk, want about %d", held, limit)
		}
		hang.Store(nil)
		close(h)
		c.eventually("node 3 catches up", func() bool {
			for i := range groups {
				if r := leader(i); r == nil || third.Replica(group(i)).applied.Load() < r.applied.Load() {
					return false
				}
			}
			return true
		})
		c.eventually("nothing is held", func() bool { return third.unstored.Load() == 0 })
	})
}
