package crash

import (
	"errors"
	"path"
	"strings"
	"sync"
	"testing"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// inStaging tells whether a path is a file in a generation that is being put together.
func inStaging(name string) bool { return strings.HasSuffix(path.Dir(name), ".staging") }

// installFaults are the syncs of a snapshot install, each left out on the disk
// of the node that installs. The last is none: then nothing may be lost.
var installFaults = []struct {
	name  string
	judge func(d *disk, name string, dir bool) verdict
	lost  bool
}{
	{name: "staged files", lost: true, judge: only(func(_ *disk, name string, dir bool) bool {
		return !dir && inStaging(name) && !strings.HasPrefix(path.Base(name), "checkpoint")
	})},
	{name: "staged checkpoint", lost: true, judge: only(func(_ *disk, name string, dir bool) bool {
		return !dir && inStaging(name) && strings.HasPrefix(path.Base(name), "checkpoint")
	})},
	{name: "staging directory", lost: true, judge: only(func(_ *disk, name string, dir bool) bool {
		return dir && strings.HasSuffix(name, ".staging")
	})},
	{name: "generation's parent", lost: true, judge: only(func(_ *disk, name string, dir bool) bool {
		return dir && path.Base(path.Dir(name)) == "replicas"
	})},
	{name: "none", judge: nil},
}

// TestMissingFsyncOfInstallIsNoticed has a node install snapshots and cuts the power each
// time it has done so, before its next checkpoint makes good what was left out.
func TestMissingFsyncOfInstallIsNoticed(t *testing.T) {
	t.Parallel()
	for _, f := range installFaults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, nil)
			c.startAll()
			c.createTopic(false)
			l := newLoad(c, nil)
			l.run()
			l.await(100, nil)
			c.outrun(2)
			l.stop()
			var mu sync.Mutex
			var left []*vfs.MemFS
			watch := func(s step) {
				if stepOf(s) == "the old generation goes" {
					mu.Lock()
					defer mu.Unlock()
					left = append(left, c.power.cut(c.disks[2:], 0)...)
				}
			}
			c.disks[2].judge = f.judge
			c.disks[2].watch.Store(&watch)
			c.start(2)
			c.eventually("node 3 has installed snapshots", func() error {
				if err := c.installed(2); err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				if len(left) < partitions {
					return errors.New("an old generation is still there")
				}
				return nil
			})
			c.disks[2].watch.Store(nil)
			var errs []error
			for _, mem := range left {
				errs = append(errs, read(ident.NodeID(3), mem).Lost...)
			}
			if err := errors.Join(errs...); (err != nil) != f.lost {
				t.Errorf("%d syncs left out, power cut after %d installs: lost: %v", c.dropped(), len(left), err)
			}
		})
	}
}
