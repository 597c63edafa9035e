// Package limits loads real clusters beyond what they can do: ten times the rate
// they sustain, thousands of connections that are silent, hundreds that do not
// read. What must hold: memory stays bounded, nobody else starves, no leadership
// moves, and all is as before soon after.
//
// The short forms run in 'make long', the whole ones with 'make limits'.
package limits
