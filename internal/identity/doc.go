// Package identity keeps a data directory's identity (store.id), what nodes tell
// each other of it (Hello) and remember of it (Witness), and decides the first
// start of a cluster (Decide). It does no network I/O: the caller carries
// Hellos and Proposals.
//
// # store.id
//
//	line 1   "chronik-store 1 CHECKSUM": format version, CRC32-C of line 2 in hexadecimal
//	line 2   JSON: node, store, boot, state, cluster, genesis, join_only, founded
//
// It is replaced as a whole (temporary file, sync, rename, directory sync).
//
// # Why an old copy cannot pass for the store
//
// Each open raises the boot counter durably before anything is said. Peers
// remember, durably, the highest boot of each store with the random run id it
// had, and the highest LSN it said was durable. A copy that was taken earlier
// comes with a lower LSN, with a lower boot, or with a boot that was seen under another run
// id. A power loss does not look like that: what was told as durable is there.
// What stays invisible: a copy whose only witnesses lost their memory too.
//
// # Why two clusters cannot be born
//
// The node with the lowest id proposes a Genesis that names the store of every
// listed peer, and commits it only after each of those stores holds it durably.
// A store holds at most one Genesis at a time. It takes another only from the same
// proposer and of a later round, and lets go only when its own cannot be committed
// any more: the proposer's store went on, or is gone while every other founder says
// that it is no member. A node that sees a member joins it and never proposes.
// TestFounding holds this against crashes, wipes, cuts and late or repeated calls.
//
// It rests on three duties of the caller: a node says Hello anew when its store
// was committed, unprepared, joined or renewed, or has every founder commit too;
// what a store is asked to Prepare comes from the proposer's store, connected now, and
// to Commit from a founder's that is a member; and an acknowledgement counts only for
// the very Genesis and process that asked.
//
// Non-goals: who may join (the metadata group decides), authentication.
package identity
