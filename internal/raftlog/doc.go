// Package raftlog is the one write-ahead log of a node: entries, hard states and
// the life of every replica the node carries, in one stream, with one fdatasync
// for everybody who waits.
//
//	<dir>/00000007.log   oldest file that holds something live
//	<dir>/00000008.log   ...
//	<dir>/00000009.log   active: the only one written
//	<dir>/00000003.free  emptied, kept for reuse: overwriting allocated blocks
//	                     makes fdatasync cheaper than growing a file; a new file
//	                     is zeroed a little ahead of small batches
//
// A file (offsets in docs/formats/raftlog.md):
//
//	0        header: store, number, epoch, first LSN, last LSN before the file
//	4096     seal: where the footer is; only in sealed files
//	8192     frame frame frame ...      (8-byte aligned, LSNs without a gap)
//	         footer: one short line a frame, so that open need not scan
//
// A frame is a header of 80 bytes with a checksum of its own, a body, and a
// checksum over both. One Append is one frame: entries and the whole HardState
// stand or fall together (correctness rule 5).
//
// # Who owns what
//
// One goroutine, the sync loop, writes: it takes everything that waits, encodes
// it into one buffer, writes and syncs it once, moves the index and runs the
// Done callbacks. The write is of whole blocks and goes past the page cache where
// the file system lets it (batch.go): nobody reads it soon, the tail cache has it.
// While it syncs, the next batch collects. It alone changes files, entry references and the byte counts of files. Readers (View) share
// a replica's fields with it under the replica's mutex, which is never held
// across I/O; they hold a count on the files they read, and a file with readers
// is unlinked instead of reused. Trim moves the visible first index at once, in the caller's
// goroutine; what it frees is freed by the loop once the trim record is durable.
//
// # Why a crash loses nothing
//
//   - Done(nil) runs after write and fdatasync of the frame, and a batch starts
//     only when the one before it is durable. So each frame can say what was
//     durable when it was written (durable_upto). D, the highest of these in
//     any valid frame, separates the two kinds of bad frames: at or below D it was
//     durable once, so the disk damaged it (corruption); above D it was perhaps
//     never finished (torn), nobody was told of it, and it and all behind it are
//     dropped (rule 6).
//   - After a recovery the old file is never written again. The next file's header
//     says with which LSN the log before it ends, so dropped frames stay dropped.
//   - A file's header is durable before the file has its name, so a named file
//     without a valid header is damaged, never half made.
//   - A reused file gets a new random epoch, which every frame repeats inside its
//     checksum: what an earlier use left behind is not a frame.
//   - Files are freed from the old end only, one directory sync each. What is
//     left is therefore always an end piece of the history, and replaying an end
//     piece gives the right state if each live record is in it: the records that
//     void others come later than what they void.
//   - A record in the oldest file that is still needed is written again at the
//     head (relocate), synced, and only then the file is freed (rule 7). Relocate
//     states where entries are; it never truncates.
//   - A failed write or sync is final. Nothing is retried: what the kernel did
//     with the dirty pages is unknown.
//   - The block in which the batch before ended is written again, its durable bytes
//     as they were, with the new ones behind them; zeros fill the last block. So a
//     torn write leaves in that block what a page cache's write of it would.
//
// Assumptions: fdatasync returning nil means durable; a rename followed by a
// directory sync is atomic and durable; an fdatasync'd byte does not change when
// its neighbour in the same sector is written.
//
// # Not here
//
// What entries mean, when to trim, when to checkpoint, any Raft rule. The log does
// not know that a quorum exists. A bit flip in the very last batch before a
// crash looks like a torn write; peers notice by DurableLSN (rule 18).
package raftlog
