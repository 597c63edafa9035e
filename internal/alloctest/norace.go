//go:build !race

package alloctest

// Racing says that the race detector is on.
const Racing = false
