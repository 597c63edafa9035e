// Package recovery makes a new cluster of what is left of an old one, offline: of a
// stopped node's data directory (Recover) or of an object store (Restore). The new
// cluster is one node's data directory; other nodes join it with empty ones, and are
// given their replicas as any node whose disk was replaced.
//
// # Nobody mixes with the old cluster
//
// The result has another cluster id, another store id and other replica ids. A node
// of the old cluster is refused at its Hello, and a frame of it would name
// replicas that nobody has. Topic ids, group ids, offsets, configs, producers' state
// and committed offsets stay, so that clients go on where they were.
//
// # Order of a recovery, in one data directory
//
//	hold       the LOCK: no node runs there, nor another recovery
//	clear      what an earlier attempt built and did not announce is removed
//	build      replicas.recovered: each replica's new state, synced; segments are
//	           hard links of the old ones, but for the one that will be written to
//	seed       raftlog.recovered: a new raftlog with the creation and install of each replica
//	announce   store.id.recovered: written last, synced with its name
//	aside      raftlog, replicas → *.before-recovery-<store>; one directory sync
//	swap       *.recovered → raftlog, replicas; one directory sync
//	adopt      store.id is replaced by what store.id.recovered says, synced; then that is removed
//
// # Why a crash is harmless
//
//   - Before announce is durable, nothing the old store needs was touched: the old files
//     are only read (and linked). A node may start on it as if nothing had been; the next
//     attempt clears what this one built.
//   - From announce on, a node refuses to start there (identity.ErrRecovering), and the
//     same command goes on from whatever names it finds. A part's old files are what has the
//     name aside, or, while nothing has that, what has the part's own name and a successor built
//     beside it. Renames that rely on one another have a sync between them.
//   - When store.id.recovered is gone, the new store is complete. The old one is there under
//     other names, whole: a segment with two names is written to under neither, since the last
//     one of a replica is copied, and a full one is never written again.
//
// # Not here
//
// The states themselves (package raftgroup loads and saves them, metadata rewrites the
// Image). Whether the other disks are really lost: that is the operator's word.
package recovery
