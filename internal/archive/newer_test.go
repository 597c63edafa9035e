package archive

import (
	"errors"
	"testing"

	"chronik/internal/format"
)

// TestNewerIsSaid: of a newer version, a manifest says so.
func TestNewerIsSaid(t *testing.T) {
	_, err := DecodeManifest(append([]byte(manMagic), manVersion+1, 0, 0, 0, 0, 0, 0, 0))
	if !errors.Is(err, format.ErrNewer) || !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}
