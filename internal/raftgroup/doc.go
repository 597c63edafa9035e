// Package raftgroup drives every Raft group of a node: it is the only importer
// of go.etcd.io/raft. A Host holds Replicas; a Replica keeps a StateMachine in
// step with those of other nodes.
//
//	Propose ─▶ inbox ─▶ raft worker ─▶ raftlog.Append ─▶ Done ─▶ inbox
//	                    │   ▲                                     (acknowledge)
//	    peers ◀─ outbox ┘   └─ inbox ◀─ frames ◀─ peers
//	                    │
//	                    └─▶ apply queue ─▶ apply worker ─▶ StateMachine.Apply
//	                                       │                 └─▶ Waiter
//	                                       └─▶ capture ─▶ background: checkpoint ─▶ trim
//
// Frames between nodes are drawn in frame.go.
//
// # Who owns what
//
// Raft workers and apply workers are sharded by replica id; the first of each is
// for replicas with Priority alone. A replica's raftSide is touched by its raft
// worker only, its applySide by its apply worker only. Everything else reaches
// them as a message: the inbox for the one, the apply queue for the other, both
// in order. There is no goroutine, channel or timer a group: one ticker and one
// timer heap serve the host. A snapshot being received has a goroutine while it
// moves.
//
// A pass of a raft worker steps what waits, proposals first, then hands on what
// raft has ready; messages of all groups in a pass share frames by (node, class).
// What nobody waits for makes no pass, frame or sync of its own: patience.go.
//
// # Proposals
//
// The worker gives each proposal its index when raft takes it; the waiter is
// keyed by (index, term) and told at apply (correctness rule 4). A leader takes
// none before it has applied its own term's empty entry (rule 25).
//
// # Rest
//
// An idle group's replicas are not ticked and send nothing; quiesce.go says when they go to
// rest and what wakes them, contact.go how nodes know of each other meanwhile.
//
// # Snapshots
//
// raft's MsgSnap never travels. The leader pins its checkpoint and sends an
// offer; the follower answers that it needs none (rule 15), or fetches it into
// the next generation's directory, and only when that is complete and durable
// steps a MsgSnap from the current leader into its own raft. See offer.go for
// the sender, install.go for the receiver, sources.go for who gives the bytes: the
// object store and caught-up followers before the leader. The leader's watchdog ends
// what shows no life.
//
// # Why a crash is harmless
//
//   - One MsgStorageAppend is one frame of the raftlog with the whole HardState
//     (rule 5); what raft wants sent after it is sent from its Done.
//   - A checkpoint's files are synced before it is written, it is durable before
//     the log is trimmed (rule 10), and what it does not name is unlinked after
//     that (rule 12). In between, a start applies the same entries again.
//   - An install is one record in the raftlog: before it the old generation's
//     directory counts, after it the new one; the other is removed at start.
//   - A replica that remembers less than its leader knows of it stops for good
//     and asks to be replaced, instead of voting again (lostLog in clock.go).
//
// # Failures
//
// A panic in raft, a log that contradicts the group's or cannot be read, or an unreadable
// checkpoint at start quarantines that replica: it takes no part any more. A panic in a state machine,
// an unreadable file or a failed sync of a group's own files halts it: it has no state any more, and
// its log goes on (halt in damage.go). A file that others cannot be given has the replica stand back, a
// checkpoint is written anew (spoilt in damage.go). A write on a full disk makes apply wait
// (rule 31); a hanging one makes the node take no more entries from leaders than it has memory for
// (Options.MaxUnstoredBytes). A failure of the raftlog ends the node: Events.Fatal. A broken
// invariant panics.
//
// # Not here
//
// When a replica may start (rule 18), who is to be replaced and by whom (rules
// 21, 23), and what entries mean.
package raftgroup
