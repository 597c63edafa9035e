package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chronik/internal/bucket"
	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// TestUploadSendsOnlyWhatIsNew grows a state: each snapshot sends the checkpoint
// file and the bytes that were added, no more.
func TestUploadSendsOnlyWhatIsNew(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 3*mib+1000))
	r.append("0.idx", noise(2, 100))
	up := r.put(10)
	if want := int64(3*mib+1000+100) + r.checkpointBytes(); up.BytesSent != want || up.BytesReused != 0 || up.ObjectsSent != 1 {
		t.Fatalf("first upload: %+v, want %d bytes sent", up, want)
	}
	index := ident.Index(10)
	for i, s := range []struct {
		name string
		n    int
	}{
		{"0.log", 5}, {"0.log", 70_000}, {"0.idx", 50}, {"1.log", 2 * mib}, {"0.log", 2*mib - 71_005}, {"1.log", 1}, {"0.log", 0},
	} {
		r.append(s.name, noise(uint64(10+i), s.n))
		index += 10
		up := r.put(index)
		if want := int64(s.n) + r.checkpointBytes(); up.BytesSent != want {
			t.Fatalf("step %d: %d bytes sent, want %d", i, up.BytesSent, want)
		}
		m, fs, skipped := r.fetch()
		if m.Index != index || len(skipped) != 0 {
			t.Fatalf("step %d: downloaded index %d, skipped %v", i, m.Index, skipped)
		}
		r.check(fs, "/d/g1")
	}
}

// TestLargeStatesAreCutIntoObjects packs new chunks into objects of limited size.
func TestLargeStatesAreCutIntoObjects(t *testing.T) {
	r := newRig(t)
	r.cl = must(r.c.Claim(t.Context(), testGroup, 5, 1, WriteOptions{ObjectBytes: 3 * mib}))
	for i := range 3 {
		r.append(fmt.Sprintf("%d.log", i), noise(uint64(i), 3*mib+mib/2))
	}
	up := r.put(10)
	if up.ObjectsSent != 5 { // a chunk is not cut, and the checkpoint takes the first place
		t.Fatalf("%d objects", up.ObjectsSent)
	}
	m, fs, _ := r.fetch()
	for _, o := range m.Objects {
		if o.Size > 3*mib {
			t.Fatalf("object of %d bytes", o.Size)
		}
	}
	r.check(fs, "/d/g1")
}

// TestTailIsNotMadeOfCrumbs bounds the extents of a chunk: a file that grew in
// many small steps is read with few calls.
func TestTailIsNotMadeOfCrumbs(t *testing.T) {
	r := newRig(t)
	for i := range 3 * maxPieces {
		r.append("0.log", noise(uint64(i), 100))
		r.put(ident.Index(10 + i))
	}
	m, fs, _ := r.fetch()
	r.check(fs, "/d/g1")
	if n := len(m.file("0.log").Extents); n > 16 {
		t.Fatalf("%d extents", n)
	}
}

// TestChangedFileIsSentWhole: what is not a continuation of the base is not taken for one.
func TestChangedFileIsSentWhole(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, mib+500))
	r.put(10)
	r.files["0.log"] = noise(2, mib+200)
	r.append("0.log", noise(3, 1000))
	up := r.put(20)
	if want := int64(mib+1200) + r.checkpointBytes(); up.BytesSent != want {
		t.Fatalf("%d bytes sent, want %d", up.BytesSent, want)
	}
	_, fs, _ := r.fetch()
	r.check(fs, "/d/g1")
}

// TestBytesThatChangedUnderTheUpload are not uploaded under the old hash.
func TestBytesThatChangedUnderTheUpload(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 5000))
	r.checkpoint(10)
	pin := must(r.server.Pin(testGroup, 70, r.dir, 0))
	defer r.server.Unpin(pin.ID)
	man, _, err := r.server.Manifest(t.Context(), pin.ID)
	noErr(t, err)
	_, err = r.cl.Upload(t.Context(), Info{Name: "orders-0", Index: 10, Term: 3}, man, flipped{pinned{r.server, pin.ID}})
	wantErr(t, err, ErrCorrupt)
	if names := r.b.Names(testCluster + "/groups/7/manifests/"); len(names) != 0 {
		t.Fatalf("manifests: %v", names)
	}
}

type flipped struct{ pinned }

func (f flipped) ReadPinned(ctx context.Context, file string, b []byte, off int64) error {
	err := f.pinned.ReadPinned(ctx, file, b, off)
	if file == "0.log" {
		b[7] ^= 1
	}
	return err
}

// TestUploadFailsAtAnyCall has the n-th call to the bucket fail, for every n: the
// snapshot before stays whole, and the next try ends the upload.
func TestUploadFailsAtAnyCall(t *testing.T) {
	refused := errors.New("refused")
	for n := 0; ; n++ {
		r := newRig(t)
		r.append("0.log", noise(1, mib+1000))
		r.put(10)
		r.append("0.log", noise(2, 3000))
		r.checkpoint(20)
		left := n
		r.b.Fault(func(bucket.Op, string) error {
			if left--; left == -1 {
				return refused
			}
			return nil
		})
		_, err := r.upload(t.Context(), r.cl)
		r.b.Fault(nil)
		if err == nil && left >= 0 {
			if n < 8 {
				t.Fatalf("an upload of only %d calls", n)
			}
			return // every call has failed once
		}
		wantErr(t, err, refused)
		m, fs, skipped := r.fetch()
		if len(skipped) != 0 {
			t.Fatalf("call %d: skipped %v", n, skipped)
		}
		if m.Index == 20 {
			r.check(fs, "/d/g1") // it was the check behind the manifest that failed
		}
		_, err = r.upload(t.Context(), r.cl)
		noErr(t, err)
		m, fs, _ = r.fetch()
		if m.Index != 20 {
			t.Fatalf("call %d: newest is %d", n, m.Index)
		}
		r.check(fs, "/d/g1")
	}
}

// crash is what the points' hook panics with.
type crash struct{ at string }

// diesAt runs f until the n-th point whose name begins with prefix, and says where it died.
func diesAt(prefix string, n int, f func()) (at string) {
	invariant.SetPointHook(func(name string) {
		if strings.HasPrefix(name, prefix) {
			if n--; n < 0 {
				panic(crash{name})
			}
		}
	})
	defer invariant.SetPointHook(nil)
	defer func() {
		if c, ok := recover().(crash); ok {
			at = c.at
		}
	}()
	f()
	return ""
}

// TestUploaderDies kills the uploader at each of its steps: nothing that was
// there suffers, what it had sent is used by the next, and nothing stays behind.
func TestUploaderDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		for n := 0; ; n++ {
			r := newRig(t)
			r.append("0.log", noise(1, mib+1000))
			r.put(10)
			r.append("0.log", noise(2, 3000))
			r.checkpoint(20)
			at := diesAt("archive.upload", n, func() { _, _ = r.upload(t.Context(), r.cl) })
			if at == "" {
				break
			}
			seen = append(seen, at)
			_, _, skipped := r.fetch()
			if len(skipped) != 0 {
				t.Fatalf("%s: skipped %v", at, skipped)
			}
			// The process is gone; it comes back and leads a later term.
			cl := must(r.c.Claim(t.Context(), testGroup, 6, 1, WriteOptions{}))
			time.Sleep(time.Minute)
			up, err := r.upload(t.Context(), cl)
			noErr(t, err)
			if at != "archive.upload.object" && up.BytesSent != 0 {
				t.Fatalf("%s: %d bytes sent again", at, up.BytesSent)
			}
			_, fs, _ := r.fetch()
			r.check(fs, "/d/g1")
		}
		for _, want := range []string{"archive.upload.object", "archive.upload.objects", "archive.upload.manifest"} {
			if !slices.Contains(seen, want) {
				t.Fatalf("never died at %s, only at %v", want, seen)
			}
		}
	})
}

// TestUploadNoticesLostObjects loses an object while the manifest is written.
func TestUploadNoticesLostObjects(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 5000))
	r.checkpoint(10)
	r.b.Fault(func(op bucket.Op, _ string) error {
		if op == bucket.OpPutIfAbsent {
			for _, name := range r.b.Names(testCluster + "/groups/7/objects/") {
				r.b.Lose(name)
			}
		}
		return nil
	})
	_, err := r.upload(t.Context(), r.cl)
	wantErr(t, err, ErrIncomplete)
	r.b.Fault(nil)
	_, err = r.upload(t.Context(), r.cl)
	noErr(t, err)
	m, fs, _ := r.fetch()
	noErr(t, r.c.Check(t.Context(), m))
	r.check(fs, "/d/g1")
}

// TestDamagedManifestIsWrittenAgain uploads the same checkpoint over a manifest with a flipped bit.
func TestDamagedManifestIsWrittenAgain(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 5000))
	up := r.put(10)
	r.b.Flip(up.Ref.Object, 90)
	again := r.put(10)
	if again.Ref.Object != up.Ref.Object {
		t.Fatalf("%s became %s", up.Ref.Object, again.Ref.Object)
	}
	must(r.c.Manifest(t.Context(), up.Ref))
}

// TestUploadHasATimeLimit: what an upload relies on must be younger than half the grace time.
func TestUploadHasATimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.append("0.log", noise(1, 5000))
		r.checkpoint(10)
		r.b.Fault(func(op bucket.Op, _ string) error {
			if op == bucket.OpPut {
				time.Sleep(31 * time.Minute)
			}
			return nil
		})
		_, err := r.upload(t.Context(), r.cl)
		wantErr(t, err, errSlow)
	})
}

// TestBadBuckets: each is an error that says what is wrong, in bounded time.
func TestBadBuckets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.append("0.log", noise(1, mib+5000))
		r.put(10)
		r.append("0.log", noise(2, 100))
		r.checkpoint(20)

		r.b.ReadOnly(true)
		_, err := r.upload(t.Context(), r.cl)
		wantErr(t, err, bucket.ErrReadOnly)
		if !strings.Contains(err.Error(), "/objects/") {
			t.Fatalf("the object is not named: %v", err)
		}
		r.b.ReadOnly(false)

		r.b.Fault(func(bucket.Op, string) error { return bucket.ErrHang })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = r.upload(ctx, r.cl)
		wantErr(t, err, context.DeadlineExceeded)
		r.b.Fault(nil)

		// Wrong bytes of the base: it is not used, and nothing is believed.
		r.b.Garble(func(name string, _ int64, p []byte) {
			if strings.Contains(name, "/manifests/") {
				p[len(p)/2] ^= 0x40
			}
		})
		up, err := r.upload(t.Context(), r.cl)
		noErr(t, err)
		if up.BytesReused != 0 {
			t.Fatalf("%d bytes of an unreadable base reused", up.BytesReused)
		}
		r.b.Garble(nil)
		_, fs, _ := r.fetch()
		r.check(fs, "/d/g1")
	})
}

// TestDownloadDies kills a download at each step: there is all of it or nothing.
func TestDownloadDies(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, mib+1000))
	r.put(10)
	m := must(r.c.Newest(t.Context(), testGroup, nil))
	for n := 0; ; n++ {
		fs := vfs.NewCrashableMem()
		noErr(t, vfs.MkdirAllSync(fs, "/d"))
		at := diesAt("archive.download", n, func() { _ = r.c.Download(t.Context(), m, fs, "/d/g1") })
		after := fs.CrashClone(vfs.CrashCloneCfg{})
		gs, err := snapshot.Generations(after, "/d")
		noErr(t, err)
		for _, g := range gs {
			if !g.Staging {
				r.check(after, g.Dir)
			}
		}
		if at == "" {
			if n != 2 || len(gs) != 1 || gs[0].Staging {
				t.Fatalf("%d steps, then %v", n, gs)
			}
			wantErr(t, r.c.Download(t.Context(), m, after, "/d/g1"), ErrExists)
			return
		}
		noErr(t, r.c.Download(t.Context(), m, after, "/d/g1"))
		r.check(after, "/d/g1")
	}
}

// TestDownloadStops: one that is given up leaves nothing.
func TestDownloadStops(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 9*mib))
	r.put(10)
	m := must(r.c.Newest(t.Context(), testGroup, nil))
	ctx, cancel := context.WithCancel(t.Context())
	r.b.Fault(func(op bucket.Op, name string) error {
		if op == bucket.OpRead && strings.Contains(name, "/objects/") && r.b.Calls(bucket.OpRead) > 6 {
			cancel()
		}
		return nil
	})
	fs := vfs.NewCrashableMem()
	wantErr(t, r.c.Download(ctx, m, fs, "/d/g1"), context.Canceled)
	if names := must(vfs.List(fs, "/d")); len(names) != 0 {
		t.Fatalf("left: %v", names)
	}
}
