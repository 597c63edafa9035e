// Package partition is the Kafka replica: a topic partition as its Raft group
// replicates it (StateMachine), and as clients see it (Partition).
//
// Entries of the group, proposed by the leader (docs/formats/partition.md):
//
//	| kind 1 | leader's wall clock, ms 8 | payload |
//	  1: one record batch v2, base offset 0 and leader epoch -1: apply stamps both
//	  2: a Config, JSON
//	  3: a new log start offset, 8 bytes
//
// Apply turns committed entries into the segments that consumers read. It looks
// at the entry and at its own state, at nothing else (correctness rules 1 to 3):
// time is the largest leader time seen, settings come by Config entries, the leader
// epoch is the entry's term. So every replica, and every replay after a crash,
// appends the same bytes to the same files, takes the same batches for duplicates, and
// forgets the same producers.
//
// # Who owns what
//
// The apply goroutine owns the state. After each Apply it publishes an immutable
// view (log, log start, high watermark, epochs), which everybody else reads
// through an atomic pointer, and tells the watchers. Captures share the segment
// list, the epoch table and the copy-on-write tree of producers. Waiters are kept
// by the engine, keyed by (index, term); this package gives each one allocation.
//
// # Why a crash loses nothing, and a full disk neither
//
// A checkpoint is the blob (this package's) and the segment files (synced by
// segment before). After a crash both are as of one entry, and the entries behind it are
// applied again. An Apply that fails, because the disk is full, writes nothing
// that is visible and takes back every decision, so it can be tried again with the
// same entries. Bytes in an entry that are no batch are damage: Apply fails and
// the replica is quarantined, rather than deciding by itself to leave a batch out.
//
// # What clients may rely on
//
// The high watermark is the offset behind the last applied entry, which is
// committed, so it is on the disks of a majority. Only a leader that has applied
// its own term's first entry serves (rule 25). acks=0 and 1 are answered at apply,
// acks=all when min.insync.replicas voters hold the batch (rule 27). Retention and
// DeleteRecords move the log start by entries, alike on all replicas.
//
// # Non-goals
//
// No validation of records (package record does it before), no protocol, no
// choice of leaders, no transactions, no compaction.
package partition
