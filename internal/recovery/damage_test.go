package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/vfs"
)

// flip changes the byte at at(content) of the first file below dir whose path has all of parts.
func flip(t *testing.T, disk vfs.FS, at func([]byte) int, parts ...string) string {
	t.Helper()
	var walk func(dir string) string
	walk = func(dir string) string {
		for _, name := range must(vfs.List(disk, dir)) {
			full := path.Join(dir, name)
			if st := must(disk.Stat(full)); st.IsDir() {
				if found := walk(full); found != "" {
					return found
				}
				continue
			}
			fits := true
			for _, p := range parts {
				fits = fits && strings.Contains(full, p)
			}
			if !fits {
				continue
			}
			b := must(vfs.ReadFile(disk, full, 1<<30))
			if k := at(b); k >= 0 {
				f := must(disk.OpenReadWrite(full, vfs.CategoryNode))
				must(f.WriteAt([]byte{b[k] ^ 0x40}, int64(k)))
				noErr(t, errors.Join(f.Sync(), f.Close()))
				return full
			}
		}
		return ""
	}
	found := walk(testDir)
	if found == "" {
		t.Fatalf("no file like %v", parts)
	}
	return found
}

// ordersKey is how the topic's replica directories begin: not like those of other groups.
func ordersKey(t *testing.T, disk vfs.FS) string {
	t.Helper()
	for _, name := range must(vfs.List(disk, path.Join(testDir, "replicas"))) {
		if !strings.HasPrefix(name, "meta") && !strings.HasPrefix(name, "offsets") {
			return name
		}
	}
	t.Fatal("no topic")
	return ""
}

// TestRecoverDamage: what is damaged is named with its file; the rest is kept, and the dry run says the same.
func TestRecoverDamage(t *testing.T) {
	first, records := survivor(t, true)
	cl, stop := nodeWith(t, first, "snapshot.threshold_entries", "10000")
	for range 20 { // these are in the log alone
		noErr(t, cl.ProduceSync(t.Context(), kgo.StringRecord(fmt.Sprintf("%d %s", records, strings.Repeat("x", 100)))).FirstErr())
		records++
	}
	first = first.CrashClone(vfs.CrashCloneCfg{})
	stop()
	middle := func(b []byte) int { return len(b) / 2 }
	for _, tc := range []struct {
		name    string
		damage  func(disk *vfs.MemFS) string // returns what a note must name
		outcome Outcome
		next    func(int64) bool
	}{
		{"a full segment", func(d *vfs.MemFS) string {
			return path.Base(flip(t, d, middle, ordersKey(t, d), "/00000000000000000000.seg"))
		}, Kept, func(n int64) bool { return n == records }},
		{
			"the checkpoint", func(d *vfs.MemFS) string { return flip(t, d, middle, ordersKey(t, d), "/checkpoint") },
			Damaged, func(n int64) bool { return n == 0 },
		},
		{"an entry in the raftlog", func(d *vfs.MemFS) string {
			return flip(t, d, func(b []byte) int { return bytes.LastIndex(b, fmt.Appendf(nil, "%d x", records-3)) }, "raftlog/")
		}, Kept, func(n int64) bool { return n > 0 && n < records }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disk := first.CrashClone(vfs.CrashCloneCfg{})
			want := tc.damage(disk)
			dry := must(Recover(t.Context(), Options{FS: disk, Dir: testDir, DryRun: true}))
			rep := must(Recover(t.Context(), Options{FS: disk, Dir: testDir}))
			for _, r := range []*Report{dry, rep} {
				g := rowOf(t, r, "orders-0")
				if g.Outcome != tc.outcome || !tc.next(g.NextOffset) || !strings.Contains(strings.Join(g.Notes, "\n"), want) || r.Count(Kept) < 3 {
					t.Fatalf("want %s: %+v", want, g)
				}
			}
			if tc.outcome == Kept && rowOf(t, rep, "orders-0").NextOffset == records {
				return // a reader would meet the damage
			}
			serves(t, disk, rowOf(t, rep, "orders-0").NextOffset, 150)
		})
	}
	t.Run("the metadata", func(t *testing.T) {
		disk := first.CrashClone(vfs.CrashCloneCfg{})
		name := flip(t, disk, middle, "/meta.", "/checkpoint")
		before := contents(t, disk, testDir)
		if _, err := Recover(t.Context(), Options{FS: disk, Dir: testDir}); err == nil || !strings.Contains(err.Error(), name) {
			t.Fatalf("want %s: %v", name, err)
		}
		if contents(t, disk, testDir) != before {
			t.Fatal("a refused recovery changed the directory")
		}
	})
	for name, damage := range map[string]func(*vfs.MemFS) error{
		"the raftlog is gone": func(d *vfs.MemFS) error { return d.RemoveAll(path.Join(testDir, "raftlog")) },
		"the raftlog's head": func(d *vfs.MemFS) error {
			flip(t, d, func([]byte) int { return 20 }, "raftlog/")
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) { testWithoutLog(t, first.CrashClone(vfs.CrashCloneCfg{}), records-20, damage) })
	}
}

// testWithoutLog: each group ends at its checkpoint, at offset records; one without a readable checkpoint begins anew.
func testWithoutLog(t *testing.T, disk *vfs.MemFS, records int64, damage func(*vfs.MemFS) error) {
	noErr(t, damage(disk))
	bad := disk.CrashClone(vfs.CrashCloneCfg{})
	name := flip(t, bad, func(b []byte) int { return len(b) / 2 }, ordersKey(t, bad), "/checkpoint")
	rep := must(Recover(t.Context(), Options{FS: bad, Dir: testDir, DryRun: true}))
	if g := rowOf(t, rep, "orders-0"); g.Outcome != Damaged || !strings.Contains(strings.Join(g.Notes, "\n"), name) {
		t.Fatalf("%+v", g)
	}
	for _, dry := range []bool{true, false} {
		rep = must(Recover(t.Context(), Options{FS: disk, Dir: testDir, DryRun: dry}))
		g := rowOf(t, rep, "orders-0")
		if g.Outcome != Kept || g.NextOffset != records || rep.Count(Kept) != 4 || len(rep.Notes) != 1 || !strings.Contains(rep.Notes[0], "without the raftlog") {
			t.Fatalf("%+v", rep)
		}
	}
	serves(t, disk, records, 150)
}

// TestRecoverRefuses: what is no survivor's directory.
func TestRecoverRefuses(t *testing.T) {
	blank := vfs.NewCrashableMem()
	noErr(t, vfs.MkdirAllSync(blank, testDir))
	done, _ := survivor(t, false)
	must(Recover(t.Context(), Options{FS: done, Dir: testDir}))
	again := done.CrashClone(vfs.CrashCloneCfg{})
	oldAgain(t, again)
	noErr(t, vfs.MkdirAllSync(again, path.Join(testDir, "raftlog.before-recovery-"+identityOf(t, again).Store.String())))
	for _, tc := range []struct {
		name string
		disk vfs.FS
		want string
	}{
		{"no directory", vfs.NewCrashableMem(), "no data directory"},
		{"no store", blank, "holds no store"},
		{"the names for the old files are taken", again, "was recovered before"},
	} {
		for _, dry := range []bool{true, false} {
			if _, err := Recover(t.Context(), Options{FS: tc.disk, Dir: testDir, DryRun: dry}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
	}
}
