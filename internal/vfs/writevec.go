package vfs

import "bytes"

// writeJoined is one write, whatever the number of pieces.
func writeJoined(f File, bufs [][]byte, off int64) error {
	var b []byte
	if len(bufs) == 1 {
		b = bufs[0]
	} else {
		b = bytes.Join(bufs, nil)
	}
	_, err := f.WriteAt(b, off)
	return err
}
