// Command sim runs whole clusters on a deterministic machine: three unmodified brokers,
// their network, disks, clocks, clients and faults in one WebAssembly instance
// (test/sim/guest) whose time and randomness come from a seed (test/sim/machine).
//
//	go run ./test/sim -n 1000                       # seeds 1 to 1000
//	go run ./test/sim -n 5000 -tally test/sim/testdata/tally.tsv -resume
//	go run ./test/sim -seed 17 -steps 340 -skip 0,2,5 -v
//
// What follows -- goes to the guest as it is. The first violation ends a sweep (unless
// -keep-going), is made smaller (fewer steps, faults and nodes, each tried by running
// it) and printed as one command that shows it again. Exit code 1 says that there was
// a violation, 2 that the simulation itself failed.
//
// Every -check'th seed is run twice: a run that differs from its repetition is a
// violation of the check "determinism".
//
// The tally is a file of lines that are only ever added: what was run, on which commit,
// of which guest (the first bytes of its module's sha256: commits that do not change it
// ran the same program), and what came of it. Seeds count in order, so a line from 1 to
// 500 means that each of them came to its end.
package main
