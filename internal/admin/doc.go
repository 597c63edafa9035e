// Package admin is a node's HTTP side: health, readiness, metrics and the state
// of cluster, replicas and transfers as JSON. It reads; it changes nothing.
//
//	GET /healthz     the process is up
//	GET /readyz      the node serves: 200, else 503 with the reason
//	GET /metrics     Prometheus
//	GET /v1/cluster  what the metadata says and who leads
//	GET /v1/replicas this node's replicas
//	GET /v1/transfers snapshot transfers under way
//	GET /v1/digest?topic=T&partition=P[&from=&to=]  hash of this node's stored batches
//	GET|POST /v1/snapshots  list this node's checkpoints | take one now
package admin
