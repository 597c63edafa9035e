// Package transport carries bytes between the nodes of a cluster: one-way
// frames, ordered for each peer and class, and calls with an answer.
//
// Each peer has three connections, so that a heartbeat never waits behind entries,
// nor entries behind a snapshot:
//
//	connection   carries                       A dials B for
//	control      gRPC stream of frames         frames A→B, and to learn that B is there
//	append       plain stream of frames        frames A→B
//	bulk         gRPC calls                    calls of A, answered by B
//
// gRPC has a codec that hands bytes through. A plain stream is TCP without it, for
// what is most: entries (ADR 27). It begins with plainPreface, where gRPC's begin
// with HTTP/2's. To a peer that does not know it the append connection is gRPC's, too.
//
// The first message of each stream, in both directions, is a preamble:
//
//	offset  size  what
//	0       4     "CHRN"
//	4       1     protocol version, 1
//	5       1     class: 0 control, 1 append, 2 bulk
//	6       4     node id of the sender, big-endian
//	10      4     node id the dialer means to reach; in the answer, the dialer's
//	14      …     Handler.Hello, opaque
//
// After it the dialer alone sends. A message is a sequence of frames, packed
// from whatever was queued while the message before was on its way:
//
//	4     length n, big-endian, at most MaxFrame
//	n     the frame
//
// On a plain stream there are no messages, only frames one after the other; the
// preambles stand behind a length of 4 bytes, and the answer's behind a byte more: 0,
// or 1 and why the dialer is refused. The length 2³²-1 is a sign of life and no
// frame. It answers a byte that the other end sends each second.
//
// A call's request is a byte of length, the method's name, the request; its
// response is a byte (0 answered, 1 error text) and the rest.
//
// # Who owns what
//
// Transport owns the peers and the listener. A peer owns the judgement whether
// it is up, an outbox for each class of frames, and three links. A link owns
// one outgoing connection after another: gRPC never reconnects by itself, so
// when to dial is decided in one place (link.run). Frames received belong to
// Handler.Frame; frames sent must not be modified after Send.
//
// # What is promised
//
// Frames of one class to one peer arrive in order, each at most once. They are
// lost when a connection ends, when the outbox is full, and when the peer is
// not there: Raft repeats what matters. PeerUp and PeerDown alternate. A killed
// process is noticed when the kernel resets its connections, a silent one
// within keepaliveTime + keepaliveTimeout. A plain stream that falls silent alone is
// ended after as long and made anew. When one Control stream ends, both
// directions are taken down and made anew, so that no half-dead connection is
// left to wait for a retransmission after a cut.
//
// A peer that comes back is dialed at once: its stream to us cuts the pause of
// our link to it short.
//
// # Non-goals
//
// No retries, no acknowledgements, no routing, no discovery. No judgement of
// identity: Hello is opaque, Handler.AcceptHello decides. No transport
// security yet; its place is creds.go.
//
// Network is the same in memory, with loss, delay, reordering and cuts, for
// tests of the packages above.
package transport
