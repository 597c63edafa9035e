package broker

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/vfs"
)

// TestHelloIsKeptBeforeItCounts: a peer is heard only once its boot is durable here. Else this node, killed
// the moment after, would welcome an older copy of the peer's disk, and elect or be elected by it.
func TestHelloIsKeptBeforeItCounts(t *testing.T) {
	fs := vfs.NewCrashableMem()
	b := standalone(t, testConfig(t, nil), fs)
	var s *session
	eventually(t, 10*time.Second, "a session", func() error {
		if s = b.session(); s == nil || !s.serving.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	h := identity.Hello{Cluster: s.store.ClusterID(), Node: 9, Store: ident.NewStoreID(), State: identity.Member, Boot: 4, Run: 8, LSN: 100, RaftAddr: "127.0.0.1:1"}
	enc, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (peerHandler{s}).AcceptHello(enc); err != nil {
		t.Fatal(err)
	}
	crashed := &Broker{opt: Options{Config: testConfig(t, nil)}, log: slog.New(slog.DiscardHandler), fs: fs.CrashClone(vfs.CrashCloneCfg{})}
	ls, err := crashed.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer ls.close()
	again, err := crashed.open(ls)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		again.stop(t.Context())
		if err := again.store.Close(); err != nil {
			t.Error(err)
		}
	}()
	h.Boot, h.Run = 3, 9
	if behind, err := again.memory.greeted(h); behind == "" || err != nil {
		t.Errorf("after a power loss an older boot is welcome: %q, %v", behind, err)
	}
	// A run that is known is not written again: a peer's streams come and go.
	before := s.rlog.DurableLSN()
	if _, err := (peerHandler{s}).AcceptHello(enc); err != nil {
		t.Fatal(err)
	}
	if after := s.rlog.DurableLSN(); after != before {
		t.Errorf("a known Hello was written: LSN %d, before %d", after, before)
	}
}
