// Package machine runs a Go program deterministically: compiled for wasip1 to
// WebAssembly and executed by wazero in this process, with a clock, a wall clock and a
// source of randomness that are functions of the program's own steps and a seed.
//
// Why equal runs are equal to the byte: such a program has one thread, and the Go
// runtime does not preempt goroutines on it, so which goroutine runs next depends on
// what ran before. What differs from run to run elsewhere (map order, select, the
// scheduler's and math/rand's choices, crypto/rand, hash seeds) comes from random_get,
// which is a stream made of the seed. Time comes from clock_time_get and poll_oneoff:
// a look at the clock moves it by 50 ns, a sleep by the sleep, and nothing else does.
// Memory begins as zeros, and addresses, the garbage collector's times and sync.Pool's
// contents follow from the rest. There is no network (Go's net package connects
// sockets within the process on wasip1), no file and no environment.
//
// Time cannot stand still: a guest with nothing to do sleeps until its next timer, and
// one that asks moves the clock by asking. A run is bounded in virtual time. One that
// computes for ever is ended by the bound of what it computes, the one thing here that
// is not deterministic: at its next call of the host, or, if it makes none, with its
// process. So a Pool runs guests in processes of their own; see there. Compiled code
// that looks in every loop whether it is to end would do without, at two to three times
// the cost (Options.Stoppable).
//
// The guest's side: arguments -seed N -steps S [-skip 1,5,9], then flags of its own. It
// may print "PLAN " and a JSON list of the names of its planned faults, early. Its last
// line is "RESULT " and a Result in JSON; its exit code 0, or 1 with a violation. The
// function sim.jump(ns i64) moves its wall clock. Everything else it prints is a log.
//
// Not seen here: data races and the memory model (one thread), 64-bit int (it has 32
// bits), real disks and sockets, and how long computing takes (it takes no time).
package machine
