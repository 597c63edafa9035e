//go:build race

package alloctest

// racing: the race detector makes sync.Pool drop what it is given, now and then, so that what is allocated says nothing.
const racing = true
