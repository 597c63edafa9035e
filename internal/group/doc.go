// Package group is the consumer group coordinator, sharded: each
// __consumer_offsets-N is a Raft group with a StateMachine, and on the node that leads
// it a Coordinator serves the groups whose id falls to it (ShardOf).
//
//	JoinGroup, Heartbeat … ──▶ Coordinator ──entry──▶ raftgroup ──▶ StateMachine
//	                            sessions,               │            offsets, generations,
//	                            rebalances  ◀─applied───┘            assignments
//
// The coordinator speaks the classic protocol: it collects what members say,
// lets the one it made leader assign, and hands the assignments out. Subscription and
// assignment bytes pass through untouched, so eager and cooperative assignors work alike.
//
// # Who owns what
//
// The apply goroutine changes the StateMachine under its lock. It is two
// copy-on-write trees, so a capture and a view are O(1) with a million offsets.
// The Coordinator's mutex guards everything live. Under it there is CPU work only: replies
// and proposals are put off until it is released. Its deadlines, one a member and
// one or two a group, lie in one heap behind one time.Timer.
//
// # What survives
//
// Replicated before anyone is told: committed offsets; a generation with its
// members and assignments, at the end of each rebalance. A new leader asks the group once
// that nothing newer was committed (ReadIndex, correctness rule 26), loads, and gives every
// member a full session timeout: they go on with their generation and notice only
// NOT_COORDINATOR and another node. A rebalance that was under way begins anew.
// OffsetFetch asks each time. JoinGroup does not: what a deposed leader answers takes
// no effect, for SyncGroup is answered by an entry that the group has committed.
//
// # Crash argument
//
// Nothing here is durable by itself: the state is the last checkpoint's and the
// log's entries applied again. Apply reads only entry and state; the leader's time is in
// the entry. Two proposals of one leader may overtake each other on their way to the
// log: a Group carries a version, and apply ignores the older one; a deletion by age
// names the commit it has seen and spares a newer one. A deposed leader's entries lie
// in the log before those of the next, which serves only after it has applied them.
//
// # Not here
//
// Routing, authorization and whether a topic exists (kafka), the consumer protocol
// of KIP-848, transactions.
package group
