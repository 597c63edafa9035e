package raftgroup

import (
	"bytes"
	"context"
	"errors"
	"path"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// TestDamagedReplicaStandsBack: it gives its leadership away, asks to be replaced,
// and goes on voting, for the group may need its vote.
func TestDamagedReplicaStandsBack(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 10)
		hurt := c.leader()
		hurt.replica().Damaged(errors.New("a flipped bit"))
		c.eventually("another leads", func() bool { l := c.leads(); return l != nil && l != hurt })
		hurt.ev.mu.Lock()
		if why := hurt.ev.replace[hurt.replica().ID()]; why != "a flipped bit" {
			t.Errorf("asked for a replacement because of %q", why)
		}
		hurt.ev.mu.Unlock()
		for _, nd := range c.nodes {
			if nd != hurt && nd != c.leads() {
				nd.kill(0)
				break
			}
		}
		c.leader()
		c.fill("k", 10, 20) // a majority only with the damaged one
		if st := hurt.replica().Status(); st.State != StateRunning || st.Reason == "" {
			t.Errorf("status: %+v", st)
		}
	})
}

// brittle is a state machine on a disk that may fail its files: writes, or syncs.
type brittle struct {
	StateMachine
	fs   vfs.FS
	bad  *atomic.Pointer[vfs.FS]
	sync bool
	err  error // what fails
	// closed: what is told from now on is told to nobody.
	closed *atomic.Bool
	t      *testing.T
}

func (s brittle) RoleChanged(leader ident.NodeID, term ident.Term, _ bool) {
	if s.closed.Load() {
		s.t.Errorf("told of leader %d, term %d, after it was closed", leader, term)
	}
}

func (s brittle) Close() error { s.closed.Store(true); return s.StateMachine.Close() }

func (s brittle) fails() bool { bad := s.bad.Load(); return bad != nil && *bad == s.fs }

func (s brittle) Apply(es []Entry) ([]Result, error) {
	if !s.sync && s.fails() {
		return nil, s.err
	}
	return s.StateMachine.Apply(es)
}

func (s brittle) Capture() (Capture, error) {
	c, err := s.StateMachine.Capture()
	if err == nil && s.sync && s.fails() {
		c = unsynced{c, s.err}
	}
	return c, err
}

type unsynced struct {
	Capture
	err error
}

func (c unsynced) Sync() error { return c.err }

// TestHaltedReplicaVotes: a replica whose files fail has no state any more, but its
// log and its vote stand in until another has taken its place; it never leads.
// (A simulated group of three lost one voter to a wiped disk and another to a failed sync, and
// had no majority left to replace either.)
func TestHaltedReplicaVotes(t *testing.T) {
	for _, what := range []string{"apply", "sync"} {
		t.Run(what, func(t *testing.T) {
			var bad atomic.Pointer[vfs.FS]
			inCluster(t, 4, func(c *cluster) {
				c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
					sm, err := OpenMemory(fs, dir, blob, files)
					return brittle{sm, fs, &bad, what == "sync", syscall.EIO, new(atomic.Bool), t}, err
				}
			}, func(c *cluster) {
				c.create(3)
				c.fill("k", 0, 10)
				hurt := c.leader()
				fs := vfs.FS(hurt.fs)
				bad.Store(&fs)
				if what == "sync" {
					hurt.replica().TakeCheckpoint(nil)
				}
				c.fill("k", 10, 20)
				state := func(want State) func() bool {
					return func() bool { return hurt.replica().Status().State == want }
				}
				c.eventually("it is halted", state(StateHalted))
				c.eventually("another leads", func() bool { l := c.leads(); return l != nil && l != hurt })
				hurt.ev.mu.Lock()
				if len(hurt.ev.quarantined) != 1 || len(hurt.ev.replace) != 1 {
					t.Errorf("told: %v, %v", hurt.ev.quarantined, hurt.ev.replace)
				}
				hurt.ev.mu.Unlock()

				asked := atomic.Int64{} // for votes, by the halted one
				from := hurt.replica().ID()
				for _, nd := range c.nodes {
					nd.setFilter(func(_ transport.PeerInfo, it item) bool {
						if it.kind == itemMessage && it.from == from && (it.msg.GetType() == pb.MsgPreVote || it.msg.GetType() == pb.MsgVote) {
							asked.Add(1)
						}
						return false
					})
				}
				lead := c.leader()
				term := lead.replica().Status().Term
				lead.replica().TransferLeadership(hurt.replica().ID())
				<-time.After(3 * time.Second)
				if st := lead.replica().Status(); !st.Serving || st.Term != term {
					t.Errorf("a transfer to the halted one: %+v", st)
				}
				var wiped *node
				for _, nd := range c.nodes {
					if nd != hurt && nd != lead && nd.replica() != nil {
						wiped = nd
					}
				}
				wiped.kill(0)
				c.fill("k", 20, 30) // a majority only with the halted one
				c.net.Isolate(lead.id)
				c.eventually("the leader is no leader any more", func() bool { return c.leads() == nil })
				<-time.After(10 * time.Second)
				if l := c.leads(); l != nil {
					t.Fatalf("node %d leads", l.id)
				}
				c.net.HealAll()
				c.fill("k", 30, 40) // elected by the halted one's vote
				if n := asked.Load(); n != 0 || lead != c.leader() {
					t.Fatalf("the halted one asked for %d votes", n)
				}

				fresh := Member{Replica: 99, Node: 4, Store: storeOf(4, 0)}
				must(t, c.nodes[4].host.Create([]Spec{specFor(fresh, nil)}))
				c.nodes[4].host.Start(testGroup)
				c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 5, ProposeOptions{}, w) })
				at := func(nd *node) int {
					return nd.replica().StateMachine().(brittle).StateMachine.(*MemoryStateMachine).Len()
				}
				c.eventually("the newcomer has it all", func() bool { return at(c.nodes[4]) == 40 })
				applied := hurt.replica().Status().AppliedIndex

				lead = c.leader()
				c.eventually("the leader knows", func() bool {
					i := slices.IndexFunc(lead.replica().Status().Followers, func(f Follower) bool { return f.Replica == from })
					return i >= 0 && lead.replica().Status().Followers[i].Halted
				})

				// A start makes it whole from its log.
				id, store := hurt.id, hurt.store
				disk := hurt.kill(0)
				bad.Store(nil)
				hurt = c.boot(id, store, disk)
				c.eventually("it has it all", func() bool { return at(hurt) == 40 && hurt.replica().Status().AppliedIndex > applied })

				c.eventually("the leader knows that too", func() bool {
					return !slices.ContainsFunc(c.leader().replica().Status().Followers, func(f Follower) bool { return f.Halted })
				})

				// Nobody trims a halted replica's log. If it has grown, it gives way when the raftlog needs the room.
				hurt.replica().failApply(syscall.EIO)
				c.eventually("it is halted", state(StateHalted))
				press := func() {
					hurt.host.onPressure([]raftlog.Holder{{Replica: hurt.replica().ID()}}, true)
					<-time.After(time.Second)
				}
				if press(); !state(StateHalted)() {
					t.Error("a small log gave way")
				}
				hurt.host.opt.Policy.HoldBytes = 100
				if press(); !state(StateQuarantined)() {
					t.Error("a large log did not give way")
				}
				hurt.ev.mu.Lock()
				if hurt.ev.told != 1 {
					t.Errorf("told %d times that it serves no more", hurt.ev.told)
				}
				hurt.ev.mu.Unlock()
			})
		})
	}
}

// TestHaltedLeaderGoesRound: a leader without state finds the voter that takes over, also if the first in line
// is halted itself, or quarantined on a node that lives.
func TestHaltedLeaderGoesRound(t *testing.T) {
	for _, what := range []string{"halted", "quarantined"} {
		t.Run(what, func(t *testing.T) {
			inCluster(t, 5, nil, func(c *cluster) {
				c.create(5)
				c.fill("k", 0, 10)
				lead, other := c.leader(), c.follower() // the lowest id: with equal logs the first in line
				if what == "halted" {
					other.replica().failApply(syscall.EIO)
				} else {
					other.replica().failLog(syscall.EIO)
				}
				<-time.After(2 * time.Second)
				lead.replica().failApply(syscall.EIO)
				c.within(5*time.Second, "a third one leads", func() bool { l := c.leads(); return l != nil && l != lead && l != other })
				c.fill("k", 10, 20)
			})
		})
	}
}

// TestHaltedReplicaForgetsItsLeader: raft refuses to stand for election with a membership change that is not applied, and begins
// the leader's lease anew each time; a halted replica votes all the same when its leader is silent.
func TestHaltedReplicaForgetsItsLeader(t *testing.T) {
	for range 10 { // raft's timeouts are random
		inCluster(t, 4, nil, func(c *cluster) {
			c.create(3)
			c.fill("k", 0, 10)
			lead, hurt := c.leader(), c.follower()
			hurt.replica().failApply(syscall.EIO)
			fresh := Member{Replica: 99, Node: 4, Store: storeOf(4, 0)}
			must(t, c.nodes[4].host.Create([]Spec{specFor(fresh, nil)}))
			c.nodes[4].host.Start(testGroup)
			c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 5, ProposeOptions{}, w) })
			<-time.After(5 * time.Second)
			lead.replica().failLog(errors.New("it ends, and its node lives on"))
			c.within(8*time.Second, "another one leads", func() bool { l := c.leads(); return l != nil && l != lead })
		})
	}
}

// TestLostCheckpointLeavesTheFiles: a replica whose log was trimmed and whose checkpoint is gone is quarantined before its
// state machine is opened, which would remove its files as those of no checkpoint.
func TestLostCheckpointLeavesTheFiles(t *testing.T) {
	var opened atomic.Int64
	inCluster(t, 1, func(c *cluster) {
		smallSteps(c)
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			opened.Add(1)
			return OpenMemory(fs, dir, blob, files)
		}
	}, func(c *cluster) {
		c.create(1)
		c.fill("k", 0, 60)
		nd := c.trimmedLeader(20)
		c.fill("k", 60, 62) // durable, and with it that the log was trimmed
		id, dir := nd.replica().ID(), nd.replica().base
		disk := nd.kill(0)
		must(c.t, disk.Remove(snapshot.GenDir(dir, firstGeneration)+"/checkpoint"))
		before := opened.Load()
		nd = c.boot(nd.id, nd.store, disk)
		isErr(c.t, nd.ev.quarantine(id), ErrCorrupt)
		if n := opened.Load() - before; n != 0 {
			t.Errorf("opened %d times", n)
		}
	})
}

// TestDamagedSoleVoterStays: nobody could take its place.
func TestDamagedSoleVoterStays(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		nd := c.leader()
		nd.replica().Damaged(errors.New("a flipped bit"))
		<-time.After(3 * slowInterval)
		c.fill("k", 0, 3)
		nd.ev.mu.Lock()
		defer nd.ev.mu.Unlock()
		if len(nd.ev.replace) != 0 {
			t.Errorf("asked for replacements %v", nd.ev.replace)
		}
	})
}

// rotten finds its state damaged on one disk.
type rotten struct {
	StateMachine
	fs  vfs.FS
	bad *atomic.Pointer[vfs.FS]
}

func (s rotten) Verify(context.Context) error {
	if bad := s.bad.Load(); bad != nil && *bad == s.fs {
		return ErrCorrupt
	}
	return nil
}

// TestDamagedSnapshotIsNotInstalled: what a receiver finds damaged it refuses, and the
// sender looks at itself and stands back.
func TestDamagedSnapshotIsNotInstalled(t *testing.T) {
	var bad atomic.Pointer[vfs.FS] // the disk whose files, and what comes of them, are damaged
	var served atomic.Bool         // by another than the damaged one
	inCluster(t, 3, func(c *cluster) {
		smallSteps(c)
		tune := c.tune
		c.tune = func(o *Options) {
			if tune != nil {
				tune(o)
			}
			o.Verify = func(context.Context, vfs.FS, Spec, string, []byte, []CaptureFile) error {
				if bad.Load() != nil && !served.Load() {
					return ErrCorrupt
				}
				return nil
			}
		}
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			sm, err := OpenMemory(fs, dir, blob, files)
			return rotten{sm, fs, &bad}, err
		}
	}, func(c *cluster) {
		c.create(3)
		away := c.follower()
		last := away.replica().Status().LastIndex
		disk := away.kill(100)
		c.fill("k", 0, 50)
		hurt := c.trimmedLeader(last + 1)
		fs := vfs.FS(hurt.fs)
		bad.Store(&fs)
		back := c.boot(away.id, away.store, disk)
		c.eventually("the damaged one stands back", func() bool {
			l := c.leads()
			return hurt.replica().Status().Reason != "" && l != nil && l != hurt
		})
		served.Store(true)
		c.eventually("the follower follows another leader", func() bool {
			st := back.replica().Status()
			return st.AppliedIndex >= hurt.replica().Status().CommitIndex
		})
	})
}

// lyingFS fails the first sync of one file, and says yes to later ones, as a kernel does that has dropped what it could not write.
type lyingFS struct {
	vfs.FS
	target string
	failed atomic.Bool
}

func (o *lyingFS) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || name != o.target {
		return f, err
	}
	return &lyingFile{f, o}, nil
}

func (o *lyingFS) OpenReadWrite(name string, cat vfs.WriteCategory, opts ...pebblevfs.OpenOption) (vfs.File, error) {
	f, err := o.FS.OpenReadWrite(name, cat, opts...)
	return o.wrap(name, f, err)
}

func (o *lyingFS) Open(name string, opts ...pebblevfs.OpenOption) (vfs.File, error) {
	f, err := o.FS.Open(name, opts...)
	return o.wrap(name, f, err)
}

type lyingFile struct {
	vfs.File
	o *lyingFS
}

func (f *lyingFile) Sync() error { return f.SyncData() }

func (f *lyingFile) SyncData() error {
	if !f.o.failed.Swap(true) {
		return syscall.EIO
	}
	return nil
}

// TestRule13SuccessorOfAFailedSync: a replica is halted by a failed sync of its file, and its successor on the same node takes
// what is in that file. A later sync of it proves nothing: after a power loss the successor has it all the same.
func TestRule13SuccessorOfAFailedSync(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.open = openFileMachine
		c.tune = func(o *Options) {
			o.Policy = Policy{ThresholdEntries: 1000, KeepEntries: -1, HoldBytes: 1}
			if o.Node == 2 {
				o.FS = &lyingFS{FS: o.FS, target: "/data/replicas/aa-0.12/g1/" + machineFile}
				o.Receiver = snapshot.NewReceiver(snapshot.ReceiverOptions{FS: o.FS, Logger: o.Logger})
			}
		}
	}, func(c *cluster) {
		c.create(3)
		c.write(0, 20)
		hurt := c.nodes[2]
		<-time.After(3 * time.Second)
		hurt.replica().TakeCheckpoint(nil)
		c.eventually("halted", func() bool { return hurt.replica().Status().State == StateHalted })
		fresh := Member{Replica: 99, Node: 2, Store: storeOf(2, 0)}
		must(t, hurt.host.Create([]Spec{specFor(fresh, nil)}))
		hurt.host.Start(testGroup)
		c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 1, ProposeOptions{}, w) })
		c.leader().replica().TakeCheckpoint(nil)
		c.eventually("the successor has a snapshot", func() bool {
			st := hurt.replica().Status()
			return st.SnapshotsInstalled == 1 && st.State == StateRunning
		})
		if st := hurt.replica().Status(); st.SnapshotBytesReused < 20*64<<10 {
			t.Errorf("%d bytes reused", st.SnapshotBytesReused)
		}
		want, err := vfs.ReadFile(c.leader().fs, c.leader().replica().base+"/g1/"+machineFile, 1<<30)
		must(t, err)
		dir := hurt.replica().base + "/g2/"
		disk := hurt.kill(0)
		got, err := vfs.ReadFile(disk, dir+machineFile, 1<<30)
		must(t, err)
		ck, err := snapshot.ReadHeader(disk, dir)
		must(t, err)
		if n := int(ck.Files[0].Size); len(got) < n || !bytes.Equal(want[:n], got[:n]) {
			t.Errorf("the durable checkpoint names %d bytes, of %d on the disk", n, len(got))
		}
	})
}

// deafFS cannot read one file any more once it is told.
type deafFS struct {
	vfs.FS
	name string
	on   *atomic.Bool
}

type deafFile struct {
	vfs.File
	on *atomic.Bool
}

func (f deafFile) ReadAt(p []byte, off int64) (int, error) {
	if f.on.Load() {
		return 0, syscall.EIO
	}
	return f.File.ReadAt(p, off)
}

func (o deafFS) Open(name string, opts ...pebblevfs.OpenOption) (vfs.File, error) {
	f, err := o.FS.Open(name, opts...)
	if err == nil && path.Base(name) == o.name {
		f = deafFile{f, o.on}
	}
	return f, err
}

// TestLeaderThatCannotSendStandsBack: it has a file that its disk does not read, or that is gone or cut. Nobody could come back
// through a snapshot while it leads.
func TestLeaderThatCannotSendStandsBack(t *testing.T) {
	for what, spoil := range map[string]func(fs vfs.FS, name string, deaf *atomic.Bool) error{
		"unreadable": func(_ vfs.FS, _ string, deaf *atomic.Bool) error { deaf.Store(true); return nil },
		"gone":       func(fs vfs.FS, name string, _ *atomic.Bool) error { return fs.Remove(name) },
		"cut": func(fs vfs.FS, name string, _ *atomic.Bool) error {
			return vfs.WriteFileSync(fs, name, nil, vfs.CategorySegment)
		},
	} {
		t.Run(what, func(t *testing.T) {
			var deaf [4]atomic.Bool
			inCluster(t, 3, func(c *cluster) {
				smallSteps(c)
				tune := c.tune
				c.open = openFileMachine
				c.tune = func(o *Options) {
					tune(o)
					nd := c.nodes[o.Node]
					must(t, nd.srv.Close())
					nd.srv = snapshot.NewServer(snapshot.ServerOptions{FS: deafFS{o.FS, machineFile, &deaf[o.Node]}, Logger: o.Logger})
					o.Server = nd.srv
				}
			}, func(c *cluster) {
				id, store, disk := c.away()
				hurt := c.leader()
				must(t, spoil(hurt.fs, hurt.replica().base+"/g1/"+machineFile, &deaf[hurt.id]))
				back := c.boot(id, store, disk)
				c.eventually("installed from another", func() bool { return back.replica().Status().SnapshotsInstalled == 1 })
				hurt.ev.mu.Lock()
				defer hurt.ev.mu.Unlock()
				if l := c.leads(); l == hurt || len(hurt.ev.replace) != 1 {
					t.Errorf("asked for replacements %v", hurt.ev.replace)
				}
			})
		})
	}
}

// TestSpoiltCheckpointIsWrittenAnew: nobody looks at a leader's checkpoint but who receives it. Its index is that of the last entry,
// so that none is due.
func TestSpoiltCheckpointIsWrittenAnew(t *testing.T) {
	for what, spoil := range map[string]func(b []byte) []byte{
		"blob":   func(b []byte) []byte { b[len(b)-34] ^= 1; return b },
		"header": func(b []byte) []byte { b[30] ^= 1; return b },
		"cut":    func(b []byte) []byte { return b[:len(b)-1] },
		"empty":  func([]byte) []byte { return nil },
	} {
		t.Run(what, func(t *testing.T) {
			inCluster(t, 3, smallSteps, func(c *cluster) {
				id, store, disk := c.away()
				l := c.leader()
				c.eventually("nothing is due", func() bool {
					st := l.replica().Status()
					return st.SnapshotIndex == st.AppliedIndex
				})
				name := path.Join(l.replica().base, "g1", snapshot.CheckpointName)
				b, err := vfs.ReadFile(l.fs, name, 1<<20)
				must(t, err)
				must(t, vfs.WriteFileSync(l.fs, name, spoil(b), vfs.CategorySnapshot))
				c.boot(id, store, disk)
				c.converge(90)
				if l != c.leader() {
					t.Error("another leads")
				}
				if _, _, err := snapshot.Read(l.fs, path.Dir(name)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
