package broker

import (
	"errors"
	"path"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/metadata"
	"chronik/internal/vfs"
)

func idText(id ident.ReplicaID) string { return strconv.FormatUint(uint64(id), 10) }

// TestSweepDonors removes what the Image has retired, and nothing else.
func TestSweepDonors(t *testing.T) {
	fs := vfs.NewCrashableMem()
	cfg := testConfig(t, nil)
	b := standalone(t, cfg, fs)
	cl := client(t, cfg, kgo.DefaultProduceTopic("t"))
	if err := cl.ProduceSync(t.Context(), kgo.StringRecord("x")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "gone", Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	s := b.session()
	retired := s.meta.Image().TopicPartition("gone", 0).Replicas[0].ID
	if _, err := s.submit(t.Context(), &metadata.DeleteTopics{Topics: []metadata.TopicRef{{Name: "gone"}}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the deleted topic's replica is gone", func() error {
		if s.host.ByID(retired) != nil {
			return errors.New("it is there")
		}
		return nil
	})
	img := s.meta.Image()
	p := img.TopicPartition("t", 0)
	live := p.Replicas[0].ID
	dirs := map[string]bool{ // name → must stay
		p.Key() + "." + idText(live):                            true,
		p.Key() + "." + idText(img.NextReplica):                 true, // younger than the Image
		p.Key() + "." + idText(retired):                         false,
		"00112233445566778899aabbccddeeff-0." + idText(retired): false, // a deleted topic's
		"00112233445566778899aabbccddeeff-0.9999":               true,
		"meta.1":         true,
		"not understood": true,
		"meta.x":         true,
	}
	for name := range dirs {
		if err := fs.MkdirAll(path.Join(s.replicasDir(), name, "g1"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.sweepDonors(img); err != nil {
		t.Fatal(err)
	}
	left := map[string]bool{}
	names, err := fs.List(s.replicasDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		left[n] = true
	}
	for name, stay := range dirs {
		if left[name] != stay {
			t.Errorf("%s: stayed %v, want %v", name, left[name], stay)
		}
	}
	eventually(t, 5*time.Second, "still serving", func() error { return cl.ProduceSync(t.Context(), kgo.StringRecord("y")).FirstErr() })
}

// TestForgetStores drops what was seen of replaced stores only, and only when there is much.
func TestForgetStores(t *testing.T) {
	cfg := testConfig(t, nil)
	b := standalone(t, cfg, vfs.NewCrashableMem())
	var s *session
	eventually(t, 5*time.Second, "serving", func() error {
		if s = b.session(); s == nil || !s.serving.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	w := s.memory.witness
	greet := func(id ident.StoreID) {
		w.Greeted(identity.Hello{Node: 7, Store: id, Boot: 1, Run: 1})
	}
	greet(s.store.ID()) // a store that the metadata names
	for range manySightings - 1 {
		greet(ident.NewStoreID())
	}
	s.forgetStores(s.meta.Image())
	if n := len(w.Sightings()); n != manySightings {
		t.Fatalf("%d of %d sightings left", n, manySightings)
	}
	greet(ident.NewStoreID())
	s.forgetStores(s.meta.Image())
	if left := w.Sightings(); len(left) != 1 || left[0].Store != s.store.ID() {
		t.Fatalf("%d sightings left", len(left))
	}
}
