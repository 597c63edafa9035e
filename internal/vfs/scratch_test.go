package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"
)

func TestScratchLeavesWhatIsBelowAlone(t *testing.T) {
	under := NewCrashableMem()
	write := func(fsys FS, name, text string) {
		t.Helper()
		f, err := fsys.Create(name, CategoryNode)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(under, "/old", "0123456789")
	s := NewScratch(under)
	if err := s.MkdirAll("/new", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Borrow("/old", "/new/a", 11); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("borrowed more than there is: %v", err)
	}
	if err := s.Borrow("/old", "/new/a", 6); err != nil {
		t.Fatal(err)
	}
	f, err := s.OpenReadWrite("/new/a", CategoryNode)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("ABC"), 6); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 5); !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("borrowed bytes were written: %v", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := ReadFile(s, "/new/a", 100)
	if err != nil || !bytes.Equal(got, []byte("012345ABC")) {
		t.Fatalf("%q, %v", got, err)
	}
	f, err = s.Open("/new/a")
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if n, err := f.ReadAt(b, 7); n != 2 || !errors.Is(err, io.EOF) || string(b[:2]) != "BC" {
		t.Fatalf("behind the borrowed bytes: %q, %v", b[:n], err)
	}
	if n, err := f.ReadAt(b, 4); n != 4 || err != nil || string(b) != "45AB" {
		t.Fatalf("across: %q, %v", b[:n], err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFile(under, "/old", 100); err != nil || string(got) != "0123456789" {
		t.Fatalf("the file below is now %q, %v", got, err)
	}
	if err := s.Remove("/new/a"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat("/new/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("removed and still there: %v", err)
	}
	if _, err := under.Stat("/old"); err != nil {
		t.Fatal(err)
	}
}
