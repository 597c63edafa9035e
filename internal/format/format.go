// Package format says what a reader says of bytes in a version that it does not know.
// A durable file of a newer release is refused, never guessed at and never taken for
// damage that deleting heals.
package format

import (
	"errors"
	"fmt"
)

// ErrNewer tells of bytes in a version that this release does not know yet.
var ErrNewer = errors.New("a newer release wrote it; run that release, or a later one, on this node")

// Check returns nil if got is the known version, else an error that names both, and is
// an ErrNewer if got is higher.
func Check(got, known int) error {
	switch {
	case got == known:
		return nil
	case got > known:
		return fmt.Errorf("version %d, this release knows %d: %w", got, known, ErrNewer)
	default:
		return fmt.Errorf("version %d, this release knows %d", got, known)
	}
}
