package archive

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"chronik/internal/bucket"
	"chronik/internal/snapshot"
)

// TestDamage flips, cuts and loses what is stored: verify names the object and
// the bytes, and a download falls back to the snapshot before and says so.
func TestDamage(t *testing.T) {
	for _, d := range []struct {
		name   string
		do     func(b *bucket.Mem, name string)
		want   error
		naming string
	}{
		{"flip", func(b *bucket.Mem, n string) { b.Flip(n, 2000) }, ErrCorrupt, "bytes"},
		{"cut", func(b *bucket.Mem, n string) { b.Cut(n, 2000) }, ErrCorrupt, "ends at byte 2000"},
		{"lost", func(b *bucket.Mem, n string) { b.Lose(n) }, ErrIncomplete, "not found"},
	} {
		t.Run(d.name, func(t *testing.T) {
			r := newRig(t)
			r.append("0.log", noise(1, 5000))
			r.put(10)
			first := r.b.Names("")
			r.append("1.log", noise(2, 5000))
			r.put(20)
			var object string
			for _, n := range r.b.Names(testCluster + "/groups/7/objects/") {
				if !strings.Contains(strings.Join(first, "\n"), n) {
					object = n
				}
			}
			m := must(r.c.Newest(t.Context(), testGroup, nil))
			v, err := r.c.Verify(t.Context(), m, func(d Damage) { t.Fatal(d) })
			noErr(t, err)
			if v.Bytes != m.Bytes() || v.Damaged != 0 {
				t.Fatalf("verified %+v of %d bytes", v, m.Bytes())
			}
			d.do(r.b, object)
			var found []Damage
			_, err = r.c.Verify(t.Context(), m, func(d Damage) { found = append(found, d) })
			noErr(t, err)
			if len(found) == 0 || !errors.Is(found[0].Err, d.want) ||
				!strings.Contains(found[0].Err.Error(), object) || !strings.Contains(found[0].Err.Error(), d.naming) {
				t.Fatalf("found %v", found)
			}
			got, fs, skipped := r.fetch()
			if got.Index != 10 || len(skipped) != 1 || !errors.Is(skipped[0], d.want) || !strings.Contains(skipped[0].Error(), object) {
				t.Fatalf("downloaded index %d, skipped %v", got.Index, skipped)
			}
			r.files["0.log"], r.index = r.files["0.log"][:5000], 10
			r.check(fs, "/d/g1")
		})
	}
}

// TestDamagedManifest: every bit of it counts.
func TestDamagedManifest(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 5000))
	r.put(10)
	up := r.put(20)
	for at := range int(up.Ref.ManifestBytes) {
		r.b.Flip(up.Ref.Object, at)
		_, err := r.c.Manifest(t.Context(), up.Ref)
		wantErr(t, err, ErrCorrupt)
		if !strings.Contains(err.Error(), up.Ref.Object) {
			t.Fatalf("the manifest is not named: %v", err)
		}
		if m := must(r.c.Newest(t.Context(), testGroup, nil)); m.Index != 10 {
			t.Fatalf("newest is %d", m.Index)
		}
		r.b.Flip(up.Ref.Object, at)
	}
	// One that belongs elsewhere is no less wrong.
	other := strings.Replace(up.Ref.Object, fmt.Sprintf("%016x", 20), fmt.Sprintf("%016x", 30), 1)
	noErr(t, r.b.Put(t.Context(), other, r.b.Bytes(up.Ref.Object)))
	var skipped []error
	m := must(r.c.Newest(t.Context(), testGroup, func(_ Ref, err error) { skipped = append(skipped, err) }))
	if m.Index != 20 || len(skipped) != 1 {
		t.Fatalf("newest is %d, skipped %v", m.Index, skipped)
	}
}

// TestNothingThere is an error of its own, and so is a store that does not answer.
func TestNothingThere(t *testing.T) {
	r := newRig(t)
	_, err := r.c.Newest(t.Context(), testGroup, nil)
	wantErr(t, err, ErrNoSnapshot)
	src, err := r.c.Source(t.Context(), testGroup)
	if src != nil || err != nil {
		t.Fatalf("source %v, %v", src, err)
	}
	r.append("0.log", noise(1, 5000))
	r.put(10)
	down := errors.New("down")
	r.b.Fault(func(op bucket.Op, _ string) error {
		if op == bucket.OpRead {
			return down
		}
		return nil
	})
	_, err = r.c.Newest(t.Context(), testGroup, func(Ref, error) { t.Fatal("went back because the store is down") })
	wantErr(t, err, down)
}

// TestList lists clusters, groups and snapshots and leaves out what is not ours.
func TestList(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 10))
	r.put(20)
	r.put(30)
	for _, name := range []string{
		"readme.txt", "other.thing/x", testCluster + "/groups/x/manifests/y", testCluster + "/groups/07/manifests/y",
		testCluster + "/groups/7/manifests/readme", testCluster + "/groups/7/objects/readme",
	} {
		noErr(t, r.b.Put(t.Context(), name, []byte("x")))
	}
	a := New(r.b)
	if got := fmt.Sprint(must(a.Clusters(t.Context()))); got != "["+testCluster+"]" {
		t.Fatal(got)
	}
	if got := fmt.Sprint(must(r.c.Groups(t.Context()))); got != "[7]" {
		t.Fatal(got)
	}
	refs := must(r.c.Snapshots(t.Context(), testGroup))
	if len(refs) != 2 || refs[0].Index != 30 || refs[1].Index != 20 || refs[0].LeaderTerm != 5 {
		t.Fatalf("%+v", refs)
	}
	if _, err := a.Cluster("../x"); err == nil {
		t.Fatal("a cluster id that leaves the prefix is accepted")
	}
}

// TestSource gives chunks by place and hash, from the snapshot before where the newest is damaged.
func TestSource(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 2*mib+1000))
	r.put(10)
	r.append("0.log", noise(2, 1000))
	r.put(20)
	src := must(r.c.Source(t.Context(), testGroup))
	defer src.Close()
	mf := fileManifest("0.log", r.files["0.log"])
	buf := make([]byte, 0, mib)
	for i := range mf.Chunks() {
		off, n := mf.Range(i)
		b, err := src.ReadChunk(t.Context(), mf, i, buf)
		noErr(t, err)
		if !bytes.Equal(b, r.files["0.log"][off:][:n]) {
			t.Fatalf("chunk %d differs", i)
		}
		if i < 2 && &b[0] != &buf[:1][0] {
			t.Fatalf("chunk %d is not in the caller's buffer", i)
		}
	}
	// The file as it was, and as nobody knows it.
	old := fileManifest("0.log", r.files["0.log"][:2*mib+1000])
	b, err := src.ReadChunk(t.Context(), old, 2, buf)
	noErr(t, err)
	if len(b) != 1000 {
		t.Fatalf("%d bytes", len(b))
	}
	for _, f := range []*snapshot.ManifestFile{
		fileManifest("1.log", noise(9, 10)), fileManifest("0.log", noise(9, 10)), fileManifest("0.log", append(bytes.Clone(r.files["0.log"]), 1)),
	} {
		_, err := src.ReadChunk(t.Context(), f, f.Chunks()-1, buf)
		wantErr(t, err, snapshot.ErrNoChunk)
	}
	r.b.Garble(func(_ string, _ int64, p []byte) { p[0] ^= 1 })
	_, err = src.ReadChunk(t.Context(), mf, 0, buf)
	wantErr(t, err, ErrCorrupt)
}

func fileManifest(name string, b []byte) *snapshot.ManifestFile {
	f := &snapshot.ManifestFile{Name: name, Size: int64(len(b))}
	for i := range f.Chunks() {
		off, n := f.Range(i)
		sum := sha256.Sum256(b[off:][:n])
		f.Hashes = append(f.Hashes, sum[:]...)
	}
	return f
}
