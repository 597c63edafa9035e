// Package admin is a node's HTTP side: health, readiness, metrics and the state
// of cluster, replicas, transfers and snapshots as JSON. It changes nothing but
// that it takes a snapshot, or evens out the replicas, when asked.
//
//	GET /healthz     the process is up
//	GET /readyz      the node serves: 200, else 503 with the reason
//	GET /metrics     Prometheus
//	GET /v1/cluster  what the metadata says and who leads
//	GET /v1/replicas this node's replicas
//	GET /v1/transfers snapshot transfers under way
//	GET /v1/digest?topic=T&partition=P[&from=&to=]  hash of this node's stored batches
//	GET /v1/snapshots[?archived=false]  this node's checkpoints, and what the object store has
//	POST /v1/snapshots[?topic=T&partition=P&upload=true]  take them here now and wait; upload those of led groups
//	POST /v1/cluster/rebalance[?dry_run=true]  begin the moves that may be begun now; tell what is under way and left
package admin
