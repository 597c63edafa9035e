// Package metadata is the state machine of the metadata group, __meta: nodes and
// the stores they live on, topics, partitions and their replicas, configs,
// producer ids. Every node holds a replica of it and answers from its own Image.
//
//	proposer ──Command──▶ raftgroup ──entry──▶ StateMachine.Apply ──▶ Image N+1
//	                                                                    │
//	    clients' questions, reconciliation, checks  ◀── Store.Image ◀───┘
//
// # What is here
//
//   - Image, an immutable value over copy-on-write trees; Store, the node's current one
//   - Command and Reply with their encodings, StateMachine which applies them,
//     and the Image's encoding (docs/formats/metadata.md)
//   - pure functions of an Image that tell others what to do: Plan (a group's
//     leader: membership), CreateLocal (a node: its replicas), PlanMetaSwap (the
//     metadata group's leader: dead voters), PlanMoves (an operator: even numbers of replicas)
//   - Leaders, the soft-state table of who leads what; it is gossiped, not replicated
//
// # Who owns what
//
// The apply goroutine owns the StateMachine. It makes a private clone of the
// Image's trees, changes that, and publishes it once an Apply; a published Image is
// never written again, so readers take no lock and a capture is a pointer.
//
// # Identity
//
// A replica id is bound to one store and never reused; NextReplica and
// NextGroup only rise. When a node registers with another store, each replica on
// the old one is marked lost and a fresh id joins in its place:
//
//	voter A on the old store   {A, lost}  {N, joining, replaces A}
//	leader of the group        add N as learner; N catches up; one joint change: +N -A
//	ReportMembership           {N}
//
// Until the report the lost replica still counts. If N is lost in turn it moves
// to Removing, a fresh N' joins for A, and the group's leader removes N: as a learner, or, if
// N had already become a voter unreported, in the joint change that adds N'.
//
// # Crash argument
//
// Nothing here is durable by itself. The Image is the last checkpoint's plus the
// log's entries, applied again; Apply reads only the entry and the Image
// (correctness rule 1), so every replica and every replay gives the same Image,
// byte for byte. Times, uuids and decisions that need a clock come in the command.
//
// # Not here
//
// Proposing and forwarding commands (broker), doing what the plans say (broker),
// access control.
package metadata
