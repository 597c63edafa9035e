//go:build !race

package alloctest

const racing = false
