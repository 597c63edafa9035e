//go:build !wasip1

package main

// jumpClock moves the wall clock; only the simulated machine has one that can be moved.
func jumpClock(int64) {}
