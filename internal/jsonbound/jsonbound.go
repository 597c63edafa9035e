// Package jsonbound looks at a JSON document before it is decoded into structs. There
// an element of an array that takes three bytes, "{},", takes as many as its struct
// has, several times over while the slice grows: a megabyte of a peer's or a disk's
// bytes became a hundred.
package jsonbound

import (
	"errors"
	"fmt"
)

// ErrCrowded is wrapped by the errors of Check.
var ErrCrowded = errors.New("more objects than a document of its size can hold")

const (
	// free is how many objects any document may have.
	free = 1024
	// bytesEach is how many bytes there must be for each further one. What Chronik
	// writes has more: a member's three fields alone take forty.
	bytesEach = 12
)

// Check refuses a document with many objects and nulls that say nothing, and one with
// many empty arrays. It does not say whether b is JSON.
func Check(b []byte) error {
	limit := free + len(b)/bytesEach
	objects, arrays, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted:
			switch c {
			case '\\':
				i++
			case '"':
				quoted = false
			}
		case c == '"':
			quoted = true
		case c == '{' || c == 'n': // of null; nothing else begins so outside of quotes
			objects++
		case c == '[':
			arrays++
		}
		if objects > limit || arrays > 3*limit {
			return fmt.Errorf("%w: %d bytes, at byte %d", ErrCrowded, len(b), i)
		}
	}
	return nil
}
