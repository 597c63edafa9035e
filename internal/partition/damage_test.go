package partition

import (
	"errors"
	"fmt"
	"testing"

	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// damage copies the files of a checkpoint into dir with one byte of the first changed.
func damage(t *testing.T, src vfs.FS, from string, fs vfs.FS, dir string, files []raftgroup.CaptureFile, at int) {
	t.Helper()
	if err := vfs.MkdirAllSync(fs, dir); err != nil {
		t.Fatal(err)
	}
	for k, f := range files {
		b := content(t, src, from, f)
		if k == 0 && at >= 0 {
			b[at] ^= 1
		}
		if err := vfs.WriteFileSync(fs, dir+"/"+f.Name, b, vfs.CategoryNode); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReadingDamageIsReported: a reader never gets the bytes, and the engine hears of it.
func TestReadingDamageIsReported(t *testing.T) {
	fs := vfs.NewCrashableMem()
	whole := open(t, fs, "p", nil, nil)
	r := &fakeReplica{sm: whole, alive: 3}
	r.lead(1)
	for i := range 5 {
		mustAppend(t, New(r, whole), plain(t, 3, int64(i)))
	}
	blob, files := checkpoint(t, whole)
	for name, read := range map[string]func(*Partition) error{
		"read":   func(p *Partition) error { _, err := p.Read(0, 1<<20); return err },
		"digest": func(p *Partition) error { _, err := p.Digest(-1, -1); return err },
	} {
		dir := "damaged-" + name
		damage(t, fs, "p", fs, dir, files, 100)
		sm := open(t, fs, dir, blob, files)
		r := &fakeReplica{sm: sm, alive: 3}
		r.lead(1)
		if err := read(New(r, sm)); !errors.Is(err, ErrStorage) || !errors.Is(err, raftgroup.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if !errors.Is(r.damage, raftgroup.ErrCorrupt) {
			t.Errorf("%s: the engine heard %v", name, r.damage)
		}
		if err := sm.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := whole.Close(); err != nil {
		t.Error(err)
	}
}

// TestVerifyStaged: a received snapshot is held to what was written, not to what was sent.
func TestVerifyStaged(t *testing.T) {
	fs := vfs.NewCrashableMem()
	p, r := newPartition(t)
	for i := range 5 {
		mustAppend(t, p, plain(t, 3, int64(i)))
	}
	blob, files := checkpoint(t, r.sm)
	for _, at := range []int{-1, 0, 30, 100, int(files[0].Size) - 1} {
		dir := fmt.Sprintf("staged%d", at)
		damage(t, r.sm.fs, "p", fs, dir, files, at)
		err := VerifyStaged(fs, dir, blob, files)
		if at < 0 && err != nil {
			t.Errorf("undamaged: %v", err)
		}
		if at >= 0 && !errors.Is(err, raftgroup.ErrCorrupt) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
}
