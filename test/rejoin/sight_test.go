package rejoin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
	"chronik/test/harness"
)

// TestTransferInSight: while a wiped node receives a snapshot, slowly, everything says so: /v1/transfers of
// the receiver, of the leader that offered it and of the follower that gives the bytes, the replicas, the status
// command and the metrics. Afterwards nothing does.
func TestTransferInSight(t *testing.T) {
	c := harness.Start(t, harness.Options{Threshold: 50, Set: []string{"snapshot.max_bytes_per_second=2MiB"}})
	c.CreateTopic("orders", 1)
	cl := c.Client(kgo.ProducerLinger(0))
	produce(t, cl, 60, 100_000)
	c.Kill(3)
	produce(t, cl, 60, 50_000)
	leader, l, err := c.Leader(group)
	if err != nil {
		t.Fatal(err)
	}
	dead := status(t, c)
	if r := rowOf(dead, 3); r.State != "unreachable" || r.Role != "follower" || r.Progress == nil || r.LagEntries < 60 || r.LagBytes < 60*50_000 || r.MatchIndex < 60 || r.MatchIndex+r.LagEntries != l.LastIndex {
		t.Errorf("node 3 is dead, and its replica %+v, %+v, leader %+v", r, r.Progress, l)
	}
	c.Wipe(3)
	c.Restart(3)
	giver := 3 - leader
	var in, out admin.Transfer
	c.Eventually(10*time.Second, "a transfer is well under way on all nodes", func() error {
		var err1, err2, err3 error
		in, err1 = transferOf(c, 3, "in")
		out, err2 = transferOf(c, giver, "out")
		_, err3 = transferOf(c, leader, "out")
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		if in.BytesDone < in.BytesTotal/4 {
			return fmt.Errorf("%+v", in)
		}
		return nil
	})
	for source, tr := range map[int]admin.Transfer{leader: in, giver: out} {
		if tr.Group != group || tr.Topic != "orders" || tr.Partition != 0 || int(tr.Source) != source || tr.Target != 3 || tr.State != "transferring" || tr.Index < 100 || tr.Term == 0 ||
			tr.BytesDone == 0 || tr.BytesTotal < 9_000_000 || tr.BytesPerSecond < 100_000 || tr.SecondsLeft <= 0 || tr.Seconds <= 0 || tr.Attempts != 1 {
			t.Errorf("%+v", tr)
		}
	}
	if n := fmt.Sprint("node ", giver); len(in.From) == 0 || !slices.ContainsFunc(in.From, func(f admin.TransferSource) bool { return f.Source == n && f.Bytes > in.BytesReceived/2 }) {
		t.Errorf("the bytes come from %+v, not from %s", in.From, n)
	}
	live := status(t, c)
	r := rowOf(live, 3)
	if r.State != "receiving-snapshot" || r.Transfer == nil || r.Progress == nil || r.LagEntries == 0 || r.LagBytes == 0 {
		t.Errorf("%+v, %+v", r, r.Progress)
	}
	if len(live.Transfers) != 1 || live.Transfers[0].Target != 3 || live.Transfers[0].Direction != "in" {
		t.Errorf("transfers: %+v", live.Transfers)
	}
	metrics := scrape(t, c, 3)
	for _, want := range []string{
		`chronik_snapshot_transfers{direction="in"} 1`,
		fmt.Sprintf(`chronik_snapshot_transfer_attempts{direction="in",peer="%d"} 1`, leader),
		`chronik_raftgroup_replica_info{partition="0",role="learner",state="receiving-snapshot",topic="orders"} 1`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("no %s in node 3's metrics", want)
		}
	}
	watch(t, c)
	c.Eventually(20*time.Second, "node 3 is whole", func() error { return voters(c, group, 120) })
	c.Eventually(10*time.Second, "nothing is on its way any more", func() error {
		v := status(t, c)
		for _, r := range v.Replicas {
			if r.State != "running" || r.Role == "learner" || r.Progress == nil || r.LagEntries != 0 || r.LagBytes != 0 {
				return fmt.Errorf("%+v, %+v", r, r.Progress)
			}
		}
		if len(v.Transfers) > 0 {
			return fmt.Errorf("%+v", v.Transfers)
		}
		return nil
	})
}

// statusView is what a script reads of chronik status --json.
type statusView struct {
	Replicas  []admin.Replica
	Transfers []admin.Transfer
}

func status(t *testing.T, c *harness.Cluster) (v statusView) {
	t.Helper()
	out, err := c.CLI("status", "--json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return v
}

// rowOf is a node's replica of the partition.
func rowOf(v statusView, node int32) admin.Replica {
	for _, r := range v.Replicas {
		if r.Group == group && r.Node == node && (r.State == "unreachable" || r.LastIndex > 0 || r.Transfer != nil) {
			return r
		}
	}
	return admin.Replica{}
}

func transferOf(c *harness.Cluster, id int, direction string) (admin.Transfer, error) {
	var all struct {
		Transfers []admin.Transfer `json:"transfers"`
	}
	if err := c.Get(id, "/v1/transfers", &all); err != nil {
		return admin.Transfer{}, err
	}
	for _, tr := range all.Transfers {
		if tr.Group == group && tr.Direction == direction {
			return tr, nil
		}
	}
	return admin.Transfer{}, fmt.Errorf("node %d: no transfer %s in %+v", id, direction, all.Transfers)
}

// watch has status refresh twice, into a file: no control characters, and Ctrl-C is a good end.
func watch(t *testing.T, c *harness.Cluster) {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "watch")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	cmd := exec.Command(c.Exe, "status", "--watch", "-o", "wide", "--bootstrap", strings.Join(c.Bootstrap(), ","))
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = file, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var text []byte
	c.Eventually(10*time.Second, "status refreshes", func() error {
		if text, err = os.ReadFile(file.Name()); err != nil {
			return err
		}
		if n := bytes.Count(text, []byte("cluster ")); n < 2 {
			return fmt.Errorf("printed %d times", n)
		}
		return nil
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || errs.Len() > 0 {
		t.Errorf("Ctrl-C of status --watch: %v, %s", err, errs.String())
	}
	if bytes.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\n' }) {
		t.Errorf("control characters in a file: %q", text)
	}
	for _, want := range []string{"MATCH", "LAG BYTES", "receiving-snapshot", "TRANSFER  FROM  TO", "transferring"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func scrape(t *testing.T, c *harness.Cluster, id int) string {
	t.Helper()
	resp, err := http.Get("http://" + c.Node(id).Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", resp.Status, err)
	}
	return string(b)
}
