package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"strings"
	"testing"

	"chronik/internal/alloctest"
	"chronik/internal/vfs"
)

func manifestOf(files ...ManifestFile) *Manifest { return &Manifest{Files: files} }

func mfile(name string, size int64) ManifestFile {
	f := ManifestFile{Name: name, Size: size}
	for i := range chunkCount(size) {
		sum := sha256.Sum256([]byte{byte(i)})
		f.Hashes = append(f.Hashes, sum[:]...)
	}
	return f
}

func TestManifestRoundTrip(t *testing.T) {
	m := manifestOf(mfile(CheckpointName, 300), mfile("a", 0), mfile("b", ChunkBytes), mfile("c", 2*ChunkBytes+1))
	enc := m.Append(nil)
	got := must(DecodeManifest(enc))
	for i := range got.Files {
		if len(got.Files[i].Hashes) == 0 {
			got.Files[i].Hashes = nil
		}
	}
	if !reflect.DeepEqual(got, m) {
		t.Fatalf("got %+v", got)
	}
	if got.Bytes() != 300+3*ChunkBytes+1 || got.Files[3].Chunks() != 3 {
		t.Fatalf("%d bytes, %d chunks", got.Bytes(), got.Files[3].Chunks())
	}
	if off, n := got.Files[3].Range(2); off != 2*ChunkBytes || n != 1 {
		t.Fatalf("last chunk at %d, %d bytes", off, n)
	}
	if want := manifestBytes([]DataFile{{CheckpointName, 300}, {"a", 0}, {"b", ChunkBytes}, {"c", 2*ChunkBytes + 1}}); want != int64(len(enc)) {
		t.Fatalf("%d bytes, foretold %d", len(enc), want)
	}
	for i := range enc {
		if _, err := DecodeManifest(enc[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func TestManifestHostile(t *testing.T) {
	be := binary.BigEndian
	raw := func(count uint32, body ...[]byte) []byte {
		b := append([]byte(manMagic), manVersion, 0, 0, 0)
		return append(be.AppendUint32(b, count), bytes.Join(body, nil)...)
	}
	file := func(name string, size uint64, hashes int) []byte {
		b := appendName(nil, name)
		b = be.AppendUint64(b, size)
		return append(b, make([]byte, hashes)...)
	}
	ck := file(CheckpointName, 10, 32)
	for name, b := range map[string][]byte{
		"empty":                  nil,
		"magic":                  []byte("chronmanx"),
		"version":                append([]byte(manMagic), 2, 0, 0, 0, 0, 0, 0, 1),
		"no file":                raw(0),
		"count without bytes":    raw(1<<32 - 1),
		"count above limit":      raw(MaxFiles+2, make([]byte, 20*MaxFiles)),
		"escaping name":          raw(2, ck, file("../../etc/passwd", 1, 32)),
		"absolute name":          raw(2, ck, file("/etc/passwd", 1, 32)),
		"dots":                   raw(2, ck, file("..", 1, 32)),
		"empty name":             raw(2, ck, file("", 1, 32)),
		"reserved name":          raw(2, ck, file("a.part", 1, 32)),
		"two checkpoints":        raw(2, ck, ck),
		"same name twice":        raw(3, ck, file("a", 0, 0), file("a", 0, 0)),
		"checkpoint not first":   raw(2, file("a", 0, 0), ck),
		"size 2^62":              raw(2, ck, file("a", 1<<62, 32)),
		"size 2^63":              raw(2, ck, file("a", 1<<63, 32)),
		"size 2^50, no hashes":   raw(2, ck, file("a", 1<<50, 32)),
		"one hash too few":       raw(2, ck, file("a", 2*ChunkBytes, 32)),
		"one hash too many":      raw(2, ck, file("a", 1, 64)),
		"trailing":               append(raw(1, ck), 1),
		"larger than a manifest": make([]byte, MaxManifestBytes+1),
	} {
		if m, err := DecodeManifest(b); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %+v, %v", name, m, err)
		} else if !strings.Contains(err.Error(), "manifest") {
			t.Errorf("%s: %v does not say where", name, err)
		}
	}
}

func TestOfferRoundTrip(t *testing.T) {
	o := Offer{Group: 1, Index: 2, Term: 3, Bytes: 4, Files: 5, Sources: []OfferSource{{1, 1 << 63}, {2, 7}}}
	enc := o.Append(nil)
	if got := must(DecodeOffer(enc)); !reflect.DeepEqual(got, o) {
		t.Fatalf("got %+v", got)
	}
	for i := range enc {
		if _, err := DecodeOffer(enc[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	for _, bad := range []Offer{
		{Sources: nil},
		{Sources: []OfferSource{{0, 1}}},
		{Sources: []OfferSource{{-1, 1}}},
		{Bytes: -1, Sources: o.Sources},
		{Files: MaxFiles + 2, Sources: o.Sources},
	} {
		if _, err := DecodeOffer(bad.Append(nil)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestRequestRoundTrip(t *testing.T) {
	for _, r := range []request{{}, {pin: 1<<64 - 1, offset: 1 << 40, length: ChunkBytes, name: "a.log"}, {pin: 1, offset: 5}} {
		if got := must(decodeRequest(r.encode())); got != r {
			t.Fatalf("%+v became %+v", r, got)
		}
	}
	for name, r := range map[string]request{
		"length": {length: ChunkBytes + 1}, "offset": {offset: -1}, "name": {name: "../x"}, "reserved": {name: "x.tmp"},
	} {
		if _, err := decodeRequest(r.encode()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add(manifestOf(mfile(CheckpointName, 300), mfile("b", ChunkBytes+1)).Append(nil))
	f.Add(manifestOf(mfile(CheckpointName, 0)).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		m, err := DecodeManifest(b)
		if err != nil {
			return
		}
		enc := m.Append(nil)
		b[9], b[10], b[11] = 0, 0, 0 // padding is not kept
		if !bytes.Equal(enc, b) {
			t.Fatalf("%x became %x", b, enc)
		}
	})
}

func FuzzDecodeHeader(f *testing.F) {
	c := sample()
	f.Add(appendHeader(nil, &c, Zstd))
	f.Add(appendHeader(nil, &Checkpoint{}, None))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		if len(b) >= headMinBytes { // the CRC would hide everything behind it
			be := binary.BigEndian
			be.PutUint32(b[12:], uint32(len(b)))
			be.PutUint32(b[len(b)-4:], crcOf(b[:len(b)-4]))
		}
		c, codec, err := decodeHeader(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint32(b[len(b)-4:], crcOf(b[:len(b)-4]))
		if enc := appendHeader(nil, &c, codec); !bytes.Equal(enc, b) {
			t.Fatalf("%x became %x", b, enc)
		}
	})
}

func FuzzDecodeFooter(f *testing.F) {
	f.Add(appendFooter(nil, footer{5, 9, 1}, 77), uint32(77), int64(5))
	f.Fuzz(func(t *testing.T, b []byte, headCRC uint32, room int64) {
		defer alloctest.Bound(t, len(b))()
		if len(b) == footBytes {
			binary.BigEndian.PutUint32(b[footBytes-4:], footerCRC(b[:footBytes-4], headCRC))
		}
		foot, err := decodeFooter(b, headCRC, room)
		if err == nil && !bytes.Equal(appendFooter(nil, foot, headCRC), b) {
			t.Fatalf("%x", b)
		}
	})
}

func FuzzDecodeProtocol(f *testing.F) {
	f.Add(request{pin: 1, offset: 2, length: 3, name: "a"}.encode())
	f.Add(Offer{Group: 1, Sources: []OfferSource{{1, 2}}}.Append(nil))
	f.Add(manifestPage{total: 5, data: []byte("hello")}.encode()[1:])
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		if r, err := decodeRequest(b); err == nil && !bytes.Equal(r.encode(), b) {
			t.Fatalf("request %x", b)
		}
		if o, err := DecodeOffer(b); err == nil && !bytes.Equal(o.Append(nil), b) {
			t.Fatalf("offer %x", b)
		}
		if p, err := decodeManifestPage(b); err == nil && (p.total < 0 || p.total > MaxManifestBytes || !bytes.Equal(p.encode()[1:], b)) {
			t.Fatalf("page %x", b)
		}
	})
}

// FuzzReadCheckpoint reads whole files: no panic, and no blob larger than declared.
func FuzzReadCheckpoint(f *testing.F) {
	for _, codec := range []Codec{None, Gzip, Zstd} {
		f.Add(fileOf(codec, []byte("some blob, some blob, some blob")))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		fs := vfs.NewCrashableMem()
		noErr(t, vfs.MkdirAllSync(fs, "/d"))
		noErr(t, vfs.WriteFileSync(fs, "/d/checkpoint", b, vfs.CategorySnapshot))
		file, err := Open(fs, "/d")
		if err != nil {
			return
		}
		blob, err := file.ReadBlob()
		if err == nil && int64(len(blob)) != file.RawBytes {
			t.Fatalf("%d bytes, declared %d", len(blob), file.RawBytes)
		}
		noErr(t, file.Close())
	})
}

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func fileOf(codec Codec, blob []byte) []byte {
	fs := vfs.NewCrashableMem()
	must(0, vfs.MkdirAllSync(fs, "/d"))
	must(Write(fs, "/d", sample(), codec, blobOf(blob)))
	return must(vfs.ReadFile(fs, "/d/checkpoint", 1<<20))
}
