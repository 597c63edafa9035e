// Package wire owns the sockets Kafka clients talk to: it cuts the byte stream
// into requests, decodes them with kmsg, hands them to a Handler, and sends the
// responses back in the order of their requests.
//
// A frame, integers big-endian:
//
//	 request                                    response
//	┌────────┬─────┬─────────┬─────────────┐   ┌────────┬─────────────┐
//	│ size 4 │key 2│version 2│correlation 4│   │ size 4 │correlation 4│
//	├────────┴─────┴─────────┴──┬──────────┤   ├────────┴────┬────────┤
//	│ client id (2+n, nullable) │ [tags]   │   │ [tags]      │ body   │
//	├───────────────────────────┴──────────┤   └─────────────┴────────┘
//	│ body                                 │
//	└──────────────────────────────────────┘
//
// Size counts what follows it. Tags stand there in flexible versions, except in
// the response to ApiVersions, whose header a client must read before it knows
// any version.
//
// # Who owns what
//
// A connection has two goroutines. The reader takes a frame, reserves the next
// slot in the connection's queue, and calls Handler.Serve on its own goroutine.
// The handler answers when it likes, from wherever; the answer waits in its
// slot. The writer takes all answered slots at the head of the queue, encodes
// them into one buffer and writes once. Nothing else is started per request.
//
// A request body aliases its frame; the frame belongs to the handler from
// Serve on. The handler of Produce gives it back (Request.Release) once every batch
// was copied into its entry, and a later request is read into it; the others
// leave theirs to the collector.
//
// # What bounds memory
//
//   - A frame's buffer grows as its bytes arrive: a length alone buys 64 KiB,
//     or a buffer that another request has left.
//   - A body is walked by its layout (layout.go) before kmsg decodes it: what
//     decoding would allocate is known, and refused when absurd.
//   - Quota counts the bytes of all requests in flight on the node. Large and
//     Produce frames wait for room before the rest of them is read. JoinGroup and
//     SyncGroup, which may wait for a rebalance, give theirs back first (GiveBack). While some
//     wait, who has room and sends next to nothing for seconds is closed.
//   - Responses counts the bytes of records between being read and being written. A
//     fetch gets a share of what is left, and waits when nothing is; peers that take
//     no byte for seconds are closed then, to make room (room.go).
//   - Backlog lets in as many Produce requests as the node answers in half a second.
//     The others wait on their connections (backlog.go).
//   - The reader stops at MaxInflight requests, and while more than
//     MaxPendingBytes of responses, about (size.go), wait for a slow peer.
//
// # Hostile input
//
// Whatever breaks the protocol closes the connection with one log line that
// names the peer and the reason. It never stops the process.
//
// # Non-goals
//
// What requests mean, authorisation, throttling: kafka does. TLS: the listener
// given to Serve does.
package wire
