//go:build !race

package bytepool

const racing = false
