package recovery

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/bucket"
	"chronik/internal/vfs"
)

// TestRecoverWithoutLinks: a file system that refuses hard links costs a copy, nothing else.
func TestRecoverWithoutLinks(t *testing.T) {
	disk, records := survivor(t, false)
	refused := 0
	linkless := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpLink {
			refused++
			return syscall.EPERM
		}
		return nil
	}))
	rep := must(Recover(t.Context(), Options{FS: linkless, Dir: testDir}))
	if refused == 0 {
		t.Fatal("nothing was to be linked")
	}
	disk = disk.CrashClone(vfs.CrashCloneCfg{})
	holds(t, disk, rep.NewCluster, records)
	serves(t, disk, records, 150)
}

// failing fails the nth change of the disk and all after it.
func failing(disk vfs.FS, n int) (vfs.FS, *int) {
	count := 0
	return errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		if count++; count > n {
			return syscall.ENOSPC
		}
		return nil
	})), &count
}

// TestFailedAttemptTakesNoSpace: what was built goes when the disk allows it.
func TestFailedAttemptTakesNoSpace(t *testing.T) {
	disk, _ := survivor(t, false)
	failed := false
	fsys := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if strings.Contains(op.Path, "raftlog.recovered") && op.Kind == errorfs.OpCreate && !failed {
			failed = true
			return syscall.ENOSPC
		}
		return nil
	}))
	if _, err := Recover(t.Context(), Options{FS: fsys, Dir: testDir}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	for _, name := range must(vfs.List(disk, testDir)) {
		if strings.Contains(name, "recovered") {
			t.Errorf("%s is left", name)
		}
	}
}

// TestRecoverOnAFailingDisk fails every change of the disk in turn: the command says so, and the old store
// is untouched or the command, run again, finishes.
func TestRecoverOnAFailingDisk(t *testing.T) {
	first, records := survivor(t, false)
	old := identityOf(t, first)
	kinds := map[string]int{}
	for n := 0; ; n++ {
		disk := first.CrashClone(vfs.CrashCloneCfg{})
		fsys, count := failing(disk, n)
		_, err := Recover(t.Context(), Options{FS: fsys, Dir: testDir})
		if err == nil && *count <= n {
			break
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("change %d failed: %v", n, err)
		}
		kinds[crashed(t, disk, old, records)]++
	}
	if kinds["old"] < 10 || kinds["under way"] < 3 {
		t.Fatalf("left %v", kinds)
	}
}

// TestRestoreOnAFailingDisk is the same for a restore, with every third change.
func TestRestoreOnAFailingDisk(t *testing.T) {
	old, records := survivor(t, true)
	b := bucket.NewMem()
	upload(t, old, b, everything)
	for n := 0; ; n += 3 {
		disk := vfs.NewCrashableMem()
		fsys, count := failing(disk, n)
		_, err := restore(t, fsys, b, false)
		if err == nil && *count <= n {
			break
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("change %d failed: %v", n, err)
		}
		// The very last change, the sync that makes it durable that all is done, may fail when all is done.
		if _, err := restore(t, disk, b, false); err != nil && !strings.Contains(err.Error(), "is not empty") {
			t.Fatalf("after change %d failed: %v", n, err)
		}
		holds(t, disk, identityOf(t, disk).Cluster, records)
	}
}

// TestRestoreAndAnErrorOfTheDisk has one operation on the new replicas' files fail, each in turn, reads too: that says
// nothing about the snapshots. The command fails; it does not begin a partition anew, empty.
func TestRestoreAndAnErrorOfTheDisk(t *testing.T) {
	old, records := survivor(t, true)
	b := bucket.NewMem()
	upload(t, old, b, everything)
	failed := 0
	for n := 0; ; n++ {
		disk := vfs.NewCrashableMem()
		count := 0
		rep, err := restore(t, errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if strings.Contains(op.Path, "replicas.recovered/") {
				if count++; count == n+1 {
					return syscall.EIO
				}
			}
			return nil
		})), b, false)
		if count <= n {
			break
		}
		if err == nil { // whoever met it had no need of it
			if rep.Count(Kept) != 4 {
				t.Fatalf("operation %d failed: %+v", n, rep.Groups)
			}
			continue
		}
		failed++
		if names := must(vfs.List(disk, testDir)); len(names) == 1 {
			continue // nothing but the LOCK is left
		}
		must(restore(t, disk, b, false))
		holds(t, disk, identityOf(t, disk).Cluster, records)
	}
	if failed < 100 {
		t.Fatalf("%d operations failed", failed)
	}
}
