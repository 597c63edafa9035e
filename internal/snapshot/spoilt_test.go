package snapshot

import (
	"errors"
	"path"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestSpoiltFilesAreTold: whoever meets one, a receiver, its question or the object store; and not what is no fault of the file's.
func TestSpoiltFilesAreTold(t *testing.T) {
	for _, c := range []struct {
		what string
		op   errorfs.OpKind
		file string
		err  error
		told bool
	}{
		{"no checkpoint can be opened", errorfs.OpOpen, CheckpointName, syscall.EIO, true},
		{"no checkpoint can be read", errorfs.OpFileReadAt, CheckpointName, syscall.EIO, true},
		{"gone", errorfs.OpOpen, "2.log", syscall.ENOENT, true},
		{"unreadable", errorfs.OpFileReadAt, "2.log", syscall.EIO, true},
		{"no descriptor is left", errorfs.OpOpen, "2.log", syscall.EMFILE, false},
		{"no descriptor is left for the checkpoint", errorfs.OpOpen, CheckpointName, syscall.EMFILE, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			g := newRig(t, threeFiles(), threeNames...)
			s := NewServer(ServerOptions{FS: errorfs.Wrap(g.srcFS, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind == c.op && strings.HasSuffix(op.Path, c.file) {
					return c.err
				}
				return nil
			}))})
			defer func() { noErr(t, s.Close()) }()
			asks := map[string]func(){"pin": func() {}}
			var told []Spoilt
			s.SetSpoilt(func(sp Spoilt) { told = append(told, sp) })
			pin, err := s.Pin(testGroup, testReplica, srcDir, sinkNode)
			if err == nil {
				asks = map[string]func(){
					"manifest": func() { _, _, err = s.Manifest(t.Context(), pin.ID) },
					"chunk":    func() { ask(t, s, MethodChunk, request{pin: pin.ID, length: 10, name: c.file}) },
					"prefix":   func() { askPrefix(t, s, prefixRequest{pin: pin.ID, name: c.file, lengths: []int{10}}) },
					"own":      func() { err = s.ReadPinned(t.Context(), pin.ID, c.file, make([]byte, 10), 0) },
				}
				told = nil
			}
			for what, ask := range asks {
				ask()
				if c.told != (len(told) == 1) {
					t.Fatalf("%s: told %v", what, told)
				}
				if c.told && (told[0].Replica != testReplica || told[0].Dir != srcDir || told[0].Name != c.file || !errors.Is(told[0].Err, c.err)) {
					t.Errorf("%s: told %+v", what, told[0])
				}
				if c.told && !strings.Contains(told[0].Err.Error(), path.Join(srcDir, c.file)) && c.op == errorfs.OpFileReadAt {
					t.Errorf("%s: %v does not name the file", what, told[0].Err)
				}
				told = nil
			}
			if err == nil {
				t.Error("nothing failed")
			}
		})
	}
}
