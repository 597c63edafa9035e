package recover

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/recovery"
	"chronik/test/harness"
)

// TestEveryDiskLost: of three nodes only an object store is left. Restored and started,
// node 1 has every partition up to its snapshot; the others join and are equal.
func TestEveryDiskLost(t *testing.T) {
	url := "file://" + filepath.Join(t.TempDir(), "store")
	c := harness.Start(t, harness.Options{Threshold: 50, Set: []string{"object_store.url=" + url}})
	c.CreateTopic("orders", 2)
	cl := c.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	produce(t, cl, "orders", 0, 0, 230)
	produce(t, cl, "orders", 1, 0, 20)
	adm := kadm.NewClient(cl)
	offsets := kadm.Offsets{}
	offsets.AddOffset("orders", 0, 77, -1)
	noErr(t, must(adm.CommitOffsets(t.Context(), "g", offsets)).Error())
	_ = must(c.CLI("snapshot", "create", "--upload"))
	produce(t, cl, "orders", 1, 20, 25) // after the snapshot: lost
	for id := 1; id <= 3; id++ {
		c.Kill(id)
	}
	for id := 1; id <= 3; id++ {
		c.Wipe(id)
	}
	args := []string{"restore", "--from", url, "--node-id", "1", "--data-dir", c.Node(1).Dir}
	text := must(c.CLI(append(args, "--dry-run")...))
	if !strings.Contains(text, "orders-0") || !strings.Contains(text, "nothing was changed") {
		t.Errorf("dry run:\n%s", text)
	}
	rep := &recovery.Report{}
	noErr(t, json.Unmarshal([]byte(must(c.CLI(append(args, "--json")...))), rep))
	if rep.Count(recovery.Kept) != len(rep.Groups) || row(t, rep, "orders-0").NextOffset != 230 || row(t, rep, "orders-1").NextOffset != 20 {
		t.Errorf("%+v", rep)
	}
	for id := 1; id <= 3; id++ {
		c.Restart(id)
	}
	c.Eventually(60*time.Second, "the others have joined", func() error { return full(c) })
	expect(t, c, "orders", 0, 230)
	cl = c.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	produce(t, cl, "orders", 0, 230, 240)
	produce(t, cl, "orders", 1, 20, 40)
	_ = must(c.CLI("verify", "orders"))
	if o, ok := must(adm.FetchOffsets(t.Context(), "g")).Lookup("orders", 0); !ok || o.At != 77 {
		t.Errorf("committed offset %+v", o)
	}
}
