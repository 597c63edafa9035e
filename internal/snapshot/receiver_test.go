package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/vfs"
)

const mib = ChunkBytes

func threeFiles() tree {
	return tree{"0.log": noise(1, 2*mib), "1.log": noise(2, 2*mib+500), "2.log": noise(3, mib/2), "z.idx": nil}
}

var threeNames = []string{"0.log", "1.log", "2.log", "z.idx"}

// overhead is the manifest and the checkpoint, which are always fetched.
const overhead = 4096

// What is received is what is missing, at most one chunk more for each place
// where the bytes differ other than by being cut.
func TestFetchDelta(t *testing.T) {
	all := threeFiles()
	total := int64(4*mib + mib/2 + 500)
	short, tail := all["2.log"], all["1.log"]
	but := func(name string, b []byte) tree {
		tr := maps.Clone(all)
		tr[name] = b
		return tr
	}
	others := func(name string) []string {
		return slices.DeleteFunc(slices.Clone(threeNames), func(n string) bool { return n == name })
	}
	with := func(b []byte, seed uint64, n int) []byte { return append(bytes.Clone(b), noise(seed, n)...) }
	for _, c := range []struct {
		name   string
		local  tree
		donor  tree
		kept   []DataFile // in the live generation's checkpoint
		missed int64      // bytes that nobody here has in a place where they are looked for
		linked []string
	}{
		{name: "empty", missed: total},
		{name: "all there", local: all, linked: threeNames},
		{name: "intact tail behind", local: tree{"0.log": all["0.log"], "1.log": all["1.log"][:mib+7]}, missed: mib - 7 + 500 + mib/2, linked: []string{"0.log"}},
		{name: "older copy", local: tree{"0.log": all["0.log"][:mib]}, missed: total - mib},
		{name: "one flipped byte", local: tree{"0.log": flip(all["0.log"], mib+5), "1.log": all["1.log"], "2.log": all["2.log"]}, missed: mib, linked: []string{"1.log", "2.log"}},
		{name: "flipped in the short tail", local: tree{"0.log": all["0.log"], "1.log": flip(all["1.log"], 2*mib+1), "2.log": all["2.log"]}, missed: 500, linked: []string{"0.log", "2.log"}},
		{name: "local file longer", local: tree{"0.log": append(bytes.Clone(all["0.log"]), 1, 2, 3), "1.log": all["1.log"], "2.log": append(bytes.Clone(all["2.log"]), 9)}, linked: []string{"1.log"}},
		{name: "other bytes of the same length", local: tree{"0.log": noise(50, 2*mib)}, missed: total},
		{name: "donor has all", donor: all, linked: threeNames},
		{name: "donor completes", local: tree{"0.log": all["0.log"], "1.log": all["1.log"][:mib]}, donor: tree{"1.log": flip(all["1.log"], 3), "2.log": all["2.log"]}, linked: []string{"0.log", "2.log"}},
		{name: "donor is longer", donor: tree{"2.log": append(bytes.Clone(all["2.log"]), 7)}, missed: 4*mib + 500},
		{name: "prefix within the only chunk", local: but("2.log", short[:15000]), missed: mib/2 - 15000, linked: others("2.log")},
		{name: "prefix of one byte", local: but("2.log", short[:1]), missed: mib/2 - 1, linked: others("2.log")},
		{name: "prefix within the last chunk of several", local: but("1.log", tail[:2*mib+200]), missed: 300, linked: others("1.log")},
		{name: "prefix within a middle chunk", local: but("1.log", tail[:mib+200]), missed: mib + 300, linked: others("1.log")},
		{name: "longer, parts behind the checkpoint", local: but("2.log", with(short[:300000], 70, mib)), kept: []DataFile{{"2.log", 300000}}, missed: mib/2 - 300000, linked: others("2.log")},
		{name: "longer, parts, no checkpoint", local: but("2.log", with(short[:300000], 70, mib)), missed: mib / 2, linked: others("2.log")},
		{name: "garbage behind the checkpointed length", local: but("2.log", with(short[:200001], 71, 99999)), kept: []DataFile{{"0.log", 5}, {"2.log", 200001}}, missed: mib/2 - 200001, linked: others("2.log")},
		{name: "garbage in another chunk than the length", local: but("1.log", with(tail[:mib+77], 71, mib)), kept: []DataFile{{"1.log", mib + 77}}, missed: mib - 77 + 500, linked: others("1.log")},
		{name: "garbage, no checkpoint", local: but("2.log", with(short[:200000], 71, 100000)), missed: mib/2 - 150000, linked: others("2.log")},
		{name: "checkpoint beyond the file", local: but("2.log", short[:1000]), kept: []DataFile{{"2.log", 2000}}, missed: mib/2 - 1000, linked: others("2.log")},
		{name: "flipped first byte of the prefix", local: but("2.log", flip(short[:15000], 0)), missed: mib / 2, linked: others("2.log")},
		{name: "flipped byte near the end of the prefix", local: but("2.log", flip(short[:15000], 14000)), missed: mib/2 - 7500, linked: others("2.log")},
		{name: "flipped byte before the checkpointed length", local: but("2.log", flip(short[:15000], 11000)), kept: []DataFile{{"2.log", 12000}}, missed: mib/2 - 7500, linked: others("2.log")},
		{name: "donor has the longer prefix", local: but("2.log", short[:1000]), donor: tree{"2.log": short[:5000]}, missed: mib/2 - 5000, linked: others("2.log")},
		{name: "donor has the right prefix", local: but("2.log", flip(short[:9000], 5)), donor: tree{"2.log": short[:5000]}, missed: mib/2 - 5000, linked: others("2.log")},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, all, threeNames...)
			c.local.write(t, g.fs, GenDir(sinkDir, 1))
			state(t, g.fs, GenDir(sinkDir, 1), 10, nil, c.kept)
			c.donor.write(t, g.fs, "/donor/g5")
			g.opt.Donors = []string{"/nothing", "/donor/g5"}
			got, err := g.fetch()
			noErr(t, err)
			g.check(g.fs, got.Dir)
			g.check(g.fs.CrashClone(vfs.CrashCloneCfg{}), GenDir(sinkDir, 2)) // durable when told
			ckBytes := must(g.fs.Stat(got.Dir + "/checkpoint")).Size()
			if got.BytesReceived > c.missed+ckBytes+overhead || got.BytesReceived < c.missed {
				t.Errorf("received %d bytes, missing were %d", got.BytesReceived, c.missed)
			}
			if got.BytesReused != total-c.missed || got.Files != 5 || got.Generation != 2 || got.Checkpoint.Point.Index != 100 {
				t.Errorf("%+v, reusable were %d", got, total-c.missed)
			}
			// The live generation and the donor are as they were.
			for dir, files := range map[string]tree{GenDir(sinkDir, 1): c.local, "/donor/g5": c.donor} {
				for name, want := range files {
					if b := must(vfs.ReadFile(g.fs, path.Join(dir, name), 1<<30)); !bytes.Equal(b, want) {
						t.Errorf("%s/%s changed", dir, name)
					}
				}
			}
			if linked := g.linked(c.local, c.donor); !slices.Equal(linked, c.linked) {
				t.Errorf("linked %v, want %v", linked, c.linked)
			}
			g.idle()
		})
	}
}

// linked finds which files of the new generation share their bytes with the old
// one or the donor, by changing them there.
func (g *rig) linked(local, donor tree) []string {
	var names []string
	for _, name := range threeNames {
		shared := false
		for dir, files := range map[string]tree{GenDir(sinkDir, 1): local, "/donor/g5": donor} {
			if _, ok := files[name]; !ok {
				continue
			}
			before := must(vfs.ReadFile(g.fs, path.Join(GenDir(sinkDir, 2), name), 1<<30))
			f := must(g.fs.OpenReadWrite(path.Join(dir, name), vfs.CategorySegment))
			must(f.WriteAt([]byte("changed"), 0))
			noErr(g.t, f.Close())
			after := must(vfs.ReadFile(g.fs, path.Join(GenDir(sinkDir, 2), name), 1<<30))
			shared = shared || !bytes.Equal(before, after)
		}
		if shared {
			names = append(names, name)
		}
	}
	return names
}

func TestFetchThenInstall(t *testing.T) {
	g := newRig(t, threeFiles(), threeNames...)
	mkdirs(t, g.fs, GenDir(sinkDir, 1))
	must(g.fetch())
	noErr(t, g.recv.Done(t.Context(), g.offer(), g.wire))
	if g.server.Stats().Pins != 0 {
		t.Fatal("pin left")
	}
	noErr(t, RemoveOthers(g.fs, sinkDir, 2))
	if got := must(vfs.List(g.fs, sinkDir)); !slices.Equal(got, []string{"g2"}) {
		t.Fatal(got)
	}
	g.check(g.fs, GenDir(sinkDir, 2))
	if st := g.recv.Stats(); st.Completed != 1 || st.Failed != 0 || st.Live != 0 {
		t.Fatalf("%+v", st)
	}
}

// A complete generation that never became live is used again, and so is a
// staging, for whatever snapshot comes next.
func TestFetchRetargets(t *testing.T) {
	g := newRig(t, threeFiles(), threeNames...)
	must(g.fetch())
	// The source went on: 2.log grew and 3.log came.
	g.files["2.log"] = append(g.files["2.log"], noise(8, mib)...)
	g.files["3.log"] = noise(9, 100)
	g.files.write(t, g.srcFS, srcDir)
	g.blob = noise(10, 3000)
	g.ck = state(t, g.srcFS, srcDir, 150, g.blob, g.files.list("1.log", "2.log", "3.log"))
	g.pin = must(g.server.Pin(testGroup, testReplica, srcDir, sinkNode))
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	// What was staged of 2.log is the beginning of its first chunk now.
	if missing := int64(mib + 100); got.BytesReceived > missing+2*overhead {
		t.Fatalf("received %d, missing were %d", got.BytesReceived, missing)
	}
	if gens := must(vfs.List(g.fs, sinkDir)); !slices.Equal(gens, []string{"g2"}) {
		t.Fatal(gens)
	}
	// A part file that is too long, of whatever it was, does no harm.
	noErr(t, g.fs.Rename(got.Dir, StagingDir(sinkDir, 2)))
	noErr(t, g.fs.Rename(path.Join(StagingDir(sinkDir, 2), "2.log"), path.Join(StagingDir(sinkDir, 2), "3.log.part")))
	noErr(t, g.fs.Remove(path.Join(StagingDir(sinkDir, 2), "3.log")))
	g.check(g.fs, must(g.fetch()).Dir)
}

// A staged file that is a link into the live generation is never written to.
func TestFetchDoesNotWriteThroughLinks(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 1000)}, "0.log")
	g.files.write(t, g.fs, GenDir(sinkDir, 1))
	must(g.fetch())
	g.files["0.log"] = append(g.files["0.log"], noise(2, 500)...)
	g.files.write(t, g.srcFS, srcDir)
	g.ck = state(t, g.srcFS, srcDir, 150, g.blob, g.files.list("0.log"))
	g.pin = must(g.server.Pin(testGroup, testReplica, srcDir, sinkNode))
	g.check(g.fs, must(g.fetch()).Dir)
	if b := must(vfs.ReadFile(g.fs, GenDir(sinkDir, 1)+"/0.log", 1<<20)); !bytes.Equal(b, noise(1, 1000)) {
		t.Fatalf("the live file has %d bytes now", len(b))
	}
}

func TestFetchRefusesAnotherSnapshot(t *testing.T) {
	for name, change := range map[string]func(*Offer){
		"index": func(o *Offer) { o.Index++ }, "term": func(o *Offer) { o.Term++ }, "group": func(o *Offer) { o.Group++ },
	} {
		g := newRig(t, tree{"0.log": noise(1, 10)}, "0.log")
		o := g.offer()
		change(&o)
		_, err := g.recv.Fetch(t.Context(), o, g.opt, g.wire)
		if !errors.Is(err, ErrMismatch) {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := g.fs.Stat(GenDir(sinkDir, 2)); err == nil {
			t.Fatalf("%s: generation was made", name)
		}
		g.idle()
	}
}

func TestFetchArguments(t *testing.T) {
	g := newRig(t, tree{})
	g.opt.Next = 1
	if _, err := g.fetch(); err == nil {
		t.Error("next = live accepted")
	}
	g.opt.Next = 2
	if _, err := g.recv.Fetch(t.Context(), Offer{}, g.opt, g.wire); err == nil {
		t.Error("offer without source accepted")
	}
	g.idle()
}

func TestFetchChecksDiskSpace(t *testing.T) {
	all := threeFiles()
	for _, c := range []struct {
		name    string
		avail   uint64
		reserve int64
		local   tree
		want    error
	}{
		{name: "room", avail: 100 * mib},
		{name: "too full", avail: 3 * mib, want: ErrNoSpace},
		{name: "the reserve is kept", avail: 100 * mib, reserve: 97 * mib, want: ErrNoSpace},
		{name: "less than the reserve", avail: 1, reserve: 2, want: ErrNoSpace},
		{name: "links take none", avail: mib, local: all},
		{name: "a link that is none", avail: 2*mib - 1, local: tree{"0.log": noise(60, 2*mib), "1.log": all["1.log"], "2.log": all["2.log"]}, want: ErrNoSpace},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, all, threeNames...)
			g.fs.TestingSetDiskUsage(pebblevfs.DiskUsage{AvailBytes: c.avail, TotalBytes: 1 << 40})
			c.local.write(t, g.fs, GenDir(sinkDir, 1))
			g.opt.Reserve = c.reserve
			calls := g.wire.calls.Load()
			got, err := g.fetch()
			if !errors.Is(err, c.want) {
				t.Fatal(err)
			}
			if c.want == nil {
				g.check(g.fs, got.Dir)
			} else if c.name == "less than the reserve" && g.wire.calls.Load() != calls {
				t.Fatal("the source was asked before the disk")
			}
			g.idle()
		})
	}
}

// A disk that is full in the middle is a clear refusal, and the next Fetch goes on.
func TestFetchDiskFull(t *testing.T) {
	g := newRig(t, threeFiles(), threeNames...)
	writes := 0
	full := true
	fs := errorfs.Wrap(g.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWriteAt {
			if writes++; full && writes > 3 {
				return errNoSpaceForTest
			}
		}
		return nil
	}))
	g.recv = NewReceiver(ReceiverOptions{FS: fs, Parallel: 1})
	_, err := g.fetch()
	wantErr(t, err, ErrNoSpace)
	g.idle()
	full = false
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	if got.BytesReused < 2*mib {
		t.Fatalf("only %d bytes of the first attempt were kept", got.BytesReused)
	}
}

// Whichever write finds the disk full, the refusal is clear, the live generation is
// as it was, and with room again the next Fetch goes on from what is there.
func TestFetchDiskFullAtEachStep(t *testing.T) {
	files := tree{"0.log": noise(1, 3*mib/2), "1.log": noise(2, mib), "2.log": noise(3, mib/2)}
	local := tree{"1.log": files["1.log"], "2.log": files["2.log"][:mib/4]}
	refused := 0
	for step := 0; ; step++ {
		g := newRig(t, files, "0.log", "1.log", "2.log")
		local.write(t, g.fs, GenDir(sinkDir, 1))
		state(t, g.fs, GenDir(sinkDir, 1), 10, []byte("old"), local.list("1.log", "2.log"))
		var mu sync.Mutex // the planner and the worker both write
		n, hit := 0, ""
		full := true
		fs := errorfs.Wrap(g.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || !full {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if n++; n > step {
				hit = fmt.Sprint(op.Kind, " ", op.Path)
				return errNoSpaceForTest
			}
			return nil
		}))
		g.recv = NewReceiver(ReceiverOptions{FS: fs, Parallel: 1})
		_, err := g.fetch()
		if hit == "" {
			noErr(t, err)
			break // every step was tried
		}
		wantErr(t, err, ErrNoSpace)
		refused++
		g.idle()
		if _, blob, err := Read(g.fs, GenDir(sinkDir, 1)); err != nil || string(blob) != "old" {
			t.Fatalf("step %d, %s: the live generation: %q, %v", step, hit, blob, err)
		}
		for name, want := range local {
			if b := must(vfs.ReadFile(g.fs, path.Join(GenDir(sinkDir, 1), name), 1<<30)); !bytes.Equal(b, want) {
				t.Fatalf("step %d, %s: live %s changed", step, hit, name)
			}
		}
		full = false
		g.check(g.fs, must(g.fetch()).Dir)
	}
	if refused < 12 {
		t.Fatalf("only %d steps", refused)
	}
}

func TestFetchTwiceAtOnceIsRefused(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 10)}, "0.log")
	var inner, discard error
	g.wire.hook = hookOnce(MethodFiles, func() {
		_, inner = g.fetch()
		discard = g.recv.Discard(testGroup, sinkDir, 1)
	})
	must(g.fetch())
	wantErr(t, inner, ErrBusy)
	wantErr(t, discard, ErrBusy)
	g.idle()
	noErr(t, g.recv.Discard(testGroup, sinkDir, 1))
	if left := must(vfs.List(g.fs, sinkDir)); len(left) != 0 {
		t.Fatal(left)
	}
}

// Links across file systems are refused by the OS; then bytes are copied.
func TestFetchCopiesWhereLinksFail(t *testing.T) {
	g := newRig(t, threeFiles(), threeNames...)
	g.files.write(t, g.fs, GenDir(sinkDir, 1))
	fs := errorfs.Wrap(g.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpLink {
			return errors.New("cross-device link")
		}
		return nil
	}))
	g.recv = NewReceiver(ReceiverOptions{FS: fs})
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	if got.BytesReceived > 2*overhead {
		t.Fatalf("received %d bytes", got.BytesReceived)
	}
}

func TestFetchUnreadableLocalBytesAreFetched(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpFileReadAt, errorfs.OpFileSyncData, errorfs.OpOpen} {
		g := newRig(t, threeFiles(), threeNames...)
		g.files.write(t, g.fs, GenDir(sinkDir, 1))
		fs := errorfs.Wrap(g.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == kind && strings.HasPrefix(op.Path, GenDir(sinkDir, 1)) {
				return errors.New("input/output error")
			}
			return nil
		}))
		g.recv = NewReceiver(ReceiverOptions{FS: fs})
		g.check(g.fs, must(g.fetch()).Dir)
	}
}

// What was written wrongly is found before the file gets its name.
func TestFetchReadsBack(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 1000)}, "0.log")
	damage := false
	var fs vfs.FS = errorfs.Wrap(g.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync && strings.HasSuffix(op.Path, "0.log.part") && damage {
			f := must(g.fs.OpenReadWrite(op.Path, vfs.CategorySnapshot))
			must(f.WriteAt([]byte{1, 2, 3, 4}, 500))
			must(0, f.Close())
		}
		return nil
	}))
	g.recv = NewReceiver(ReceiverOptions{FS: fs})
	damage = true
	_, err := g.fetch()
	wantErr(t, err, ErrCorrupt)
	if !strings.Contains(err.Error(), "0.log") {
		t.Fatalf("%v names no file", err)
	}
	damage = false
	g.check(g.fs, must(g.fetch()).Dir)
}

// What an earlier Fetch wrote is hashed after the sync: that it was right before
// says nothing about what the disk has.
func TestFetchHashesWhatAnEarlierOneWrote(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 5*mib)}, "0.log")
	g.newReceiver(ReceiverOptions{Parallel: 1})
	ctx, cancel := context.WithCancel(t.Context())
	var n atomic.Int64
	g.wire.hook = hookEvery(MethodChunk, func() {
		if n.Add(1) == 11 {
			cancel()
		}
	})
	_, err := g.recv.Fetch(ctx, g.offer(), g.opt, g.wire)
	wantErr(t, err, context.Canceled)
	g.wire.hook = nil
	damage := true
	fs := errorfs.Wrap(g.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync && strings.HasSuffix(op.Path, "0.log.part") && damage {
			f := must(g.fs.OpenReadWrite(op.Path, vfs.CategorySnapshot))
			must(f.WriteAt([]byte{1, 2, 3, 4}, 500)) // in the chunk that was kept
			must(0, f.Close())
		}
		return nil
	}))
	g.recv = NewReceiver(ReceiverOptions{FS: fs})
	_, err = g.fetch()
	wantErr(t, err, ErrCorrupt)
	damage = false
	got := must(g.fetch())
	if g.check(g.fs, got.Dir); got.BytesReused < 3*mib {
		t.Fatalf("%+v", got)
	}
}

func TestTransfersAreSeen(t *testing.T) {
	g := newRig(t, threeFiles(), threeNames...)
	var in, out Transfer
	n := 0
	g.wire.hook = hookEvery(MethodChunk, func() {
		if n++; n == 6 {
			in, out = g.recv.Transfers()[0], g.server.Transfers()[0]
		}
	})
	g.newReceiver(ReceiverOptions{Parallel: 1})
	must(g.fetch())
	if in.Group != testGroup || in.Direction != Incoming || in.Peer != sourceNode || in.Index != 100 || in.Attempts != 1 ||
		in.BytesTotal != g.pin.Bytes || in.BytesDone <= 0 || in.BytesDone >= in.BytesTotal || in.State != StateTransferring {
		t.Errorf("%+v", in)
	}
	if out.Direction != Outgoing || out.Peer != sinkNode || out.BytesDone <= 0 || out.State != StateTransferring {
		t.Errorf("%+v", out)
	}
	g.idle()
	g.server.Unpin(g.pin.ID)
	if ts := g.server.Transfers(); len(ts) != 0 {
		t.Errorf("%+v", ts)
	}
}
