package archive

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"chronik/test/harness"
)

// TestEmptyNodeTakesItsBytesFromTheStore: the leader sends less than 5 % of them.
func TestEmptyNodeTakesItsBytesFromTheStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	c := harness.Start(t, harness.Options{Threshold: 100, Set: []string{"object_store.url=file://" + dir, "object_store.upload_interval=1s"}})
	c.CreateTopic("orders", 1)
	line := strings.Repeat("x", 1000)
	var sb strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&sb, "%06d %s\n", i, line)
	}
	out, err := c.CLIInput(sb.String(), "produce", "orders", "--batch-records", "50")
	must(t, out, err)
	create(t, c)
	leader, _, err := c.Leader("orders-0")
	if err != nil {
		t.Fatal(err)
	}
	victim := leader%3 + 1
	c.Kill(victim)
	c.Wipe(victim)
	c.Restart(victim)
	c.Eventually(60*time.Second, "the replicas are equal", func() error { return c.DigestsEqual("orders", 0, 10_000) })
	resp, err := http.Get("http://" + c.Node(victim).Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	from := map[string]float64{}
	for _, m := range regexp.MustCompile(`chronik_snapshot_received_from_bytes_total\{source="([^"]*)"\} (\S+)`).FindAllStringSubmatch(string(b), -1) {
		from[m[1]], _ = strconv.ParseFloat(m[2], 64)
	}
	total := 0.0
	for _, v := range from {
		total += v
	}
	t.Logf("received: %v", from)
	if from["object store"] < 0.95*total || total < 9_000_000 {
		t.Fatalf("received: %v", from)
	}
}
