package recovery

import (
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/alloctest"
	"chronik/internal/bucket"
	"chronik/internal/vfs"
)

// remains are the ways in which the cuts of a run follow one another. Under the race
// detector, which finds nothing in their repetition, one is enough.
func remains() []int {
	if alloctest.Racing {
		return []int{1}
	}
	return []int{0, 1, 2, 3}
}

// cut is a disk after the power went just before a change of it: after the change before.
type cut struct {
	op   errorfs.Op
	n    int // changes made
	disk *vfs.MemFS
}

// cutting cuts the power before every change that is made through the returned file
// system; the changes go on. Of what was not synced the cuts leave nothing, half and all, in turn, from the from-th on.
// Without links files are copied.
func cutting(disk *vfs.MemFS, from int, links bool) (vfs.FS, *[]cut) {
	var cuts []cut
	rng := rand.New(rand.NewPCG(7, uint64(from)))
	percents := []int{0, 50, 100, 50}
	n := 0
	return errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpLink && !links {
			return syscall.EPERM
		}
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			cuts = append(cuts, cut{op, n, disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percents[(from+n)%len(percents)], RNG: rng})})
			n++
		}
		return nil
	})), &cuts
}

// TestRecoverPowerCuts: cut before any change, a store is the old one, untouched, or one that the command, run again, finishes.
func TestRecoverPowerCuts(t *testing.T) {
	first, records := survivor(t, false)
	old := identityOf(t, first)
	kinds := map[string]int{}
	for _, links := range []bool{true, false} {
		for _, from := range remains() {
			disk := first.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))})
			fsys, cuts := cutting(disk, from, links)
			must(Recover(t.Context(), Options{FS: fsys, Dir: testDir}))
			for _, c := range *cuts {
				t.Logf("cut before change %d, %v of %s", c.n, c.op.Kind, c.op.Path) // of the last one, if it fails
				kinds[crashed(t, c.disk, old, records)]++
			}
		}
	}
	if kinds["old"] < 20 || kinds["under way"] < 6 {
		t.Fatalf("left %v", kinds)
	}
}

// TestRestorePowerCuts is the same for a restore: it is begun anew or finished, and holds everything.
func TestRestorePowerCuts(t *testing.T) {
	old, records := survivor(t, true)
	b := bucket.NewMem()
	upload(t, old, b, everything)
	changes, resumed := 0, 0
	for _, from := range remains() {
		fsys, cuts := cutting(vfs.NewCrashableMem(), from, true)
		must(restore(t, fsys, b, false))
		for _, c := range *cuts {
			changes++
			t.Logf("cut before change %d, %v of %s", c.n, c.op.Kind, c.op.Path)
			rep, err := restore(t, c.disk, b, false)
			switch {
			case err != nil && strings.Contains(err.Error(), "is not empty"): // all was done but for the sync that says so
			case err != nil:
				t.Fatal(err)
			case rep.Resumed:
				resumed++
			}
			now := c.disk.CrashClone(vfs.CrashCloneCfg{})
			holds(t, now, identityOf(t, now).Cluster, records)
		}
	}
	if changes < 50 || resumed == 0 {
		t.Fatalf("%d cuts, %d of them resumed", changes, resumed)
	}
}
