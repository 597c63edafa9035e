package snapshot

import (
	"context"
	"path/filepath"
	"testing"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// BenchmarkFetch moves 64 MiB between two directories of the machine's disk, in process.
func BenchmarkFetch(b *testing.B) {
	const size = 64 << 20
	for _, c := range []struct {
		name  string
		local bool
	}{{"all missing", false}, {"all here", true}} {
		b.Run(c.name, func(b *testing.B) {
			base := b.TempDir()
			src := filepath.Join(base, "src/g1")
			files := tree{"0.log": noise(1, size)}
			files.write(b, vfs.Default, src)
			state(b, vfs.Default, src, 100, nil, files.list("0.log"))
			s := NewServer(ServerOptions{FS: vfs.Default})
			defer func() { noErr(b, s.Close()) }()
			w := &wire{servers: map[ident.NodeID]*Server{sourceNode: s}}
			r := NewReceiver(ReceiverOptions{FS: vfs.Default})
			pin := must(s.Pin(testGroup, testReplica, src, sinkNode))
			must2(s.Manifest(context.Background(), pin.ID)) // hashed once, as for a later follower
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				sink := b.TempDir()
				if c.local {
					files.write(b, vfs.Default, GenDir(sink, 1))
				}
				pin := must(s.Pin(testGroup, testReplica, src, sinkNode))
				b.StartTimer()
				must(r.Fetch(context.Background(), pin.Offer(sourceNode), FetchOptions{Base: sink, Live: 1, Next: 2}, w))
				b.StopTimer()
				s.Unpin(pin.ID)
				noErr(b, vfs.Default.RemoveAll(sink))
				b.StartTimer()
			}
		})
	}
}

// BenchmarkWrite makes a checkpoint with a blob of 16 MiB.
func BenchmarkWrite(b *testing.B) {
	blob := make([]byte, 0, 16<<20)
	for len(blob) < cap(blob) {
		blob = append(blob, noise(uint64(len(blob))%251, 64)...)
		blob = append(blob, make([]byte, 192)...)
	}
	for _, codec := range []Codec{None, Gzip, Zstd} {
		b.Run(codec.String(), func(b *testing.B) {
			dir := b.TempDir()
			b.SetBytes(int64(len(blob)))
			b.ReportAllocs()
			for b.Loop() {
				must(Write(vfs.Default, dir, sample(), codec, blobOf(blob)))
			}
		})
	}
}

func must2[A, B any](_ A, _ B, err error) { must(0, err) }
