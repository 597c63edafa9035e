//go:build race

package bytepool

// racing: sync.Pool drops some of what it is given under the race detector.
const racing = true
