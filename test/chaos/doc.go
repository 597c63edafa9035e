// Package chaos breaks real clusters under load in every way the guarantees
// speak of, and checks that they hold: kill -9 singly, together and in tight
// succession, stopped processes, wiped and restored disks, damaged files,
// transfers that lose either end, topics and groups that come and go.
//
// The load knows every record: record i of a partition must lie at offset i with
// the bytes it was sent with, whoever died (load_test.go). Followers read along
// all the time and must never see anything else.
//
// Each test prints its CHRONIK_SEED and runs a few rounds; CHRONIK_ROUNDS sets
// how many, CHRONIK_SEED repeats the choices of a run.
package chaos
