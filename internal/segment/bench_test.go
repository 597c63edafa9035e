package segment

import (
	"testing"

	"chronik/internal/vfs"
)

func BenchmarkAppendSmall(b *testing.B) {
	l := mustOpen(b, Options{FS: vfs.Default, Dir: b.TempDir() + "/p"})
	batch := build(b, 1, 100, 1)
	b.ReportAllocs()
	for b.Loop() {
		mustAppend(b, l, batch, 1)
	}
}

func BenchmarkAppend16K(b *testing.B) {
	l := mustOpen(b, Options{FS: vfs.Default, Dir: b.TempDir() + "/p"})
	batch := build(b, 1, 16<<10, 1)
	b.ReportAllocs()
	b.SetBytes(16 << 10)
	for b.Loop() {
		mustAppend(b, l, batch, 1)
	}
}

func BenchmarkReadTail(b *testing.B) {
	l := mustOpen(b, Options{FS: vfs.Default, Dir: b.TempDir() + "/p"})
	batch := build(b, 1, 1000, 1)
	for range 5000 {
		mustAppend(b, l, batch, 1)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Read(4999, 1<<20, 5000); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadBulk(b *testing.B) {
	l := mustOpen(b, Options{FS: vfs.Default, Dir: b.TempDir() + "/p"})
	batch := build(b, 1, 1000, 1)
	for range 5000 {
		mustAppend(b, l, batch, 1)
	}
	b.ReportAllocs()
	b.SetBytes(1 << 20)
	for b.Loop() {
		if _, err := l.Read(1000, 1<<20, 5000); err != nil {
			b.Fatal(err)
		}
	}
}
