package identity

import (
	"reflect"
	"strings"
	"testing"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
)

func TestHelloRoundTrip(t *testing.T) {
	st := ident.StoreID{7}
	for _, h := range []Hello{
		{Node: 1, Store: st, State: Blank, PeersHash: "x", Boot: 3, Run: 1 << 63, LSN: 1<<63 + 1, RaftAddr: "h:1"},
		{Node: 1, Store: st, State: Prepared, Genesis: genesisOf(4, st, ident.StoreID{8})},
		{Node: 1, Store: st, State: Member, Cluster: NewClusterID(), JoinOnly: true, Seen: []Sighting{{Store: st, Boot: 1, Run: 2, LSN: 3}}},
	} {
		b, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeHello(b)
		h.Version = helloVersion
		if err != nil || !reflect.DeepEqual(got, h) {
			t.Errorf("%+v comes back as %+v, %v", h, got, err)
		}
	}
}

func TestDecodeHelloRefuses(t *testing.T) {
	st := ident.StoreID{7}
	for want, h := range map[string]Hello{
		"node 0":            {Store: st, State: Blank},
		"out of range":      {Node: 1, State: Blank},
		`state "x"`:         {Node: 1, Store: st, State: "x"},
		`state "prepared"`:  {Node: 1, Store: st, State: Prepared},
		`state "member"`:    {Node: 1, Store: st, State: Member},
		`state "blank"`:     {Node: 1, Store: st, State: Blank, Genesis: genesisOf(1, st)},
		"does not name":     {Node: 1, Store: st, State: Prepared, Genesis: genesisOf(1, ident.StoreID{8})},
		"4097 sightings":    {Node: 1, Store: st, State: Blank, Seen: make([]Sighting, maxSightings+1)},
		"hello of version ": {Node: 1, Store: st, State: Blank},
	} {
		b, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(want, "hello of version") {
			b = []byte(strings.Replace(string(b), `"v":1`, `"v":9`, 1))
		}
		if _, err := DecodeHello(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := DecodeHello([]byte("GET / HTTP/1.1")); err == nil {
		t.Error("nonsense is a hello")
	}
}

func TestPeersHash(t *testing.T) {
	a := PeersHash(map[ident.NodeID]string{1: "a:1", 2: "b:1", 13: "c:1"})
	if b := PeersHash(map[ident.NodeID]string{2: "10.0.0.2:1", 1: "localhost:1", 13: ""}); a != b {
		t.Error("the hash depends on addresses")
	}
	for _, other := range []map[ident.NodeID]string{nil, {1: "", 2: ""}, {1: "", 2: "", 3: ""}, {1: "", 2: "", 1 + 2: ""}, {12: "", 13: ""}} {
		if PeersHash(other) == a {
			t.Errorf("%v has the same hash", other)
		}
	}
}

func FuzzDecodeHello(f *testing.F) {
	b, err := Hello{Node: 1, Store: ident.StoreID{7}, State: Prepared, Genesis: genesisOf(4, ident.StoreID{7})}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		h, err := DecodeHello(b)
		if err != nil {
			return
		}
		again, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeHello(again); err != nil {
			t.Fatalf("%s does not decode again: %v", again, err)
		}
		// Whoever judges a situation must stand every hello.
		Decide(Situation{Node: h.Node + 1, Peers: []ident.NodeID{h.Node, h.Node + 1}, Me: Hello{State: Blank}, Live: map[ident.NodeID]Hello{h.Node: h}})
		Decide(Situation{Node: h.Node, Peers: []ident.NodeID{h.Node}, Me: h})
	})
}
