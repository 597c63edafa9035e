package snapshot

import (
	"context"
	"errors"
)

// ChunkSource gives chunks from somewhere else than the node that offers a
// snapshot: the object store, a caught-up follower. What it gives is judged by
// the manifest's hashes. Safe for concurrent use.
type ChunkSource interface {
	// Name says what it is in logs and status: "object store", "node 2".
	Name() string
	// ReadChunk returns chunk i of f, in buf if it fits (cap(buf) >= ChunkBytes).
	// ErrNoChunk: it does not have these bytes.
	ReadChunk(ctx context.Context, f *ManifestFile, i int, buf []byte) ([]byte, error)
	// Close ends its use.
	Close()
}

// ErrNoChunk says that a ChunkSource lacks a chunk.
var ErrNoChunk = errors.New("chunk is not there")
