package snapshot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

func sample() Checkpoint {
	return Checkpoint{
		Group: 7,
		Point: Point{Index: 100, Term: 4, ConfState: []byte{1, 2}, Members: []byte("m"), ConfGeneration: 3},
		Files: []DataFile{{"00000000.log", 1 << 20}, {"a-1.idx", 0}}, CreatedAt: time.UnixMilli(1700000000123).UTC(),
	}
}

func same(a, b Checkpoint) bool {
	return bytes.Equal(appendHeader(nil, &a, None), appendHeader(nil, &b, None))
}

func TestCheckpointRoundTrip(t *testing.T) {
	big := bytes.Repeat(noise(1, 1000), 3000) // 3 MB, compressible
	for _, codec := range []Codec{None, Gzip, Zstd} {
		for _, blob := range [][]byte{nil, []byte("x"), big} {
			fs := vfs.NewCrashableMem()
			noErr(t, vfs.MkdirAllSync(fs, "/d"))
			info, err := Write(fs, "/d", sample(), codec, blobOf(blob))
			noErr(t, err)
			ck, got, err := Read(fs, "/d")
			noErr(t, err)
			if !same(ck, sample()) || !bytes.Equal(got, blob) {
				t.Fatalf("%s, %d bytes: got %+v and %d bytes", codec, len(blob), ck, len(got))
			}
			if info.RawBytes != int64(len(blob)) || codec != None && len(blob) > 1000 && info.StoredBytes > info.RawBytes/2 {
				t.Fatalf("%s: %+v", codec, info)
			}
			st := must(fs.Stat("/d/checkpoint"))
			if st.Size() != info.FileBytes {
				t.Fatalf("file has %d bytes, reported %d", st.Size(), info.FileBytes)
			}
			if _, err := fs.Stat("/d/checkpoint.tmp"); err == nil {
				t.Fatal("temporary file left")
			}
		}
	}
}

// The layout is fixed: docs/formats/checkpoint.md shows these bytes.
func TestCheckpointGolden(t *testing.T) {
	fs := vfs.NewCrashableMem()
	noErr(t, vfs.MkdirAllSync(fs, "/d"))
	must(Write(fs, "/d", sample(), None, blobOf([]byte("blob"))))
	got := must(vfs.ReadFile(fs, "/d/checkpoint", 1<<20))
	want := "6368726f6e636b70" + "01" + "00" + "0000" + "00000070" + // magic, version, codec, length
		"0000000000000007" + "0000000000000064" + "0000000000000004" + "0000000000000003" + "0000018bcfe5687b" +
		"00000002" + "0102" + "00000001" + "6d" + "00000002" +
		"0c" + hex.EncodeToString([]byte("00000000.log")) + "0000000000100000" +
		"07" + hex.EncodeToString([]byte("a-1.idx")) + "0000000000000000" + "54489256" +
		hex.EncodeToString([]byte("blob")) +
		hex.EncodeToString([]byte("ckpt-end")) + "0000000000000004" + "0000000000000004" + "ec350e56" + "6c81b7b7"
	if hex.EncodeToString(got) != want {
		t.Fatalf("got\n%x\nwant\n%s", got, want)
	}
}

// Each flipped bit and each cut of the file is found, and the error names the
// file and a byte.
func TestCheckpointDamage(t *testing.T) {
	for _, codec := range []Codec{None, Gzip, Zstd} {
		fs := vfs.NewCrashableMem()
		noErr(t, vfs.MkdirAllSync(fs, "/d"))
		must(Write(fs, "/d", sample(), codec, blobOf([]byte("the state machine's blob"))))
		good := must(vfs.ReadFile(fs, "/d/checkpoint", 1<<20))
		try := func(b []byte, what string, at int) {
			t.Helper()
			noErr(t, vfs.WriteFileSync(fs, "/d/checkpoint", b, vfs.CategorySnapshot))
			ck, blob, err := Read(fs, "/d")
			if err == nil && same(ck, sample()) && string(blob) == "the state machine's blob" && codec != None {
				return // compressed formats have bits without meaning
			}
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "/d/checkpoint") || !strings.Contains(err.Error(), "byte") {
				t.Fatalf("%s, %s %d: %v", codec, what, at, err)
			}
		}
		for i := range good {
			try(flip(good, i), "flip", i)
		}
		for i := range good {
			try(bytes.Clone(good[:i]), "cut", i)
		}
		try(append(bytes.Clone(good), 0), "append", 0)
	}
}

func TestCheckpointOfOthersHeaderAndFooter(t *testing.T) {
	// A valid footer behind a valid header of another file is refused.
	a, b := sample(), sample()
	b.Point.Index++
	fs := vfs.NewCrashableMem()
	noErr(t, vfs.MkdirAllSync(fs, "/d"))
	must(Write(fs, "/d", a, None, blobOf([]byte("1"))))
	fa := must(vfs.ReadFile(fs, "/d/checkpoint", 1<<20))
	must(Write(fs, "/d", b, None, blobOf([]byte("2"))))
	fb := must(vfs.ReadFile(fs, "/d/checkpoint", 1<<20))
	mixed := append(bytes.Clone(fa[:len(fa)-footBytes]), fb[len(fb)-footBytes:]...)
	noErr(t, vfs.WriteFileSync(fs, "/d/checkpoint", mixed, vfs.CategorySnapshot))
	_, _, err := Read(fs, "/d")
	wantErr(t, err, ErrCorrupt)
}

// A crash at every step leaves the old checkpoint or the new one; after Write
// has returned, the new one.
func TestCheckpointCrash(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	old, next := sample(), sample()
	next.Point.Index = 200
	for _, percent := range []int{0, 50, 100} {
		fs := vfs.NewCrashableMem()
		noErr(t, vfs.MkdirAllSync(fs, "/d"))
		must(Write(fs, "/d", old, Zstd, blobOf([]byte("old"))))
		var clones []*vfs.MemFS
		var points []string
		clone := func(name string) {
			points = append(points, name)
			clones = append(clones, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}))
		}
		invariant.SetPointHook(clone)
		must(Write(fs, "/d", next, Zstd, blobOf([]byte("new"))))
		invariant.SetPointHook(nil)
		if len(clones) != 7 {
			t.Fatalf("points %v", points)
		}
		for i, c := range clones {
			ck, blob, err := Read(c, "/d")
			noErr(t, err)
			isOld := same(ck, old) && string(blob) == "old"
			isNew := same(ck, next) && string(blob) == "new"
			if !isOld && !isNew {
				t.Fatalf("after %s: %+v %q", points[i], ck, blob)
			}
			if points[i] == "snapshot.checkpoint.durable" && !isNew {
				t.Fatal("durable, and the old one came back")
			}
		}
	}
}

func TestCheckpointWriteFailures(t *testing.T) {
	fs := vfs.NewCrashableMem()
	noErr(t, vfs.MkdirAllSync(fs, "/d"))
	must(Write(fs, "/d", sample(), Zstd, blobOf([]byte("old"))))
	boom := errors.New("boom")
	bad := func(f func(*Checkpoint)) Checkpoint { c := sample(); f(&c); return c }
	for name, c := range map[string]struct {
		ck   Checkpoint
		blob func(io.Writer) (int64, error)
		want string
	}{
		"blob fails":     {sample(), func(w io.Writer) (int64, error) { _, _ = w.Write([]byte("half")); return 4, boom }, "boom"},
		"blob lies":      {sample(), func(w io.Writer) (int64, error) { _, _ = w.Write([]byte("half")); return 5, nil }, "4 bytes written, 5 reported"},
		"name":           {bad(func(c *Checkpoint) { c.Files[0].Name = "../x" }), blobOf(nil), `file name "../x"`},
		"own name":       {bad(func(c *Checkpoint) { c.Files[0].Name = CheckpointName }), blobOf(nil), "taken"},
		"twice":          {bad(func(c *Checkpoint) { c.Files[1].Name = c.Files[0].Name }), blobOf(nil), "taken"},
		"size":           {bad(func(c *Checkpoint) { c.Files[1].Size = -1 }), blobOf(nil), "too large"},
		"conf state":     {bad(func(c *Checkpoint) { c.Point.ConfState = make([]byte, MaxConfStateBytes+1) }), blobOf(nil), "too large"},
		"many files":     {bad(func(c *Checkpoint) { c.Files = make([]DataFile, MaxFiles+1) }), blobOf(nil), "too large"},
		"members":        {bad(func(c *Checkpoint) { c.Point.Members = make([]byte, MaxMembersBytes+1) }), blobOf(nil), "too large"},
		"directory gone": {bad(func(c *Checkpoint) { c.Files = nil }), blobOf(nil), "write /gone"},
	} {
		dir := "/d"
		if name == "directory gone" {
			dir = "/gone"
		}
		_, err := Write(fs, dir, c.ck, Zstd, c.blob)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Fatalf("%s: %v", name, err)
		}
		if _, blob, err := Read(fs, "/d"); err != nil || string(blob) != "old" {
			t.Fatalf("%s: the old checkpoint: %q, %v", name, blob, err)
		}
		if names := must(vfs.List(fs, "/d")); len(names) != 1 {
			t.Fatalf("%s: left %v", name, names)
		}
	}
}

func TestReadWithoutCheckpoint(t *testing.T) {
	fs := vfs.NewCrashableMem()
	_, _, err := Read(fs, "/none")
	wantErr(t, err, ErrNoCheckpoint)
}

// A footer that declares a large blob does not make the reader allocate it.
func TestBlobAllocationIsBounded(t *testing.T) {
	c := sample()
	head := appendHeader(nil, &c, None)
	headCRC := uint32(head[len(head)-4])<<24 | uint32(head[len(head)-3])<<16 | uint32(head[len(head)-2])<<8 | uint32(head[len(head)-1])
	file := append(bytes.Clone(head), "tiny"...)
	file = appendFooter(file, footer{stored: 4, raw: MaxBlobBytes, crc: 1}, headCRC)
	fs := vfs.NewCrashableMem()
	noErr(t, vfs.MkdirAllSync(fs, "/d"))
	noErr(t, vfs.WriteFileSync(fs, "/d/checkpoint", file, vfs.CategorySnapshot))
	allocated := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if _, _, err := Read(fs, "/d"); !errors.Is(err, ErrCorrupt) {
				b.Fatal(err)
			}
			if b.N > 10 {
				return
			}
		}
	}).AllocedBytesPerOp()
	if allocated > 4<<20 {
		t.Fatalf("%d bytes allocated for a file of %d", allocated, len(file))
	}
}

func TestDump(t *testing.T) {
	fs := vfs.NewCrashableMem()
	noErr(t, vfs.MkdirAllSync(fs, "/d"))
	must(Write(fs, "/d", sample(), None, blobOf([]byte("blob"))))
	var out strings.Builder
	noErr(t, Dump(fs, "/d/checkpoint", &out))
	want := `file            /d/checkpoint
version         1
group           7
index           100
term            4
conf_generation 3
conf_state      0102
members         "m"
created_at      2023-11-14T22:13:20.123Z
blob            none, bytes 112 to 116, 4 stored, 4 raw
data            2 files, 1048576 bytes
                     1048576  00000000.log
                           0  a-1.idx
check           ok, blob crc32c ec350e56
`
	if out.String() != want {
		t.Fatalf("got\n%s", out.String())
	}
	good := must(vfs.ReadFile(fs, "/d/checkpoint", 1<<20))
	noErr(t, vfs.WriteFileSync(fs, "/d/bad", flip(good, 113), vfs.CategorySnapshot))
	out.Reset()
	wantErr(t, Dump(fs, "/d/bad", &out), ErrCorrupt)
	if !strings.Contains(out.String(), "index           100") || !strings.Contains(out.String(), "corrupt") {
		t.Fatalf("got\n%s", out.String())
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"0000.log": true, "checkpoint": true, "a-b.c": true, "": false, ".": false, "..": false, "../a": false,
		"a/b": false, `a\b`: false, "A": false, "a b": false, "-a": false, ".a": false, "a.part": false, "a.tmp": false,
		"a.unsynced": false, "a.part.unsynced": false, "a.unsynced.log": true,
		strings.Repeat("a", 64): true, strings.Repeat("a", 65): false, "a\x00": false, "ä": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestCodecNames(t *testing.T) {
	for _, c := range []Codec{None, Gzip, Zstd} {
		if got := must(ParseCodec(c.String())); got != c {
			t.Errorf("%s became %s", c, got)
		}
	}
	if _, err := ParseCodec("lz4"); err == nil {
		t.Error("lz4 accepted")
	}
}

func TestWriteDurableAtReturn(t *testing.T) {
	fs := vfs.NewCrashableMem()
	noErr(t, vfs.MkdirAllSync(fs, "/d"))
	must(Write(fs, "/d", sample(), Zstd, blobOf([]byte("blob"))))
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	if _, blob, err := Read(crashed, path.Clean("/d")); err != nil || string(blob) != "blob" {
		t.Fatalf("%q, %v", blob, err)
	}
}
