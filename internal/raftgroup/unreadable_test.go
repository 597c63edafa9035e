package raftgroup

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"chronik/internal/vfs"
)

// The raftlog relocates a quiet group's entries and cannot read the last one: the replica, whose
// raft has acknowledged it, is quarantined before raft sees a log that has become shorter.
func TestDamageFoundByTheRaftlog(t *testing.T) {
	for _, leader := range []bool{true, false} {
		inCluster(t, 3, func(c *cluster) {
			c.tune = func(o *Options) { o.Policy = Policy{ThresholdEntries: 600, KeepEntries: 60} }
		}, func(c *cluster) {
			c.create(3)
			c.fill("k", 0, 10)
			c.put("k", "damaged")
			c.converge(11)
			hurt := c.follower()
			if leader {
				hurt = c.leader()
			}
			r := hurt.replica()
			last := r.Status().LastIndex
			// Another group's entries fill the log.
			must(t, hurt.host.Create([]Spec{{Group: 99, Replica: 900, Name: "other", Key: "99", Members: []Member{{Replica: 900, Node: hurt.id, Store: hurt.store}}}}))
			hurt.host.Start(99)
			other := hurt.host.Replica(99)
			c.eventually("it leads", other.IsLeader)
			write := func() {
				w := make(waiter, 1)
				other.Propose([]byte("b="+strings.Repeat("y", 5<<10)), ProposeOptions{}, w)
				must(t, (<-w).err)
			}
			write() // the block of the last entry is finished
			const file = "/data/raftlog/00000001.log"
			b, err := vfs.ReadFile(hurt.fs, file, 1<<30)
			must(t, err)
			f, err := hurt.fs.OpenReadWrite(file, vfs.CategoryLog)
			must(t, err)
			_, err = f.WriteAt([]byte("D"), int64(bytes.LastIndex(b, []byte("damaged"))))
			must(t, err)
			must(t, f.Close())
			for n := 0; hurt.log.Damage(r.ID()) == nil; n++ {
				if write(); n > 2000 {
					t.Fatal("the entry was not relocated")
				}
			}
			c.eventually("quarantined", func() bool { return errors.Is(hurt.ev.quarantine(r.ID()), ErrCorrupt) })
			if st := r.Status(); st.State != StateQuarantined || hurt.log.Replica(r.ID()).LastIndex() < last {
				t.Fatalf("the log ends at %d, before it was %d: %+v", hurt.log.Replica(r.ID()).LastIndex(), last, st)
			}
			c.fill("l", 0, 10) // the others go on
		})
	}
}
