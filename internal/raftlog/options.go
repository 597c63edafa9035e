package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// Errors of this package. All may be wrapped with a place.
var (
	// ErrMissing: the directory holds no log although one is expected. The store
	// is lost (correctness rule 9).
	ErrMissing = errors.New("raftlog: no log here")
	// ErrForeign: the log belongs to another store.
	ErrForeign = errors.New("raftlog: log of another store")
	// ErrCorrupt: bytes that were durable once have changed. See CorruptError.
	ErrCorrupt = errors.New("raftlog: corrupt")
	// ErrFailed: a write or sync failed; the log accepts nothing more and the node must stop.
	ErrFailed = errors.New("raftlog: failed")
	// ErrNoSpace: an ErrFailed whose reason is a full disk or quota.
	ErrNoSpace = errors.New("raftlog: no space left")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("raftlog: closed")
	// ErrCompacted: the index lies before the first one kept.
	ErrCompacted = errors.New("raftlog: compacted")
	// ErrUnavailable: the index lies after the last one.
	ErrUnavailable = errors.New("raftlog: unavailable")
	// ErrUnknownReplica: no live creation record names the replica.
	ErrUnknownReplica = errors.New("raftlog: unknown replica")
	// ErrExists: the replica was created before.
	ErrExists = errors.New("raftlog: replica exists")
	// ErrQuarantined: records of the replica are damaged; it can only be removed.
	ErrQuarantined = errors.New("raftlog: replica quarantined")
	// ErrTooLarge: the record does not fit in a frame, or its Info or blob is over its limit.
	ErrTooLarge = errors.New("raftlog: record too large")
)

// CorruptError says where durable bytes have changed. It is an ErrCorrupt.
type CorruptError struct {
	File   string
	Offset int64
	What   string
}

// Error implements error.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("raftlog: corrupt: %s at byte %d: %s", e.File, e.Offset, e.What)
}

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Limits of single records.
const (
	// MaxInfoBytes bounds Creation.Info and Install.ConfState.
	MaxInfoBytes = 64 << 10
	// MaxNodeBytes bounds the node blob.
	MaxNodeBytes = 1 << 20
)

// Defaults of Options.
const (
	DefaultMaxBytes   = 512 << 20
	DefaultFileBytes  = 64 << 20
	DefaultCacheBytes = 32 << 20
	minFileBytes      = 64 << 10
)

// Options say where a log is and how large it may get.
type Options struct {
	FS  vfs.FS
	Dir string
	// Store must be the store the log was created for.
	Store ident.StoreID
	// Create makes a new log if Dir holds none; without it that is ErrMissing.
	Create bool
	// MaxBytes is what the files may take together, as far as Trim calls allow.
	MaxBytes int64
	// FileBytes is the size of one file; at most a quarter of MaxBytes (lowered
	// to it), at least 64 KiB, whole blocks. One frame that needs more gets a larger file.
	FileBytes int64
	// CacheBytes bounds the payloads of recent entries kept in memory, all replicas together.
	CacheBytes int64
	// MakeRoom, if set, is asked to free at least FileBytes when the disk has no room for the next file;
	// false: there is nothing to free. It is called on the sync loop.
	MakeRoom func() bool
	Logger   *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.FileBytes <= 0 {
		o.FileBytes = DefaultFileBytes
	}
	o.FileBytes = max(min(o.FileBytes, o.MaxBytes/4, maxFileBytes/2), minFileBytes) &^ (vfs.BlockBytes - 1)
	if o.CacheBytes <= 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Recovery tells what Open found.
type Recovery struct {
	// Created: the log is new.
	Created bool
	// Files is how many files the log had, Scanned how many of them had to be read frame by frame.
	Files, Scanned int
	// LastLSN is the last frame kept.
	LastLSN uint64
	// TornFile and TornAt: where the torn end began; "" if there was none.
	// TornFrames counts the intact frames behind it that were dropped too.
	TornFile   string
	TornAt     int64
	TornFrames int
	// Quarantined are the replicas with damaged records, by id.
	Quarantined []Damage
	Took        time.Duration
}

// Damage is a replica that cannot be trusted any more: a record of it that was
// durable is unreadable. Group is 0 if unknown.
type Damage struct {
	Replica ident.ReplicaID
	Group   ident.GroupID
	Err     error
}

// fsyncBuckets counts the buckets of Stats.FsyncBuckets.
const fsyncBuckets = 18

// Stats are the log's counters since Open and its sizes now.
type Stats struct {
	// ActiveLeft is how many bytes the active file has room for; what comes then begins the next.
	ActiveLeft int64
	// LiveBytes is what live entries take, TotalBytes what the files take on disk, spare ones included.
	LiveBytes, TotalBytes int64
	// Files counts those of the log, Spare those waiting for reuse.
	Files, Spare int
	Replicas     int
	// Batches = successful fdatasyncs of appended frames.
	Batches, Frames, Entries, Bytes uint64
	// MaxBatchFrames is the largest batch so far.
	MaxBatchFrames uint64
	// FsyncBuckets counts fdatasyncs by duration: bucket i those of at most 32 µs << i, the last all others.
	FsyncBuckets [fsyncBuckets]uint64
	FsyncTotal   time.Duration
	// Rolls counts files begun, Recycled those of them that reused an old file.
	Rolls, Recycled uint64
	// RelocatedFrames and RelocatedBytes count what was rewritten to free old files.
	RelocatedFrames, RelocatedBytes uint64
	CacheBytes                      int64
	DurableLSN                      uint64
}

// FsyncBucketBound returns the upper bound of bucket i of Stats.FsyncBuckets; 0 for the last: none.
func FsyncBucketBound(i int) time.Duration {
	if i >= fsyncBuckets-1 {
		return 0
	}
	return 32 * time.Microsecond << i
}

func fsyncBucket(d time.Duration) int {
	for i := range fsyncBuckets - 1 {
		if d <= FsyncBucketBound(i) {
			return i
		}
	}
	return fsyncBuckets - 1
}
