// Package kafka answers Kafka requests: one file an API key, kmsg in and out.
//
// A handler is thin. It checks what a client sent, finds the partition, the
// coordinator shard or the metadata command that the request is about, and maps
// what comes back to Kafka's own fields and error codes. It owns no state beyond
// a block of producer ids and the fetch sessions; everything durable lives behind Cluster.
//
//	Produce   check the batch, hand it to the partition's leader, return at once;
//	          the last partition that answers sends the response
//	Fetch     read; if there is too little, wait on the partitions' high
//	          watermarks, on the deadline and on the connection, whichever is first
//	admin     any broker takes the request and submits a metadata command; the
//	          answer is sent once this node's Image has it
//	groups    only the node that leads the coordinator's shard answers
//
// Who owns what: package wire reads requests and keeps their order; it calls
// Serve on the connection's reading goroutine. A handler that waits there holds
// back only its own connection, which is what a client expects of Kafka. Bytes of
// a request belong to the handler from then on; a batch is passed on as a slice of
// them.
//
// Crash argument: nothing here is durable. Producer ids come in blocks that the
// metadata group never gives out twice; the rest of a block is lost with the
// process, which is harmless. Fetch sessions are lost with it too: a client whose
// session is unknown begins another.
//
// Which versions are answered stands in one table, api.go. A version is in it
// only if the package's tests answer and encode it.
//
// Non-goals: transactions, quotas and access control are not served yet. Requests
// for them get a definite error, so that a client fails at once instead of
// retrying for ever. Reads come from the leader only.
package kafka
