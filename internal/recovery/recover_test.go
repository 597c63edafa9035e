package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/broker"
	"chronik/internal/config"
	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/invariant"
	"chronik/internal/raftlog"
	"chronik/internal/vfs"
)

const testDir = "/data"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// node runs a broker alone over fsys until the returned func is called.
func node(t *testing.T, fsys vfs.FS) (*kgo.Client, func()) {
	return nodeWith(t, fsys, "snapshot.threshold_entries", "30")
}

// nodeWith is node with one setting.
func nodeWith(t *testing.T, fsys vfs.FS, setting, value string) (*kgo.Client, func()) {
	t.Helper()
	flags := map[string]string{
		"kafka.listen": freeAddr(t), "raft.listen": freeAddr(t), "admin.listen": freeAddr(t), "node.data_dir": testDir,
		"raftlog.max_bytes": "8MiB", "raftlog.file_bytes": "1MiB", "group.partitions": "2",
	}
	flags[setting] = value
	cfg := must(config.Load(config.LoadOptions{Flags: flags}))
	b := must(broker.Start(context.Background(), broker.Options{Config: cfg, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Version: "test", FS: fsys}))
	cl := must(kgo.NewClient(kgo.SeedBrokers(cfg.Kafka.Listen), kgo.DefaultProduceTopic("orders"), kgo.MaxBufferedRecords(1),
		kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond })))
	return cl, func() {
		cl.Close()
		b.Stop()
		if err := b.Wait(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
}

// survivor is the disk of a node, cut off from power after records were acknowledged and an offset committed.
// The topic has full segments beside the one that is written to.
// If it was stopped, its checkpoints are as new as its log.
func survivor(t *testing.T, stopped bool) (*vfs.MemFS, int64) {
	t.Helper()
	disk := vfs.NewCrashableMem()
	cl, stop := node(t, disk)
	adm := kadm.NewClient(cl)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	small := "8192"
	must(adm.CreateTopic(ctx, 1, 1, map[string]*string{"segment.bytes": &small}, "orders"))
	n := int64(0)
	for ; n < 200 || segments(t, disk, "replicas") < 4; n++ { // the topic's settings reach apply a moment after its creation
		noErr(t, cl.ProduceSync(ctx, kgo.StringRecord(fmt.Sprintf("%d %s", n, strings.Repeat("x", 100)))).FirstErr())
	}
	os := kadm.Offsets{}
	os.AddOffset("orders", 0, 150, -1)
	noErr(t, must(adm.CommitOffsets(ctx, "g", os)).Error())
	if stopped {
		stop()
		return disk.CrashClone(vfs.CrashCloneCfg{}), n
	}
	defer stop()
	return disk.CrashClone(vfs.CrashCloneCfg{}), n
}

// holds checks what a data directory holds, without changing it.
func holds(t *testing.T, disk vfs.FS, cluster string, records int64) *Report {
	t.Helper()
	rep, err := Recover(t.Context(), Options{FS: disk, Dir: testDir, DryRun: true})
	noErr(t, err)
	if rep.Resumed || rep.OldCluster != cluster {
		t.Fatalf("%+v", rep)
	}
	found := 0
	for _, g := range rep.Groups {
		if g.Outcome != Kept || len(g.Notes) > 0 {
			t.Fatalf("%+v", g)
		}
		if g.Topic == "orders" {
			found++
			if g.NextOffset != records || g.LogStart != 0 {
				t.Fatalf("%+v", g)
			}
		}
	}
	if found != 1 || len(rep.Groups) != 4 {
		t.Fatalf("%+v", rep.Groups)
	}
	return rep
}

// oldAgain puts the parts that a recovery left aside back in place, as an operator could.
func oldAgain(t *testing.T, disk vfs.FS) {
	t.Helper()
	for _, name := range must(vfs.List(disk, testDir)) {
		if what, _, ok := strings.Cut(name, identity.BeforeSuffix); ok {
			noErr(t, disk.RemoveAll(path.Join(testDir, what)))
			noErr(t, disk.Rename(path.Join(testDir, name), path.Join(testDir, what)))
		}
	}
}

// TestRecover: a new cluster with the same records and offsets; the old one is still there, aside.
func TestRecover(t *testing.T) {
	disk, records := survivor(t, false)
	before := holds(t, disk, identityOf(t, disk).Cluster, records)
	if n := segments(t, disk, "replicas"); n < 3 {
		t.Fatalf("%d segments: the test needs full ones beside the last", n)
	}
	old := contents(t, disk, testDir)
	rep, err := Recover(t.Context(), Options{FS: disk, Dir: testDir})
	noErr(t, err)
	if rep.NewCluster == rep.OldCluster || rep.NewStore == rep.OldStore || rep.Count(Kept) != 4 || len(rep.Aside) != 2 {
		t.Fatalf("%+v", rep)
	}
	for i, g := range rep.Groups {
		if b := before.Groups[i]; g.ToIndex != b.ToIndex || g.NewTerm <= b.Term || g.NewReplica != b.NewReplica || g.NextOffset != b.NextOffset {
			t.Fatalf("made %+v, the dry run said %+v", g, b)
		}
	}
	aside := disk.CrashClone(vfs.CrashCloneCfg{})
	// The new node writes on; none of it may reach the old files.
	cl, stop := node(t, disk)
	adm := kadm.NewClient(cl)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := range 50 {
		r := cl.ProduceSync(ctx, kgo.StringRecord(fmt.Sprint("new ", i)))
		noErr(t, r.FirstErr())
		if got := r[0].Record.Offset; got != records+int64(i) {
			t.Fatalf("offset %d after %d records", got, records+int64(i))
		}
	}
	if o, ok := must(adm.FetchOffsets(ctx, "g")).Lookup("orders", 0); !ok || o.At != 150 {
		t.Fatalf("committed offset %+v", o)
	}
	read := must(kgo.NewClient(kgo.SeedBrokers(kadmSeed(cl)), kgo.ConsumeTopics("orders"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())))
	defer read.Close()
	for n := int64(0); n < records+50; {
		fs := read.PollFetches(ctx)
		noErr(t, fs.Err())
		fs.EachRecord(func(r *kgo.Record) {
			want := fmt.Sprintf("%d ", n)
			if n >= records {
				want = fmt.Sprint("new ", n-records)
			}
			if !strings.HasPrefix(string(r.Value), want) || r.Offset != n {
				t.Fatalf("record %d is %.20q", n, r.Value)
			}
			n++
		})
	}
	stop()
	for _, name := range rep.Aside {
		part, _, _ := strings.Cut(name, identity.BeforeSuffix)
		kept := strings.ReplaceAll(contents(t, disk, path.Join(testDir, name)), path.Join(testDir, name), path.Join(testDir, part))
		if !strings.Contains(old, kept) {
			t.Fatalf("the old %s was written to", part)
		}
	}
	for _, d := range []*vfs.MemFS{aside, disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})} {
		oldAgain(t, d)
		holds(t, d, rep.OldCluster, records)
	}
}

// TestRecoverAfterARenewal: a survivor that was started once when its raftlog was gone, or was another store's, has a
// new identity and no log of its own, and all it had. A log that a start put aside is taken up, if it was this store's.
func TestRecoverAfterARenewal(t *testing.T) {
	for what, c := range map[string]struct {
		damage func(fsys vfs.FS) error
		lost   bool // the log, and so what came after the checkpoints
	}{
		"gone": {func(fsys vfs.FS) error { return fsys.RemoveAll(testDir + "/raftlog") }, true},
		"foreign": {func(fsys vfs.FS) error {
			if err := fsys.RemoveAll(testDir + "/raftlog"); err != nil {
				return err
			}
			l, err := raftlog.Open(raftlog.Options{FS: fsys, Dir: testDir + "/raftlog", Store: ident.NewStoreID(), Create: true, FileBytes: 1 << 20, MaxBytes: 8 << 20})
			if err != nil {
				return err
			}
			return l.Close()
		}, true},
		"put aside": {func(fsys vfs.FS) error {
			return fsys.Rename(testDir+"/raftlog", testDir+"/raftlog.lost-"+identityOf(t, fsys).Store.String())
		}, false},
	} {
		t.Run(what, func(t *testing.T) {
			disk, records := survivor(t, c.lost)
			old := identityOf(t, disk)
			noErr(t, c.damage(disk))
			renew(t, disk)
			if id := identityOf(t, disk); id.Store == old.Store || id.State != identity.Blank {
				t.Fatalf("not renewed: %+v", id)
			}
			rep, err := Recover(t.Context(), Options{FS: disk, Dir: testDir})
			noErr(t, err)
			if rep.OldCluster != old.Cluster || rep.Count(Kept) != 4 || (len(rep.Notes) > 0) != c.lost {
				t.Fatalf("%+v", rep)
			}
			holds(t, disk, rep.NewCluster, records)
			serves(t, disk, records, 150)
		})
	}
}

// renew starts a node until its store has a new identity.
func renew(t *testing.T, fsys vfs.FS) {
	t.Helper()
	_, stop := node(t, fsys)
	stop()
}

func kadmSeed(cl *kgo.Client) string { return cl.OptValue(kgo.SeedBrokers).([]string)[0] }

func identityOf(t *testing.T, disk vfs.FS) identity.Identity {
	t.Helper()
	h := must(identity.Hold(disk, testDir))
	defer func() { noErr(t, h.Close()) }()
	return must(h.Identity())
}

func segments(t *testing.T, disk vfs.FS, part string) int {
	t.Helper()
	n := 0
	for _, r := range must(vfs.List(disk, path.Join(testDir, part))) {
		for _, g := range must(vfs.List(disk, path.Join(testDir, part, r))) {
			names, err := vfs.List(disk, path.Join(testDir, part, r, g))
			if err != nil {
				continue // a file
			}
			for _, name := range names {
				if strings.HasSuffix(name, ".seg") {
					n++
				}
			}
		}
	}
	return n
}

// TestRecoverCrash cuts the power on both sides of every durable step, with some of what was
// not synced, all or nothing of it. The directory is then the old store, untouched; or
// nobody may open it until the same command has finished it; or the new store.
func TestRecoverCrash(t *testing.T) {
	t.Run("killed", func(t *testing.T) { testRecoverCrash(t, false) })
	t.Run("stopped", func(t *testing.T) { testRecoverCrash(t, true) })
}

func testRecoverCrash(t *testing.T, stopped bool) {
	first, records := survivor(t, stopped)
	old := identityOf(t, first)
	for _, percent := range []int{0, 50, 100} {
		disk := first.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))})
		rng := rand.New(rand.NewPCG(3, uint64(percent)))
		type crash struct {
			point string
			disk  *vfs.MemFS
		}
		var crashes []crash
		invariant.SetPointHook(func(point string) {
			chances := 1
			if percent == 50 && strings.HasPrefix(point, "recovery.") {
				chances = 8 // a few names are there or not
			}
			for range chances {
				crashes = append(crashes, crash{point, disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})})
			}
		})
		_, err := Recover(t.Context(), Options{FS: disk, Dir: testDir})
		invariant.SetPointHook(nil)
		noErr(t, err)
		crashes = append(crashes, crash{"done", disk.CrashClone(vfs.CrashCloneCfg{})})
		seen := map[string]int{}
		for _, c := range crashes {
			seen[c.point]++
			kind := crashed(t, c.disk, old, records)
			if must := mustBe(c.point); must != "" && kind != must {
				t.Errorf("%d%%, crash at %s: the directory is %s, want %s", percent, c.point, kind, must)
			}
		}
		for _, p := range []string{"recovery.seed", "recovery.announce", "recovery.announced", "recovery.aside", "recovery.swap", "recovery.swapped", "recovery.adopt", "recovery.adopted"} {
			if seen[p] == 0 {
				t.Errorf("no crash at %s", p)
			}
		}
	}
}

// mustBe is what a crash at a point has to leave; "": either side.
func mustBe(point string) string {
	switch point {
	case "recovery.seed", "recovery.announce":
		return "old"
	case "recovery.announced", "recovery.aside", "recovery.swap", "recovery.swapped", "recovery.adopt":
		return "under way"
	case "recovery.adopted", "done":
		return "new"
	}
	return ""
}

// crashed checks a disk after a crash and says which of the three it is.
func crashed(t *testing.T, disk *vfs.MemFS, old identity.Identity, records int64) string {
	t.Helper()
	h := must(identity.Hold(disk, testDir))
	announced, err := h.Announced()
	noErr(t, h.Close())
	kind := "new"
	switch {
	case err == nil:
		kind = "under way"
		if _, err := identity.OpenStore(disk, testDir, old.Node); !errors.Is(err, identity.ErrRecovering) {
			t.Fatalf("a store in mid-recovery was opened: %v", err)
		}
		rep, err := Recover(t.Context(), Options{FS: disk, Dir: testDir})
		noErr(t, err)
		if !rep.Resumed || rep.NewCluster != announced.Cluster {
			t.Fatalf("%+v", rep)
		}
	case !errors.Is(err, fs.ErrNotExist):
		t.Fatal(err)
	case identityOf(t, disk).Store == old.Store:
		kind = "old"
		holds(t, disk, old.Cluster, records)
		rep, err := Recover(t.Context(), Options{FS: disk, Dir: testDir})
		noErr(t, err)
		if rep.Resumed || rep.Count(Kept) != 4 {
			t.Fatalf("%+v", rep)
		}
	}
	// Whatever happened, a power cut now leaves the new store whole, and the old one aside.
	disk = disk.CrashClone(vfs.CrashCloneCfg{})
	if finishing(t, disk) { // that it was finished was not durable
		must(Recover(t.Context(), Options{FS: disk, Dir: testDir}))
	}
	now := identityOf(t, disk)
	if now.Store == old.Store || now.State != identity.Member {
		t.Fatalf("%+v", now)
	}
	holds(t, disk, now.Cluster, records)
	oldAgain(t, disk)
	holds(t, disk, old.Cluster, records)
	return kind
}

// finishing tells whether a store is announced.
func finishing(t *testing.T, disk vfs.FS) bool {
	t.Helper()
	h := must(identity.Hold(disk, testDir))
	defer func() { noErr(t, h.Close()) }()
	_, err := h.Announced()
	return err == nil
}

// TestDryRunChangesNothing: not a byte of the directory.
func TestDryRunChangesNothing(t *testing.T) {
	disk, _ := survivor(t, false)
	_, err := Recover(t.Context(), Options{FS: disk, Dir: testDir, DryRun: true}) // the first one makes the LOCK, as a start does
	noErr(t, err)
	before := disk.String()
	sums := contents(t, disk, testDir)
	_, err = Recover(t.Context(), Options{FS: disk, Dir: testDir, DryRun: true})
	noErr(t, err)
	if after := disk.String(); after != before || contents(t, disk, testDir) != sums {
		t.Fatalf("before:\n%s\nafter:\n%s", before, after)
	}
}

func contents(t *testing.T, disk vfs.FS, dir string) string {
	t.Helper()
	var sb strings.Builder
	for _, name := range must(vfs.List(disk, dir)) {
		full := path.Join(dir, name)
		if st := must(disk.Stat(full)); st.IsDir() {
			sb.WriteString(contents(t, disk, full))
		} else {
			fmt.Fprintf(&sb, "%s %x\n", full, must(vfs.ReadFile(disk, full, 1<<30)))
		}
	}
	return sb.String()
}

// TestRecoverPrefersWhatCanBeRead: a log that was put aside tells of a replica whose directory is gone, and which had no
// checkpoint's worth of entries left. A later replica's checkpoint has more than what that log can say.
func TestRecoverPrefersWhatCanBeRead(t *testing.T) {
	disk, records := survivor(t, false)
	old := identityOf(t, disk)
	names, err := vfs.List(disk, testDir+"/replicas")
	noErr(t, err)
	for _, n := range names { // as if replicas of a later identity had them
		i := strings.LastIndexByte(n, '.')
		if id, err := strconv.Atoi(n[i+1:]); err == nil && !strings.HasPrefix(n, "meta.") {
			noErr(t, disk.Rename(testDir+"/replicas/"+n, testDir+"/replicas/"+n[:i+1]+strconv.Itoa(id+50)))
		}
	}
	noErr(t, disk.Rename(testDir+"/raftlog", testDir+"/raftlog.lost-"+old.Store.String()))
	renew(t, disk)
	rep, err := Recover(t.Context(), Options{FS: disk, Dir: testDir, DryRun: true})
	noErr(t, err)
	for _, g := range rep.Groups {
		if strings.HasPrefix(g.Group, "orders-") && (g.Outcome != Kept || g.NextOffset < records/2) {
			t.Errorf("%d records; %+v", records, g)
		}
		if strings.HasPrefix(g.Group, "orders-") && !strings.Contains(strings.Join(g.Notes, "\n"), "what came after the checkpoint is lost") {
			t.Errorf("nothing says that what came after the checkpoint is lost: %+v", g)
		}
	}
}
