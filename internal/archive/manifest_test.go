package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"chronik/internal/alloctest"
	"chronik/internal/vfs"
)

// sample is a small manifest with every field set.
func sample() *Manifest {
	file := func(name string, size int, extents ...Extent) File {
		return File{ManifestFile: *fileManifest(name, noise(uint64(size), size)), Extents: extents}
	}
	return &Manifest{
		Info: Info{
			Cluster: testCluster, Group: 7, Name: "orders-0", Topic: "orders", TopicID: "0102", Key: "0102-0", Partition: 3, Kind: 2,
			Index: 250, Term: 4, LeaderTerm: 5, Node: 2, CreatedAt: time.UnixMilli(1700000000123).UTC(), LogStartOffset: 10, NextOffset: 240,
		},
		Objects: []Object{{Sum: sha256.Sum256([]byte("a")), Size: 900}, {Sum: sha256.Sum256([]byte("b")), Size: 16 << 20}},
		Files: []File{
			file("checkpoint", 300, Extent{0, 0, 300}),
			file("0.log", mib+5, Extent{0, 400, 500}, Extent{1, 0, mib - 495}),
			file("empty", 0),
		},
	}
}

const fixture = "testdata/manifest-v1.hex"

// TestManifestFixture: a manifest of the first version is read for ever, and
// written the same as long as the version is.
func TestManifestFixture(t *testing.T) {
	enc := sample().Append(nil)
	if os.Getenv("CHRONIK_TEST_UPDATE") != "" {
		noErr(t, os.WriteFile(fixture, []byte(hex.EncodeToString(enc)+"\n"), 0o644))
	}
	text := must(os.ReadFile(fixture))
	kept := must(hex.DecodeString(strings.TrimSpace(string(text))))
	m, err := DecodeManifest(kept)
	noErr(t, err)
	if want := must(DecodeManifest(enc)); !reflect.DeepEqual(m, want) || !bytes.Equal(enc, kept) {
		t.Fatalf("kept %+v, now %+v", m.Info, want.Info)
	}
	if m.NextOffset != 240 || m.Files[1].Size != mib+5 || m.Bytes() != mib+305 || len(m.Files[2].Extents) != 0 {
		t.Fatalf("%+v", m)
	}
}

// resum makes the SHA-256 at the end right again.
func resum(b []byte) []byte {
	n := len(b) - sha256.Size
	sum := sha256.Sum256(b[:n])
	return append(b[:n:n], sum[:]...)
}

func TestManifestRefuses(t *testing.T) {
	good := sample().Append(nil)
	patch := func(at int, b ...byte) []byte {
		out := bytes.Clone(good)
		copy(out[at:], b)
		return resum(out)
	}
	change := func(f func(*Manifest)) []byte {
		m := sample()
		f(m)
		return m.Append(nil)
	}
	for want, b := range map[string][]byte{
		"magic of 8 bytes does not fit": good[:5],
		`byte 0 of 0`:                   {},
		`magic "xhronarc"`:              patch(0, 'x'),
		"byte 8 of":                     patch(8, 2),
		"it ends in the header":         good[:60],
		"computed":                      append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1),
		"padding":                       patch(10, 1),
		"partition 4294967295":          patch(72, 255, 255, 255, 255),
		"trailing bytes":                resum(append(bytes.Clone(good), 1)),
		"object of 0 bytes":             change(func(m *Manifest) { m.Objects[0].Size = 0 }),
		"object of 67108865 bytes":      change(func(m *Manifest) { m.Objects[0].Size = 64<<20 + 1 }),
		"no files":                      change(func(m *Manifest) { m.Files = nil }),
		`file 0 is called "0.log"`:      change(func(m *Manifest) { m.Files = m.Files[1:] }),
		`file 3 is called "empty"`:      change(func(m *Manifest) { m.Files = append(m.Files, m.Files[2]) }),
		`file 2 is called "checkpoint"`: change(func(m *Manifest) { m.Files[2].Name = "checkpoint" }),
		`file name "../x"`:              change(func(m *Manifest) { m.Files[1].Name = "../x" }),
		"file 0.log: extents of 1048576": change(func(m *Manifest) {
			m.Files[1].Extents[0].Len--
			m.Files[1].Extents[0].Off++
			m.Files[1].Size = mib + 5
			m.Files[1].Extents[1].Len -= 4
		}),
		"extent of 501 bytes at 400 of object": change(func(m *Manifest) { m.Files[1].Extents[0].Len = 501 }),
		"at 0 of object 2":                     change(func(m *Manifest) { m.Files[1].Extents[1].Object = 2 }),
		"extent of 0 bytes":                    change(func(m *Manifest) { m.Files[1].Extents[1].Len = 0 }),
		"no room for the hashes":               change(func(m *Manifest) { m.Files[1].Size = 1 << 40 }),
		"at 4294967295 of object 1":            change(func(m *Manifest) { m.Files[1].Extents[1].Off = 1<<32 - 1 }),
	} {
		_, err := DecodeManifest(b)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "byte") {
			t.Errorf("want %q, got %v", want, err)
			continue
		}
		wantErr(t, err, ErrCorrupt)
	}
	for n := range len(good) - sha256.Size {
		_, err := DecodeManifest(resum(append(bytes.Clone(good[:n]), make([]byte, sha256.Size)...)))
		wantErr(t, err, ErrCorrupt)
	}
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add(sample().Append(nil))
	f.Add((&Manifest{Files: []File{{}}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		if len(b) >= sha256.Size { // the sum would hide everything behind it
			b = resum(b)
		}
		m, err := DecodeManifest(b)
		if err != nil {
			wantErr(t, err, ErrCorrupt)
			return
		}
		if enc := m.Append(nil); !bytes.Equal(enc, b) {
			t.Fatalf("%x became %x", b, enc)
		}
		for i := range m.Files {
			for c := range m.Files[i].Chunks() {
				_, want := m.Files[i].Range(c)
				got := 0
				for _, e := range m.Files[i].chunkExtents(c) {
					got += int(e.Len)
				}
				if got != want {
					t.Fatalf("chunk %d of file %d: extents of %d bytes, want %d", c, i, got, want)
				}
			}
		}
	})
}

func TestDump(t *testing.T) {
	fs := vfs.NewCrashableMem()
	noErr(t, vfs.WriteFileSync(fs, "/m", sample().Append(nil), vfs.CategorySnapshot))
	noErr(t, vfs.WriteFileSync(fs, "/x", []byte("chron"), vfs.CategorySnapshot))
	for name, want := range map[string]bool{"/m": true, "/x": false} {
		if got := must(IsManifest(fs, name)); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	var out strings.Builder
	noErr(t, Dump(fs, "/m", &out))
	for _, want := range []string{"next_offset     240", "7 orders-0, kind 2", "object 1, bytes 0 to 1048081", fmt.Sprint(sample().Objects[0].Sum)} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	err := Dump(fs, "/x", &out)
	wantErr(t, err, ErrCorrupt)
}
