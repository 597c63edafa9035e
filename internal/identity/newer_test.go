package identity

import (
	"encoding/json"
	"errors"
	"testing"

	"chronik/internal/format"
)

// TestNewerIsSaid: store.id and Hellos of a newer release are refused as such.
func TestNewerIsSaid(t *testing.T) {
	if _, err := decode([]byte("chronik-store 2 00000000\n{}\n")); !errors.Is(err, format.ErrNewer) {
		t.Errorf("store.id: %v", err)
	}
	b, err := json.Marshal(map[string]int{"v": helloVersion + 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeHello(b); !errors.Is(err, format.ErrNewer) {
		t.Errorf("hello: %v", err)
	}
}
