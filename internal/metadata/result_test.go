package metadata

import (
	"errors"
	"testing"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
)

// FuzzDecodeReply decodes a peer's answer to a forwarded command: what is taken
// travels on unchanged.
func FuzzDecodeReply(f *testing.F) {
	for kind, r := range map[string]*Reply{
		"genesis":         {Index: 1, Result: &GenesisResult{}},
		"register_broker": {Index: 9, Result: &RegisterResult{ClusterID: "c", Members: []MetaMember{{Node: 1, RaftAddr: "a:1"}}}},
		"create_topics":   {Index: 2, Err: ErrBadCommand.with("no")},
		"delete_topics":   {Index: 3, Err: errors.New("not one of ours")},
		"drain_broker":    {Index: ident.Index(1) << 60},
	} {
		b, err := EncodeReply(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(kind, b)
	}
	f.Fuzz(func(t *testing.T, kind string, b []byte) {
		defer alloctest.Bound(t, len(kind)+len(b))()
		r, err := DecodeReply(kind, b)
		if err != nil {
			if !errors.Is(err, ErrBadCommand) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		enc, err := EncodeReply(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeReply(kind, enc)
		if err != nil || again.Index != r.Index || (again.Err == nil) != (r.Err == nil) || (again.Result == nil) != (r.Result == nil) {
			t.Fatalf("%s became %+v, %v", enc, again, err)
		}
	})
}
