package raftgroup

import (
	"sync/atomic"
	"testing"
	"time"

	"chronik/internal/vfs"
)

// slowSync is a state machine whose captures wait for a gate before they are synced.
type slowSync struct {
	*MemoryStateMachine
	gate chan struct{}
	shut *atomic.Bool
}

type slowCapture struct {
	Capture
	s *slowSync
}

func (s *slowSync) Capture() (Capture, error) {
	c, err := s.MemoryStateMachine.Capture()
	return slowCapture{c, s}, err
}

func (c slowCapture) Sync() error {
	if c.s.shut.Load() {
		<-c.s.gate
	}
	return c.Capture.Sync()
}

// While a checkpoint for a follower is on its way, raft asks again with every
// message. One is enough, whatever is applied meanwhile.
func TestOneCheckpointForAFollower(t *testing.T) {
	var gate chan struct{}
	var shut atomic.Bool
	inCluster(t, 3, func(c *cluster) {
		gate = make(chan struct{})
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			sm, err := OpenMemory(fs, dir, blob, files)
			return &slowSync{MemoryStateMachine: sm.(*MemoryStateMachine), gate: gate, shut: &shut}, err
		}
	}, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 10)
		l := c.leader().replica()
		created := func() uint64 { return l.Status().SnapshotsCreated }
		before := created()
		shut.Store(true)
		ask := func() {
			l.postLocal(localEvent{fn: func(*outbox) {
				if _, err := l.snapshotForRaft(); err == nil {
					t.Error("there is a checkpoint already")
				}
			}})
			time.Sleep(time.Second)
		}
		ask()
		c.fill("more", 0, 10)
		ask()
		ask()
		shut.Store(false)
		close(gate)
		c.eventually("the checkpoint", func() bool { return created() > before })
		time.Sleep(time.Minute)
		if n := created() - before; n != 1 {
			t.Errorf("%d checkpoints, want 1", n)
		}
		tm := c.leader().host.Timings()
		if tm.Created.Count != created() || tm.Stall.Count != created() || tm.ApplyQuiet.Count+tm.ApplyWriting.Count == 0 {
			t.Errorf("%d created, %d stalls, %d and %d applies; %d were created",
				tm.Created.Count, tm.Stall.Count, tm.ApplyQuiet.Count, tm.ApplyWriting.Count, created())
		}
	})
}
