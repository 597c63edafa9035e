package kafka

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/record"
)

// unmapped are sentinels that no request can meet.
var unmapped = map[string]string{
	"metadata.ErrLeaderFrame":  "what another node gossips; the broker logs it",
	"metadata.ErrCorruptImage": "a damaged checkpoint; the replica is quarantined",
}

// TestEverySentinelIsMapped reads the sources below: an exported sentinel without
// a code would reach clients as UNKNOWN_SERVER_ERROR.
func TestEverySentinelIsMapped(t *testing.T) {
	mapped := selectors(t, "errors.go")
	for _, pkg := range []string{"record", "partition", "metadata", "group", "raftgroup"} {
		names := sentinels(t, filepath.Join("..", pkg))
		if len(names) == 0 {
			t.Errorf("package %s has no sentinels: is this test looking in the right place?", pkg)
		}
		for name, carriesCode := range names {
			full := pkg + "." + name
			if _, ok := unmapped[full]; !ok && !carriesCode && !mapped[full] {
				t.Errorf("%s has no Kafka code", full)
			}
		}
	}
}

// selectors lists every pkg.Name that a source file mentions.
func selectors(t *testing.T, file string) map[string]bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok {
				found[x.Name+"."+s.Sel.Name] = true
			}
		}
		return true
	})
	return found
}

// sentinels lists a package's exported Err variables and tells of each whether it
// carries its code: made by a function that is given a kerr.
func sentinels(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, e := range files {
		if skip(e) {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, e.Name()), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, name := range v.Names {
					if strings.HasPrefix(name.Name, "Err") && i < len(v.Values) {
						found[name.Name] = givenKerr(v.Values[i])
					}
				}
			}
		}
	}
	return found
}

func skip(e fs.DirEntry) bool {
	return !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go")
}

func givenKerr(e ast.Expr) bool {
	given := false
	ast.Inspect(e, func(n ast.Node) bool {
		if x, ok := n.(*ast.Ident); ok && x.Name == "kerr" {
			given = true
		}
		return true
	})
	return given
}

func TestErrorTable(t *testing.T) {
	for i := range errorTable {
		e := errorTable[i]
		if got := lookupError(fmt.Errorf("somewhere: %w", e.is)); got != e.code {
			t.Errorf("%v is %v, the table says %v", e.is, got, e.code)
		}
	}
	for _, tc := range []struct {
		err  error
		want *kerr.Error
	}{
		{kerr.PolicyViolation, kerr.PolicyViolation},
		{fmt.Errorf("topic t: %w", failf(kerr.InvalidConfig, "no")), kerr.InvalidConfig},
		{metadata.ErrTopicExists, kerr.TopicAlreadyExists},
		{fmt.Errorf("x: %w", metadata.ErrUnknownTopicID), kerr.UnknownTopicID},
		{record.ErrShort, kerr.CorruptMessage},
		{context.DeadlineExceeded, kerr.RequestTimedOut},
		{&recordError{reason: "r"}, kerr.InvalidRecord},
		{errors.New("a surprise"), nil},
	} {
		if got := lookupError(tc.err); got != tc.want {
			t.Errorf("%v is %v, want %v", tc.err, got, tc.want)
		}
	}
}

func TestErrorMessages(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string // "" for none
	}{
		{nil, ""},
		{kerr.UnknownTopicOrPartition, ""},
		{failf(kerr.InvalidConfig, "retention.ms: %q", "soon"), `retention.ms: "soon"`},
		{partition.ErrTimeout, partition.ErrTimeout.Error()},
	} {
		got := message(tc.err)
		if (got == nil) != (tc.want == "") || got != nil && *got != tc.want {
			t.Errorf("%v: message %v, want %q", tc.err, got, tc.want)
		}
	}
}

// TestASurpriseIsAServerError: what nothing maps is a fault here, and says so.
func TestASurpriseIsAServerError(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1, nil)[0].readIndexErr = errors.New("a surprise")
	req := kmsg.NewPtrListOffsetsRequest()
	req.Version = 5
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = "orders"
	rp := kmsg.NewListOffsetsRequestTopicPartition()
	rp.Timestamp = askLatest
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	wantCode(t, "latest", roundTrip[*kmsg.ListOffsetsResponse](t, h, req).Topics[0].Partitions[0].ErrorCode, kerr.UnknownServerError)
}
