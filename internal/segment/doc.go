// Package segment keeps one partition's applied record batches, byte for byte as
// consumers read them.
//
// A log is a directory of segment files, each named by its first offset and
// holding batches back to back, with no frame around them (docs/formats/segment.md):
//
//	00000000000000000000.seg   | batch | batch | batch | batch |   sealed
//	00000000000000000000.idx   offset -> position, timestamp -> position
//	00000000000000000187.seg   | batch | batch |~~~~~~~~~~~~~~~|   active
//	                                           ^ length          ^ end of file
//
// What belongs to a file ends at its length, which lives in memory and in the
// replica's checkpoint. Bytes behind it are remains of a crash or of a failed
// write; they are written over. A file is never cut, and its bytes below the
// length never change.
//
// # Who owns what
//
// One goroutine, the applier, appends (Stage, Flush), sets limits, drops and
// captures. Readers work on immutable views: the list of segments and each
// segment's length, next offset and index are replaced as a whole, behind atomic
// pointers. Nothing holds a lock across I/O that a reader or the applier could
// wait for. A background goroutine of the engine syncs and publishes captures
// (Pin). Files open for reading, and the indexes of sealed segments, live in the
// node's Handles.
//
// # Why a crash loses nothing
//
// The Raft log keeps every entry until a checkpoint covers it, so a segment needs
// no sync of its own. Pin.Sync makes a checkpoint's bytes durable (file data, then
// the directory if it gained files) before the checkpoint names them. After a
// crash Open goes back to the lengths of the last durable checkpoint, removes
// segment files it does not name, and the entries that follow are applied again.
// Where a segment ends depends on nothing but batches and limits, both of which
// come from the log, so they land at the same bytes (correctness rules 1 to 3).
// Dropped files stay until a durable checkpoint no longer names them and no pin
// holds them (rule 12). A file that is shorter than its checkpoint says, or bytes
// that fail their CRC, are ErrCorrupt: nothing is repaired or removed here.
//
// An index file is only a shortcut. It is written without sync, is not part of a
// snapshot, and is built again from the batches when it is missing, torn, or
// contradicts them.
//
// # Non-goals
//
// No compaction, no cache of batches beside the page cache, no uncommitted data,
// no retention policy: who drops what is the partition's business.
package segment
