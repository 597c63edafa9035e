package group

import (
	"errors"
	"testing"

	"chronik/internal/format"
)

// TestNewerEntryStopsTheReplica: an entry of a newer release is not skipped.
func TestNewerEntryStopsTheReplica(t *testing.T) {
	b := encodeDeleteGroup(1, "g", false)
	b[0] = entryVersion + 1
	if _, _, _, err := openEntry(b); !errors.Is(err, format.ErrNewer) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if _, err := readState([]byte("CHRKGRP2 and more")); !errors.Is(err, format.ErrNewer) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
}
