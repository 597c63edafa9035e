package raftgroup

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// bringNone is the Bring of a state without files.
func bringNone(from, _ string, _ int64, _ bool) error {
	return fmt.Errorf("%s: this state has no files", from)
}

// salvage makes a group of its own of what a disk has of the test group, on the same disk.
func salvage(t *testing.T, fs *vfs.MemFS, store, fresh ident.StoreID) (*Remains, *Loaded) {
	t.Helper()
	old, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "/data/raftlog", Store: store, MaxBytes: 1 << 40})
	must(t, err)
	all := Survey(fs, "/data/replicas", old)
	if len(all) != 1 || all[0].Spec.Group != testGroup {
		t.Fatalf("found %+v", all)
	}
	m := all[0]
	to := Spec{Group: testGroup, Replica: 99, Name: "orders-0", Key: "aa-0", Topic: "orders", CreatedAt: 7}
	l, err := m.Load(LoadOptions{FS: fs, Dir: ReplicaDir("/new/replicas", to), Bring: bringNone, Open: OpenMemory})
	must(t, err)
	kept, err := l.Save(SaveOptions{To: to, Node: 1, Store: fresh})
	must(t, err)
	must(t, l.Close())
	must(t, old.Close())
	log, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "/new/raftlog", Store: fresh, Create: true})
	must(t, err)
	must(t, Seed(log, []Kept{kept}))
	must(t, log.Close())
	for _, dir := range []string{"raftlog", "replicas"} {
		must(t, fs.Rename("/data/"+dir, "/data/old-"+dir))
		must(t, fs.Rename("/new/"+dir, "/data/"+dir))
	}
	must(t, vfs.SyncDir(fs, "/data"))
	return m, l
}

// TestSalvage: of three disks one follower's is left. Its replica makes a group of
// its own that has every acknowledged entry, also one that this disk never heard to
// be committed; its term lies above the old ones (correctness rule 24); and another
// replica joins through a snapshot.
func TestSalvage(t *testing.T) {
	for _, threshold := range []uint64{3, 1000} { // with a checkpoint and without
		t.Run(fmt.Sprint("threshold ", threshold), func(t *testing.T) {
			inCluster(t, 3, func(c *cluster) {
				c.tune = func(o *Options) { o.Policy.ThresholdEntries, o.Policy.KeepEntries = threshold, -1 }
			}, func(c *cluster) { testSalvage(c, threshold < 1000) })
		})
	}
}

func testSalvage(c *cluster, checkpoint bool) {
	t := c.t
	c.create(3)
	c.nodes[1].replica().Campaign()
	c.fill("k", 0, 10)
	c.converge(10)
	c.eventually("node 2 or 3 leads", func() bool {
		if l := c.leads(); l != nil && l.id == 1 {
			l.replica().TransferLeadership(0)
			return false
		}
		return c.leads() != nil
	})
	// Node 1 gets the entry, and never hears that it is committed: the leader's commit
	// travels with the next message, which does not arrive.
	survivor := c.nodes[1]
	cut := false
	survivor.setFilter(func(_ transport.PeerInfo, it item) bool {
		if cut || it.msg == nil {
			return cut
		}
		cut = len(it.msg.GetEntries()) > 0
		return false
	})
	c.put("last", "acknowledged")
	c.eventually("the entry is on node 1", func() bool {
		st := survivor.replica().Status()
		return cut && st.LastIndex > st.CommitIndex
	})
	time.Sleep(2 * c.nodes[1].host.opt.HeartbeatInterval) // a commit index alone waits for the next batch
	was := survivor.replica().Status()
	disk := survivor.kill(0)
	for _, nd := range c.nodes {
		nd.kill(0)
	}
	fresh := storeOf(1, 9)
	m, l := salvage(t, disk, storeOf(1, 0), fresh)
	if m.Commit != was.CommitIndex || m.Last != was.LastIndex || m.Last <= m.Commit || l.Cut != nil {
		t.Fatalf("found commit %d and last %d (%v), the replica had %d and %d", m.Commit, m.Last, l.Cut, was.CommitIndex, was.LastIndex)
	}
	if checkpoint != (m.From > 1) {
		t.Fatalf("continues from %d", m.From)
	}
	nd := c.boot(1, fresh, disk)
	c.eventually("the group of one leads", func() bool { return nd.replica().IsLeader() })
	st := nd.replica().Status()
	if nd.sm().Get("last") != "acknowledged" || nd.sm().Len() != 11 {
		t.Fatalf("%d keys, last %q", nd.sm().Len(), nd.sm().Get("last"))
	}
	if st.Replica != 99 || len(st.Members) != 1 || st.Members[0] != (Member{Replica: 99, Node: 1, Store: fresh}) || st.Term <= was.Term {
		t.Fatalf("the group made anew: %+v", st)
	}
	c.put("more", "v")
	two := c.boot(2, storeOf(2, 9), vfs.NewCrashableMem())
	must(t, two.host.Create([]Spec{{Group: testGroup, Replica: 100, Name: "orders-0", Key: "aa-0", Topic: "orders", CreatedAt: 8}}))
	two.host.Start(testGroup)
	w := make(waiter, 1)
	nd.replica().ProposeConfChange(ConfChange{
		Generation: 1, AddLearner: []Member{{Replica: 100, Node: 2, Store: storeOf(2, 9)}},
	}, ProposeOptions{Deadline: time.Now().Add(5 * time.Second)}, w)
	must(t, (<-w).err)
	c.converge(12)
	if got := two.replica().Status().SnapshotsInstalled; got != 1 {
		t.Fatalf("joined with %d snapshots", got)
	}
}

// TestSalvageStopsAtDamage: what lies before an entry that cannot be applied is kept, and the rest named.
func TestSalvageStopsAtDamage(t *testing.T) {
	fs := vfs.NewCrashableMem()
	must(t, vfs.MkdirAllSync(fs, "/data/replicas"))
	log, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "/data/raftlog", Store: storeOf(1, 0), Create: true})
	must(t, err)
	ms := members(1)
	c, err := specFor(ms[0], ms).creation()
	must(t, err)
	must(t, log.Create([]raftlog.Creation{c}))
	done := make(chan error, 1)
	app := raftlog.Append{Replica: ms[0].Replica, HardState: raftlog.HardState{Term: 3, Commit: 5}, Done: func(err error) { done <- err }}
	for i, data := range []string{"", "a=1", "b=2", "damaged", "c=3"} {
		app.Entries = append(app.Entries, raftlog.Entry{Index: ident.Index(2 + i), Term: 3, Data: []byte(data)})
	}
	log.Append(&app)
	must(t, <-done)
	must(t, log.Close())
	m, l := salvage(t, fs, storeOf(1, 0), storeOf(1, 9))
	if l.Index != 4 || !errors.Is(l.Cut, errMemoryEntry) || m.Last != 6 {
		t.Fatalf("kept up to %d of %d: %v", l.Index, m.Last, l.Cut)
	}
	if sm := l.SM.(*MemoryStateMachine); sm.Get("a") != "1" || sm.Get("b") != "2" || sm.Len() != 2 {
		t.Fatalf("%d keys", sm.Len())
	}
	if index, term := l.Point(); index != 5 || term != 3+SalvageTerms {
		t.Fatalf("begins anew at (%d,%d)", index, term)
	}
}
