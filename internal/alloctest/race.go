//go:build race

package alloctest

// Racing says that the race detector is on. It makes sync.Pool drop what it is given, now and then, so that
// what is allocated says nothing, and everything slow.
const Racing = true
