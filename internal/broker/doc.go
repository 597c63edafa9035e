// Package broker assembles a node from the other packages and runs it.
//
// A Broker supervises one session after another. A session is a node with one
// store identity: it ends when the process is told to stop, when the node must
// stop (the shared log failed), or when peers prove that its store is a
// restored copy; then the store gets a new identity and a new session begins,
// with the old files as donors of bytes (correctness rules 9 and 18).
//
// Order of a session's start, each step needing the one before:
//
//	listen      Kafka, Raft and admin ports: a taken port fails before any file is touched
//	store       data directory, LOCK, store.id with a raised boot counter
//	raftlog     recovery of the node's shared log
//	transport   Hellos to and from the peers
//	first start genesis with all peers, or registration at the metadata leader
//	groups      opened from the log; each is released when nodes of a majority of its voters have said Hello
//	register    this node's addresses are in the metadata
//	archive     snapshots of led groups go to the object store, if there is one
//	kafka       clients are served
//
// It stops in reverse: clients, leaderships handed over, groups, transport, log.
//
// Who owns what: the session owns all of it. The reconciler is the only one
// that creates and removes replicas, and only because of an applied Image.
package broker
