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

// someBytes are of each field of a batch's header, and of its records.
var someBytes = []int{0, 7, 8, 11, 12, 15, 16, 17, 20, 21, 22, 23, 26, 30, 40, 50, 56, 60, 100}

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
	reads := map[string]int{}
	for name, read := range map[string]func(*Partition) error{
		"read":   func(p *Partition) error { _, err := p.Read(0, 1<<20); return err },
		"digest": func(p *Partition) error { _, err := p.Digest(-1, -1); return err },
	} {
		for _, at := range someBytes {
			dir := fmt.Sprintf("damaged-%s-%d", name, at)
			damage(t, fs, "p", fs, dir, files, at)
			opened, err := Opener{}.Open(fs, dir, blob, files)
			if errors.Is(fromSegment(err), raftgroup.ErrCorrupt) {
				continue // found before anybody reads
			}
			if err != nil {
				t.Fatal(err)
			}
			sm := opened.(*StateMachine)
			r := &fakeReplica{sm: sm, alive: 3}
			r.lead(1)
			reads[name]++
			if err := read(New(r, sm)); !errors.Is(err, ErrStorage) || !errors.Is(err, raftgroup.ErrCorrupt) {
				t.Errorf("%s, byte %d: %v", name, at, err)
			}
			if !errors.Is(r.damage, raftgroup.ErrCorrupt) {
				t.Errorf("%s, byte %d: the engine heard %v", name, at, r.damage)
			}
			if err := sm.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if reads["read"] < 5 || reads["digest"] < 5 {
		t.Errorf("so few of %d damaged bytes were left for readers: %v", len(someBytes), reads)
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
	for _, at := range append([]int{-1, int(files[0].Size) - 1}, someBytes...) {
		dir := fmt.Sprintf("staged%d", at)
		damage(t, r.sm.fs, "p", fs, dir, files, at)
		err := VerifyStaged(t.Context(), fs, dir, blob, files)
		if at < 0 && err != nil {
			t.Errorf("undamaged: %v", err)
		}
		if at >= 0 && !errors.Is(err, raftgroup.ErrCorrupt) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
}
