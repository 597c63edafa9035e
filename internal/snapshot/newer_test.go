package snapshot

import (
	"errors"
	"testing"

	"chronik/internal/format"
)

// TestNewerIsSaid: of a newer version, checkpoint, manifest, request and offer say so.
func TestNewerIsSaid(t *testing.T) {
	offer := Offer{}.Append(nil)
	offer[0]++
	var r request
	req := r.encode()
	req[0]++
	for name, decode := range map[string]func() error{
		"checkpoint": func() error {
			_, err := headerLength(append([]byte(headMagic), ckptVersion+1, 0, 0, 0, 0, 0, 0, 0))
			return err
		},
		"manifest": func() error {
			_, err := DecodeManifest(append([]byte(manMagic), manVersion+1, 0, 0, 0, 0, 0, 0, 0))
			return err
		},
		"request": func() error { _, err := decodeRequest(req); return err },
		"offer":   func() error { _, err := DecodeOffer(offer); return err },
	} {
		if err := decode(); !errors.Is(err, format.ErrNewer) || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
