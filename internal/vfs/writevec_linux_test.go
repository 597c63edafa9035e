package vfs

import (
	"bytes"
	"testing"
)

// The kernel may take a part of what it is given.
func TestSkip(t *testing.T) {
	for n := range 7 {
		var left []byte
		for _, b := range skip([][]byte{{1, 2}, {}, {3}, {4, 5, 6}}, n) {
			left = append(left, b...)
		}
		if want := []byte{1, 2, 3, 4, 5, 6}[n:]; !bytes.Equal(left, want) {
			t.Errorf("behind %d bytes: %v, want %v", n, left, want)
		}
	}
}
