package vfs

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

func TestWriteVec(t *testing.T) {
	for name, fs := range map[string]FS{"memory": NewCrashableMem(), "disk": Default} {
		for _, pieces := range []int{1, 2, 5, 1023, 1024, 1025, 3000} {
			path := filepath.Join(t.TempDir(), "f")
			if name == "memory" {
				path = "/f"
			}
			f, err := fs.Create(path, CategorySegment)
			if err == nil {
				_, err = f.Write([]byte("head"))
			}
			if err != nil {
				t.Fatal(err)
			}
			want := []byte("head")
			var bufs [][]byte
			for range pieces {
				b := make([]byte, rand.IntN(200))
				for i := range b {
					b[i] = byte(rand.Uint32())
				}
				bufs, want = append(bufs, b), append(want, b...)
			}
			if err := WriteVec(f, bufs, 4); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if got, err := ReadFile(fs, path, 1<<30); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s, %d pieces: %d bytes, want %d: %v", name, pieces, len(got), len(want), err)
			}
		}
	}
}

func TestWriteVecFails(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := WriteFileSync(Default, name, nil, CategorySegment); err != nil {
		t.Fatal(err)
	}
	f, err := Default.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := WriteVec(f, [][]byte{{1}, {2}}, 0); err == nil {
		t.Fatal("a file open for reading was written")
	}
}
