package wire

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/alloctest"
)

// populate fills v with random content; depth bounds nothing but its size.
func populate(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[kmsg.Tags]() {
			return
		}
		if d, ok := v.Addr().Interface().(interface{ Default() }); ok {
			d.Default()
		}
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; name != "Version" || v.Field(i).Kind() != reflect.Int16 {
				populate(r, v.Field(i))
			}
		}
	case reflect.Pointer:
		if r.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			populate(r, v.Elem())
		}
	case reflect.Slice:
		if n := r.IntN(4); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				populate(r, v.Index(i))
			}
		}
	case reflect.String:
		v.SetString(strings.Repeat("é", r.IntN(3)*r.IntN(60)))
	case reflect.Array:
		for i := range v.Len() {
			populate(r, v.Index(i))
		}
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	default:
		switch {
		case v.CanInt():
			v.SetInt(int64(r.Uint64()))
		case v.CanUint():
			v.SetUint(r.Uint64())
		case v.CanFloat():
			v.SetFloat(r.Float64())
		default:
			panic(v.Type())
		}
	}
}

func everyRequest(fn func(name string, req kmsg.Request)) {
	for key := int16(0); key <= kmsg.MaxKey; key++ {
		req := kmsg.RequestForKey(key)
		if req == nil {
			continue
		}
		for v := int16(0); v <= req.MaxVersion(); v++ {
			req := kmsg.RequestForKey(key)
			req.SetVersion(v)
			fn(fmt.Sprintf("%s v%d", kmsg.NameForKey(key), v), req)
		}
	}
}

// fields with a tag in some version: what the walk leaves out.
func dropTagged(req kmsg.Request) {
	if f, ok := req.(*kmsg.FetchRequest); ok {
		d := kmsg.NewFetchRequest()
		f.ClusterID, f.ReplicaState = d.ClusterID, d.ReplicaState
		p := kmsg.NewFetchRequestTopicPartition()
		for i := range f.Topics {
			for j := range f.Topics[i].Partitions {
				f.Topics[i].Partitions[j].ReplicaDirectoryID, f.Topics[i].Partitions[j].HighWatermark = p.ReplicaDirectoryID, p.HighWatermark
			}
		}
	}
}

// The layouts are learned, so every one of them is held against what kmsg
// writes: the walk must end exactly at the end, and refuse every prefix.
func TestLayoutsFollowKmsg(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	versions := 0
	everyRequest(func(name string, req kmsg.Request) {
		versions++
		for range 20 {
			v := req.GetVersion()
			populate(r, reflect.ValueOf(req).Elem())
			req.SetVersion(v)
			dropTagged(req)
			b := req.AppendTo(nil)
			l := layoutOf(req.Key(), v)
			w := walker{b: b}
			if !w.layout(l) || w.at != len(b) {
				t.Fatalf("%s: walked %d of %d bytes: %x", name, w.at, len(b), b)
			}
			body, cost, err := checkBody(req.Key(), v, b)
			if err != nil || cost < 0 {
				t.Fatalf("%s: %v", name, err)
			}
			if len(body) != len(b) && !w.cut {
				t.Fatalf("%s: %d bytes became %d", name, len(b), len(body))
			}
			if len(b) > 0 && !w.cut {
				cut := r.IntN(len(b))
				if w := (walker{b: b[:cut]}); w.layout(l) {
					t.Fatalf("%s: %d of %d bytes pass", name, cut, len(b))
				}
			}
		}
	})
	if versions < 300 {
		t.Errorf("only %d versions seen", versions)
	}
}

// Tags are cut out everywhere, and the rest decodes as if they had not been there.
func TestTagsAreCut(t *testing.T) {
	req := kmsg.NewPtrFetchRequest()
	req.Version = 16
	req.Topics = make([]kmsg.FetchRequestTopic, 2)
	for i := range req.Topics {
		req.Topics[i].Default()
		req.Topics[i].TopicID = [16]byte{byte(i + 1)}
		req.Topics[i].Partitions = make([]kmsg.FetchRequestTopicPartition, 2)
		for j := range req.Topics[i].Partitions {
			req.Topics[i].Partitions[j].Default()
			req.Topics[i].Partitions[j].FetchOffset = int64(10*i + j)
		}
	}
	plain := req.AppendTo(nil)
	cluster := "a cluster"
	req.ClusterID = &cluster
	req.UnknownTags.Set(77, []byte("unknown"))
	req.Topics[0].UnknownTags.Set(3, []byte("three"))
	req.Topics[1].Partitions[1].UnknownTags.Set(9, make([]byte, 300))
	req.Topics[1].Partitions[0].ReplicaDirectoryID = [16]byte{1}
	tagged := req.AppendTo(nil)
	if len(tagged) <= len(plain) {
		t.Fatal("nothing was tagged")
	}
	body, _, err := checkBody(req.Key(), req.Version, tagged)
	if err != nil || string(body) != string(plain) {
		t.Errorf("%v\n got %x\nwant %x", err, body, plain)
	}
}

func TestHostileBodies(t *testing.T) {
	tests := []struct {
		name         string
		key, version int16
		body         []byte
	}{
		{"2^32 tags", 18, 3, []byte{2, 'a', 2, 'b', 0xff, 0xff, 0xff, 0xff, 0x0f}},
		{"2^31 tags", 18, 3, []byte{2, 'a', 2, 'b', 0xff, 0xff, 0xff, 0xff, 0x07}},
		{"tag longer than the body", 18, 3, []byte{2, 'a', 2, 'b', 1, 0, 200}},
		{"array of 2^31 topics", 3, 1, []byte{0x7f, 0xff, 0xff, 0xff}},
		{"array of 2^32 topics", 3, 9, []byte{0xff, 0xff, 0xff, 0xff, 0x0f}},
		{"overlong varint", 3, 9, []byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x01}},
		{"nested array", 0, 7, []byte{0xff, 0xff, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 't', 0, 0, 0, 9, 0, 0, 0, 0}},
		{"string longer than the body", 3, 1, []byte{0, 0, 0, 1, 0, 9, 'x'}},
		{"empty", 0, 9, nil},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if _, _, err := checkBody(tc.key, tc.version, tc.body); !errors.Is(err, errBody) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// The cost tells an array of nothing from a real one.
func TestCost(t *testing.T) {
	b := append([]byte{0, 1, 0, 0}, make([]byte, 2*65536)...) // 65536 empty names, 2 bytes each
	_, cost, err := checkBody(3, 1, b)
	if err != nil || cost < 65536*int(reflect.TypeFor[kmsg.MetadataRequestTopic]().Size()) {
		t.Errorf("cost %d, %v", cost, err)
	}
}

// What passes the walk is what kmsg can decode, without surprise.
func FuzzBody(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	everyRequest(func(_ string, req kmsg.Request) {
		v := req.GetVersion()
		populate(r, reflect.ValueOf(req).Elem())
		req.SetVersion(v)
		f.Add(req.Key(), v, req.AppendTo(nil))
	})
	f.Fuzz(func(t *testing.T, key, version int16, b []byte) {
		defer alloctest.Bound(t, len(b))()
		req := kmsg.RequestForKey(key)
		if req == nil || version < 0 || version > req.MaxVersion() {
			return
		}
		body, cost, err := checkBody(key, version, b)
		if err != nil {
			return
		}
		if cost < 0 || cost > 33*(len(b)+1) {
			t.Fatalf("%d bytes cost %d", len(b), cost)
		}
		req.SetVersion(version)
		_ = req.ReadFrom(body) // may refuse: only kmsg knows which strings cannot be null
	})
}
