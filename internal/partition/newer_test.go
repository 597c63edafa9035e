package partition

import (
	"errors"
	"testing"

	"chronik/internal/format"
	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// TestNewerStopsTheReplica: entries and checkpoints of a newer release are not guessed at.
func TestNewerStopsTheReplica(t *testing.T) {
	if _, err := decodeState([]byte{blobVersion + 1, 0, 0}); !errors.Is(err, format.ErrNewer) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("blob: %v", err)
	}
	sm := open(t, vfs.NewCrashableMem(), "p", nil, nil)
	_, err := sm.Apply([]raftgroup.Entry{{Index: 1, Term: 1, Data: encodeEntry(KindLogStart+9, 1, nil)}})
	if !errors.Is(err, format.ErrNewer) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("entry: %v", err)
	}
}
