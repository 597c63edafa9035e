package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/vfs"
)

// TestSurvivorRestartsBesideStrangers: a node that needs nobody serves again at its start, though nodes of another
// cluster stand at its peers' addresses and refuse it before it leads.
func TestSurvivorRestartsBesideStrangers(t *testing.T) {
	addrs := []string{"", freeAddr(t), freeAddr(t), freeAddr(t)}
	mem := vfs.NewCrashableMem()
	b := standalone(t, testConfig(t, map[string]string{"raft.listen": addrs[1]}), mem)
	serves := func(b *Broker) func() error {
		return func() error {
			if s := b.session(); s == nil || !s.serving.Load() {
				return errors.New("not yet")
			}
			return nil
		}
	}
	eventually(t, 10*time.Second, "it serves", serves(b))
	b.Stop()
	if err := b.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range []ident.NodeID{2, 3} {
		h := identity.Hello{Node: n, Store: ident.NewStoreID(), State: identity.Member, Cluster: identity.NewClusterID(), Boot: 1, Run: 1, RaftAddr: addrs[n]}
		fakeThat(t, fmt.Sprintf("%s: of %d", foreign, n), h, addrs[1], nil)
	}
	cfg := testConfig(t, map[string]string{"raft.listen": addrs[1], "cluster.peers": fmt.Sprintf("1@%s,2@%s,3@%s", addrs[1], addrs[2], addrs[3])})
	for range 3 {
		again, err := Start(t.Context(), Options{Config: cfg, Log: slog.New(slog.DiscardHandler), Version: "test", FS: mem})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "it serves again", serves(again))
		time.Sleep(500 * time.Millisecond)
		again.Stop()
		if err := again.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
