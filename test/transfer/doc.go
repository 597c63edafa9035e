// Package transfer measures the transfer of a snapshot between two processes over
// loopback, against a bare copy of the same bytes in the same run, and holds what it
// may cost: bytes sent twice after kills, bytes sent that were here, memory.
//
//	make transfer
//
// moves 2 GiB and demands the ratios; go test moves 96 MiB and demands those that
// do not depend on time.
package transfer
