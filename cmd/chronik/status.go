package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"

	"chronik/internal/admin"
)

// cluster finds every node's admin address: any broker that answers names its own, which names all.
func (b *bootstrap) cluster(ctx context.Context) (*admin.Cluster, error) {
	kcl, err := b.client(ctx)
	if err != nil {
		return nil, err
	}
	defer kcl.Close()
	adm := kadm.NewClient(kcl)
	brokers, err := adm.ListBrokers(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, br := range brokers {
		var cl admin.Cluster
		bctx, cancel := context.WithTimeout(ctx, askTimeout)
		addr, err := adminAddr(bctx, adm, br.NodeID)
		if err == nil {
			err = getJSON(bctx, reachable(addr, net.JoinHostPort(br.Host, "0")), "/v1/cluster", &cl)
		}
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("node %d: %w", br.NodeID, err)) // another may answer
			continue
		}
		for i := range cl.Nodes {
			cl.Nodes[i].Admin = reachable(cl.Nodes[i].Admin, cl.Nodes[i].Kafka)
		}
		return &cl, nil
	}
	return nil, withHint(fmt.Errorf("no node's admin address answers: %w", joined(errs)), "is admin.listen reachable from here?")
}

// askTimeout is how long one node may take to tell its state.
const askTimeout = 3 * time.Second

// reachable is the admin address addr; one that means all interfaces gets the host that Kafka clients use.
func reachable(addr, kafka string) string {
	host, port, err1 := net.SplitHostPort(addr)
	kafkaHost, _, err2 := net.SplitHostPort(kafka)
	if ip := net.ParseIP(host); err1 == nil && err2 == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort(kafkaHost, port)
	}
	return addr
}

// adminAddr reads a broker's admin.listen among its configs.
func adminAddr(ctx context.Context, adm *kadm.Client, node int32) (string, error) {
	rs, err := adm.DescribeBrokerConfigs(ctx, node)
	if err != nil {
		return "", err
	}
	for _, r := range rs {
		for _, c := range r.Configs {
			if c.Key == "admin.listen" && c.Value != nil {
				return *c.Value, nil
			}
		}
	}
	return "", fmt.Errorf("broker %d does not tell its admin.listen", node)
}

// statusError is an HTTP answer other than 200.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

func getJSON(ctx context.Context, addr, path string, into any) error {
	err := askJSON(ctx, http.MethodGet, addr, path, into)
	if se := (*statusError)(nil); errors.As(err, &se) {
		return fmt.Errorf("%d %s: %w", se.code, http.StatusText(se.code), se)
	}
	return err
}

func postJSON(ctx context.Context, addr, path string, into any) error {
	return askJSON(ctx, http.MethodPost, addr, path, into)
}

func askJSON(ctx context.Context, method, addr, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 256<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return &statusError{resp.StatusCode, strings.TrimSpace(string(body))}
	}
	return json.Unmarshal(body, into)
}

type statusView struct {
	Cluster   *admin.Cluster   `json:"cluster"`
	Replicas  []admin.Replica  `json:"replicas"`
	Transfers []admin.Transfer `json:"transfers"` // those that arrive, and those that leave for a node that does not answer
	Missing   []int32          `json:"unreachable_nodes"`
	// WithoutQuorum are the groups that cannot go on, as the nodes say that answered.
	WithoutQuorum []admin.Shortfall `json:"without_quorum"`
}

func newStatus() *cobra.Command {
	var b bootstrap
	var l listing
	var watch bool
	var addrs string
	c := &cobra.Command{
		Use: "status", Short: "nodes, partitions, replicas, lag and transfers", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for {
				v, err := statusOf(c.Context(), &b, addrs)
				if err != nil && (!watch || c.Context().Err() != nil) {
					return err
				}
				if watch && !l.asJSON() && isTerminal(c.OutOrStdout()) {
					fmt.Fprint(c.OutOrStdout(), "\x1b[H\x1b[2J")
				}
				if err != nil {
					fmt.Fprintf(c.ErrOrStderr(), "chronik: error: %v\n", err) // it may come back
				} else if err := v.print(c.OutOrStdout(), &l); err != nil || !watch {
					return err
				}
				select {
				case <-c.Context().Done():
					return nil
				case <-time.After(time.Second):
				}
			}
		},
	}
	b.register(c)
	l.register(c)
	c.Flags().BoolVar(&watch, "watch", false, "refresh every second")
	c.Flags().StringVar(&addrs, "admin", "", "ask these admin addresses, host:port,host:port; a node whose metadata has no majority answers nowhere else")
	return c
}

// statusOf asks the nodes at the admin addresses, or, without any, those that Kafka's brokers name.
func statusOf(ctx context.Context, b *bootstrap, addrs string) (*statusView, error) {
	if addrs != "" {
		cl, err := clusterAt(ctx, strings.Split(addrs, ","))
		if err != nil {
			return nil, err
		}
		return statusFrom(ctx, cl), nil
	}
	cl, err := b.cluster(ctx)
	if err != nil {
		return nil, withHint(err, "is a node running there? One that waits for others answers 'chronik status --admin HOST:PORT'; 'chronik dev' starts a local cluster")
	}
	return statusFrom(ctx, cl), nil
}

// clusterAt asks admin addresses. The newest metadata counts; a node that has none yet is added to it.
func clusterAt(ctx context.Context, addrs []string) (*admin.Cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var best *admin.Cluster
	asked := map[int32]string{}
	var errs []error
	for _, addr := range addrs {
		cl := &admin.Cluster{}
		if err := getJSON(ctx, strings.TrimSpace(addr), "/v1/cluster", cl); err != nil {
			errs = append(errs, err)
			continue
		}
		asked[cl.Node] = strings.TrimSpace(addr)
		if best == nil || cl.MetaIndex > best.MetaIndex {
			best = cl
		}
	}
	if best == nil {
		return nil, withHint(fmt.Errorf("no node's admin address answers: %w", joined(errs)), "--admin names the admin.listen of a node that runs")
	}
	for i := range best.Nodes {
		n := &best.Nodes[i]
		if addr, ok := asked[n.ID]; ok {
			n.Admin = addr
			delete(asked, n.ID)
		} else {
			n.Admin = reachable(n.Admin, n.Kafka)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(asked)) {
		best.Nodes = append(best.Nodes, admin.Node{ID: id, Kafka: "-", Admin: asked[id]})
	}
	return best, nil
}

func statusFrom(ctx context.Context, cl *admin.Cluster) *statusView {
	v := &statusView{
		Cluster: cl, Replicas: []admin.Replica{}, Transfers: []admin.Transfer{}, Missing: []int32{}, WithoutQuorum: []admin.Shortfall{},
	}
	answers := make([]nodeAnswer, len(cl.Nodes))
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, n := range cl.Nodes {
		wg.Go(func() { answers[i] = askNode(ctx, n.Admin) })
	}
	wg.Wait()
	answered := map[int32]bool{}
	for i, n := range cl.Nodes {
		if answers[i].err != nil {
			v.Missing = append(v.Missing, n.ID)
			continue
		}
		answered[n.ID] = true
		for _, r := range answers[i].replicas {
			r.Node = n.ID
			v.Replicas = append(v.Replicas, r)
		}
		for _, f := range answers[i].without {
			if !slices.ContainsFunc(v.WithoutQuorum, func(o admin.Shortfall) bool { return o.Group == f.Group }) {
				v.WithoutQuorum = append(v.WithoutQuorum, f)
			}
		}
	}
	for _, a := range answers {
		for _, t := range a.transfers {
			if t.Direction == "in" || !answered[t.Target] {
				v.Transfers = append(v.Transfers, t)
			}
		}
	}
	v.join()
	return v
}

// printWithoutQuorum says which groups cannot go on, why, and what to do.
func (v *statusView) printWithoutQuorum(w io.Writer) error {
	if len(v.WithoutQuorum) == 0 {
		return nil
	}
	hint := admin.AwayHint
	var rows [][]string
	for _, f := range v.WithoutQuorum {
		var why []string
		for _, m := range f.Missing {
			if m.State == "replaced" {
				why = append(why, fmt.Sprintf("node %d: another disk (store %.8s, it was %.8s)", m.Node, m.CurrentStore, m.Store))
			} else {
				why = append(why, fmt.Sprintf("node %d: %s (store %.8s)", m.Node, m.State, m.Store))
			}
		}
		if f.Lost {
			hint = admin.LostHint
		}
		rows = append(rows, []string{f.Group, fmt.Sprintf("%d of %d", f.Present, f.Voters), strconv.FormatBool(f.Lost), strings.Join(why, ", ")})
	}
	if err := table(w, []string{"WITHOUT A MAJORITY", "PRESENT", "LOST", "MISSING"}, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s\n\n", hint)
	return err
}

// nodeAnswer is what one node tells of its replicas and transfers.
type nodeAnswer struct {
	replicas  []admin.Replica
	transfers []admin.Transfer
	without   []admin.Shortfall // groups without a majority
	err       error
}

func askNode(ctx context.Context, addr string) nodeAnswer {
	var rs admin.Replicas
	var ts struct {
		Transfers []admin.Transfer `json:"transfers"`
	}
	err := firstErr(getJSON(ctx, addr, "/v1/replicas", &rs), getJSON(ctx, addr, "/v1/transfers", &ts))
	return nodeAnswer{rs.Replicas, ts.Transfers, rs.WithoutQuorum, err}
}

// join gives each replica the progress that its leader sees, and adds those that only their leader knows
// of, because their node does not answer.
func (v *statusView) join() {
	at := map[uint64]int{}
	leaders := map[string]admin.Replica{}
	for i, r := range v.Replicas {
		at[r.ReplicaID] = i
		if was, ok := leaders[r.Group]; r.Role == "leader" && (!ok || r.Term > was.Term) {
			leaders[r.Group] = r
		}
	}
	for _, l := range leaders {
		for _, f := range l.Followers {
			if i, ok := at[f.ReplicaID]; ok {
				v.Replicas[i].Progress = &f.Progress
				continue
			}
			if !slices.Contains(v.Missing, f.Node) {
				continue // it is being made, or on its way out
			}
			role := "follower"
			if f.Learner {
				role = "learner"
			}
			v.Replicas = append(v.Replicas, admin.Replica{
				Node: f.Node, Topic: l.Topic, Partition: l.Partition, Group: l.Group, ReplicaID: f.ReplicaID,
				Role: role, LeaderNode: l.Node, State: "unreachable", Progress: &f.Progress,
			})
		}
	}
}

// leaderless names the groups nobody leads, as the node that answered sees it.
func (v *statusView) leaderless() []string {
	var out []string
	parts := slices.Clone(v.Cluster.Internal)
	for _, t := range v.Cluster.Topics {
		parts = append(parts, t.Partitions...)
	}
	for _, p := range parts {
		if p.Leader == 0 {
			out = append(out, p.Group)
		}
	}
	return out
}

func (v *statusView) print(w io.Writer, l *listing) error {
	if l.asJSON() {
		return l.print(w, v, nil, nil)
	}
	down := map[int32]bool{}
	for _, id := range v.Missing {
		down[id] = true
	}
	fmt.Fprintf(w, "cluster %s\n\n", v.Cluster.ClusterID)
	var nodes [][]string
	for _, n := range v.Cluster.Nodes {
		state := "up"
		if down[n.ID] {
			state = "unreachable"
		}
		nodes = append(nodes, []string{fmt.Sprint(n.ID), state, n.Kafka, n.Admin, orDash(n.Rack), n.Store})
	}
	if err := table(w, []string{"NODE", "STATE", "KAFKA", "ADMIN", "RACK", "STORE"}, nodes); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if err := v.printWithoutQuorum(w); err != nil {
		return err
	}
	if without := v.leaderless(); len(without) > 0 {
		fmt.Fprintf(w, "without a leader: %s\n\n", strings.Join(without, ", "))
	}
	if err := v.printReplicas(w, l.wide()); err != nil || len(v.Transfers) == 0 {
		return err
	}
	fmt.Fprintln(w)
	var rows [][]string
	for _, t := range v.Transfers {
		rows = append(rows, []string{
			t.Group, fmt.Sprint(t.Source), fmt.Sprint(t.Target), t.State, size(int64(t.BytesDone)), size(int64(t.BytesTotal)), size(int64(t.BytesReused)),
			size(int64(t.BytesPerSecond)) + "/s", timeLeft(t), fmt.Sprint(t.Attempts),
		})
	}
	return table(w, []string{"TRANSFER", "FROM", "TO", "STATE", "DONE", "TOTAL", "REUSED", "RATE", "LEFT", "ATTEMPTS"}, rows)
}

// knownByLeader are the columns of a replica whose node does not answer.
var knownByLeader = []string{"GROUP", "NODE", "ROLE", "STATE", "LAG", "REPLICA", "MATCH", "LAG BYTES"}

func (v *statusView) printReplicas(w io.Writer, wide bool) error {
	slices.SortStableFunc(v.Replicas, func(a, b admin.Replica) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Node, b.Node))
	})
	commits := map[string]uint64{}
	for _, r := range v.Replicas {
		commits[r.Group] = max(commits[r.Group], r.CommitIndex)
	}
	header := []string{"GROUP", "NODE", "ROLE", "STATE", "TERM", "APPLIED", "LAG", "SNAPSHOT", "START", "HIGH", "TRANSFER"}
	if wide {
		header = append(header, "REPLICA", "FIRST", "LAST", "COMMIT", "INSTALLED", "RECEIVED", "REUSED", "REPLAYED", "MATCH", "LAG BYTES")
	}
	var rows [][]string
	for _, r := range v.Replicas {
		// Without a leader that answers, what the others committed is the best that is known.
		lag, match, lagBytes := commits[r.Group]-min(commits[r.Group], r.AppliedIndex), "-", "-"
		if p := r.Progress; p != nil {
			lag, match, lagBytes = p.LagEntries, fmt.Sprint(p.MatchIndex), fmt.Sprint(p.LagBytes)
		}
		row := []string{
			r.Group, fmt.Sprint(r.Node), r.Role, r.State, fmt.Sprint(r.Term), fmt.Sprint(r.AppliedIndex), fmt.Sprint(lag), fmt.Sprint(r.SnapshotIndex),
			fmt.Sprint(r.LogStartOffset), fmt.Sprint(r.HighWatermark), transferText(r.Transfer),
		}
		if wide {
			row = append(row, fmt.Sprint(r.ReplicaID), fmt.Sprint(r.FirstIndex), fmt.Sprint(r.LastIndex), fmt.Sprint(r.CommitIndex),
				fmt.Sprint(r.SnapshotsInstalled), fmt.Sprint(r.SnapshotBytesReceived), fmt.Sprint(r.SnapshotBytesReused), fmt.Sprint(r.EntriesReplayed), match, lagBytes)
		}
		for i := range row {
			if r.State == "unreachable" && !slices.Contains(knownByLeader, header[i]) {
				row[i] = "-"
			}
		}
		rows = append(rows, row)
	}
	return table(w, header, rows)
}

func transferText(t *admin.Transfer) string {
	if t == nil {
		return "-"
	}
	return fmt.Sprintf("%d/%d bytes from node %d", t.BytesDone, t.BytesTotal, t.Source)
}

func newVerify() *cobra.Command {
	var b bootstrap
	var l listing
	c := &cobra.Command{
		Use: "verify TOPIC", Short: "compare the digest of every replica, byte for byte", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return verify(c, &b, &l, args[0]) },
	}
	b.register(c)
	l.register(c)
	return c
}

type verifyRow struct {
	Partition int32  `json:"partition"`
	Node      int32  `json:"node"`
	From      int64  `json:"from"`
	To        int64  `json:"to"`
	Records   int64  `json:"records"`
	Batches   int64  `json:"batches"`
	SHA256    string `json:"sha256"`
	Equal     bool   `json:"equal"`
}

func verify(c *cobra.Command, b *bootstrap, l *listing, topic string) error {
	cl, err := b.cluster(c.Context())
	if err != nil {
		return err
	}
	t := cl.Topic(topic)
	if t == nil {
		return withHint(fmt.Errorf("no topic %s", topic), "'chronik topic list' shows the topics")
	}
	rows := []verifyRow{}
	var differ []string
	for _, p := range t.Partitions {
		got, err := settled(c.Context(), cl, topic, p)
		if err != nil {
			return err
		}
		for i := range got {
			got[i].Equal = got[i].SHA256 == got[0].SHA256 && got[i].Records == got[0].Records && got[i].To == got[0].To
			if !got[i].Equal {
				at, err := firstDifference(c.Context(), cl, topic, p.Partition, got[0], got[i])
				if err != nil {
					return err
				}
				differ = append(differ, fmt.Sprintf("%s-%d: nodes %d and %d differ from offset %d", topic, p.Partition, got[0].Node, got[i].Node, at))
			}
		}
		rows = append(rows, got...)
	}
	if err := printVerified(c.OutOrStdout(), l, rows); err != nil {
		return err
	}
	if len(differ) > 0 {
		return withHint(fmt.Errorf("replicas differ: %s", strings.Join(differ, "; ")), "keep the data directories: this must not happen")
	}
	return nil
}

func printVerified(w io.Writer, l *listing, rows []verifyRow) error {
	header := []string{"PARTITION", "NODE", "FROM", "TO", "RECORDS", "SHA256", "EQUAL"}
	if l.wide() {
		header = append(header, "BATCHES")
	}
	var text [][]string
	for _, r := range rows {
		sum := r.SHA256
		if !l.wide() {
			sum = sum[:min(16, len(sum))]
		}
		row := []string{fmt.Sprint(r.Partition), fmt.Sprint(r.Node), fmt.Sprint(r.From), fmt.Sprint(r.To), fmt.Sprint(r.Records), sum, strconv.FormatBool(r.Equal)}
		if l.wide() {
			row = append(row, fmt.Sprint(r.Batches))
		}
		text = append(text, row)
	}
	return l.print(w, rows, header, text)
}

// digests asks every replica of p for the same range: from the highest start to
// the lowest high watermark of them, so that a replica that lags a moment is no difference.
func digests(ctx context.Context, cl *admin.Cluster, topic string, p admin.Partition) ([]verifyRow, error) {
	from, to := int64(0), int64(-1)
	for _, r := range p.Replicas {
		d, err := digestOf(ctx, cl, topic, p.Partition, r.Node, -1, -1)
		if err != nil {
			return nil, err
		}
		from = max(from, d.From)
		if to < 0 || d.To < to {
			to = d.To
		}
	}
	var rows []verifyRow
	for _, r := range p.Replicas {
		d, err := digestOf(ctx, cl, topic, p.Partition, r.Node, from, max(from, to))
		if err != nil {
			return nil, err
		}
		if d.From > from {
			return nil, errMoved
		}
		rows = append(rows, verifyRow{Partition: p.Partition, Node: r.Node, From: d.From, To: d.To, Records: d.Records, Batches: d.Batches, SHA256: d.SHA256})
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("%s-%d has no replicas", topic, p.Partition)
	}
	return rows, nil
}

// errMoved means that retention raised the log start between two questions.
var errMoved = errors.New("the log start moves too fast to compare replicas")

// settled asks again when retention came in between.
func settled(ctx context.Context, cl *admin.Cluster, topic string, p admin.Partition) (rows []verifyRow, err error) {
	for range 5 {
		if rows, err = digests(ctx, cl, topic, p); !errors.Is(err, errMoved) {
			break
		}
	}
	return rows, err
}

func digestOf(ctx context.Context, cl *admin.Cluster, topic string, partition, node int32, from, to int64) (admin.Digest, error) {
	q := url.Values{"topic": {topic}, "partition": {fmt.Sprint(partition)}}
	if from >= 0 {
		q.Set("from", fmt.Sprint(from))
		q.Set("to", fmt.Sprint(to))
	}
	var d admin.Digest
	n := cl.NodeByID(node)
	if n == nil {
		return d, fmt.Errorf("%s-%d: replica on unknown node %d", topic, partition, node)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute) // it reads all of the partition
	defer cancel()
	if err := getJSON(ctx, n.Admin, "/v1/digest?"+q.Encode(), &d); err != nil {
		return d, withHint(fmt.Errorf("%s-%d: node %d: %w", topic, partition, node, err),
			"every replica must be there and readable to be compared; 'chronik status' shows them")
	}
	return d, nil
}

// firstDifference bisects for the lowest offset below which the two replicas are equal.
func firstDifference(ctx context.Context, cl *admin.Cluster, topic string, partition int32, a, b verifyRow) (int64, error) {
	lo, hi := a.From, max(a.To, b.To)
	for lo+1 < hi {
		mid := lo + (hi-lo)/2
		da, err1 := digestOf(ctx, cl, topic, partition, a.Node, a.From, mid)
		db, err2 := digestOf(ctx, cl, topic, partition, b.Node, a.From, mid)
		if err := firstErr(err1, err2); err != nil {
			return 0, err
		}
		if da.SHA256 == db.SHA256 {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo, nil
}
