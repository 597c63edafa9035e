package raftgroup

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

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

func (s rotten) Verify() error {
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
			o.Verify = func(vfs.FS, Spec, string, []byte, []CaptureFile) error {
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
