package raftlog

import (
	"encoding/binary"
	"errors"
	"testing"

	"chronik/internal/format"
	"chronik/internal/vfs"
)

// TestNewerFileIsNoDamage: a log of a newer release is refused as such. It is neither
// corrupt nor lost, and nothing of it is changed.
func TestNewerFileIsNoDamage(t *testing.T) {
	fs := vfs.NewCrashableMem()
	closeLog(t, open(t, fs))
	o := testOptions(fs)
	numbers, _, err := listFiles(fs, testDir)
	if err != nil {
		t.Fatal(err)
	}
	path := fs.PathJoin(testDir, fileName(numbers[0], logSuffix))
	f, err := fs.OpenReadWrite(path, vfs.CategoryLog)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, fileHeaderBytes)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint32(b[8:], formatVersion+1)
	binary.BigEndian.PutUint32(b[72:], checksum(b[:72]))
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); !errors.Is(err, format.ErrNewer) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrMissing) {
		t.Fatalf("%v", err)
	}
	if _, err := fs.Stat(path); err != nil {
		t.Error(err)
	}
}
