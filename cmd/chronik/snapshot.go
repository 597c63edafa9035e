package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"chronik/internal/admin"
	"chronik/internal/archive"
	"chronik/internal/bucket"
	"chronik/internal/ident"
	"chronik/internal/vfs"
)

func newSnapshot() *cobra.Command {
	c := &cobra.Command{Use: "snapshot", Short: "snapshots on the nodes and in the object store", Args: cobra.NoArgs}
	c.AddCommand(newSnapshotList(), newSnapshotCreate(), newSnapshotShow(), newSnapshotVerify(), newSnapshotDownload())
	return c
}

// archiveFlags say which archive a command reads: --from and --cluster, else what the running cluster uses.
type archiveFlags struct {
	b       bootstrap
	from    string
	cluster string
}

func (s *archiveFlags) register(c *cobra.Command) {
	s.b.register(c)
	c.Flags().StringVar(&s.from, "from", "", "object store to read: file:///dir or s3://bucket/prefix?endpoint=…; default: the running cluster's object_store.url")
	c.Flags().StringVar(&s.cluster, "cluster", "", "cluster id, if the object store has snapshots of several")
}

// open returns the archive and the cluster's part of it.
func (s *archiveFlags) open(ctx context.Context) (*archive.Archive, *archive.Cluster, error) {
	id := s.cluster
	if s.from == "" {
		cl, err := s.b.cluster(ctx)
		if err != nil {
			return nil, nil, err
		}
		a, err := archivedOf(ctx, cl)
		if err != nil {
			return nil, nil, err
		}
		if a.URL == "" {
			return nil, nil, withHint(errors.New("the cluster has no object store"), "--from names one; object_store.url sets one")
		}
		s.from = a.URL
		if id == "" {
			id = cl.ClusterID
		}
	}
	b, err := bucket.Open(s.from, bucket.Options{})
	if err != nil {
		return nil, nil, usagef("--from: %w", err)
	}
	a := archive.New(b)
	if id == "" {
		ids, err := a.Clusters(ctx)
		switch {
		case err != nil:
			return nil, nil, err
		case len(ids) == 0:
			return nil, nil, withHint(fmt.Errorf("there are no snapshots in %s", a), "is the URL, with its prefix, that of object_store.url?")
		case len(ids) > 1:
			return nil, nil, usagef("%s has snapshots of several clusters: --cluster %s", a, strings.Join(ids, " or --cluster "))
		}
		id = ids[0]
	}
	cl, err := a.Cluster(id)
	if err != nil {
		return nil, nil, usagef("--cluster: %w", err)
	}
	return a, cl, nil
}

// groupNamed finds a group by its id or its name.
func groupNamed(ctx context.Context, cl *archive.Cluster, name string) (ident.GroupID, error) {
	if id, err := strconv.ParseUint(name, 10, 64); err == nil {
		return ident.GroupID(id), nil
	}
	ids, err := cl.Groups(ctx)
	if err != nil {
		return 0, err
	}
	for i := len(ids) - 1; i >= 0; i-- { // of two topics of one name, the later one
		m, err := cl.Newest(ctx, ids[i], nil)
		if errors.Is(err, archive.ErrNoSnapshot) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if m.Name == name {
			return ids[i], nil
		}
	}
	return 0, withHint(fmt.Errorf("no snapshot of a group %s", name), "'chronik snapshot list' shows the groups; orders-0 is partition 0 of topic orders")
}

// pick returns a group's snapshots: of one index, or all, newest first.
func pick(ctx context.Context, cl *archive.Cluster, g ident.GroupID, index uint64) ([]archive.Ref, error) {
	refs, err := cl.Snapshots(ctx, g)
	if err != nil {
		return nil, err
	}
	if index > 0 {
		refs = slices.DeleteFunc(refs, func(r archive.Ref) bool { return uint64(r.Index) != index })
	}
	if len(refs) == 0 {
		return nil, withHint(fmt.Errorf("group %d: %w", g, archive.ErrNoSnapshot), "'chronik snapshot list' shows what there is")
	}
	return refs, nil
}

// archivedOf asks nodes, one after the other, what the object store has.
func archivedOf(ctx context.Context, cl *admin.Cluster) (*admin.Archived, error) {
	var errs []error
	for _, n := range cl.Nodes {
		var got admin.Snapshots
		actx, cancel := context.WithTimeout(ctx, adminTimeout)
		err := getJSON(actx, n.Admin, "/v1/snapshots", &got)
		cancel()
		if err == nil && got.Archived != nil {
			return got.Archived, nil
		}
		errs = append(errs, fmt.Errorf("node %d: %w", n.ID, err))
	}
	return nil, joined(errs)
}

// listedSnapshot is a row of 'snapshot list'.
type listedSnapshot struct {
	Where      string    `json:"where"` // "node 1" or "object store"
	Group      string    `json:"group"`
	GroupID    uint64    `json:"group_id"`
	Index      uint64    `json:"index"`
	Leader     bool      `json:"leader,omitempty"`
	LeaderTerm uint64    `json:"leader_term,omitempty"`
	Modified   time.Time `json:"modified,omitzero"`
	Object     string    `json:"object,omitempty"`
}

func newSnapshotList() *cobra.Command {
	var s archiveFlags
	var l listing
	c := &cobra.Command{
		Use: "list [TOPIC]", Short: "the snapshots on every node and in the object store", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var rows []listedSnapshot
			var err error
			if s.from != "" {
				rows, err = listStore(c.Context(), &s)
			} else {
				rows, err = listNodes(c.Context(), &s, c.ErrOrStderr())
			}
			if err != nil {
				return err
			}
			if len(args) > 0 {
				rows = slices.DeleteFunc(rows, func(r listedSnapshot) bool { return r.Group != args[0] && topicOf(r.Group) != args[0] })
			}
			slices.SortStableFunc(rows, func(a, b listedSnapshot) int {
				return cmp.Or(cmp.Compare(a.GroupID, b.GroupID), cmp.Compare(a.Where, b.Where), cmp.Compare(b.Index, a.Index))
			})
			return printSnapshots(c.OutOrStdout(), &l, rows)
		},
	}
	s.register(c)
	l.register(c)
	return c
}

// topicOf is a group's name without its partition.
func topicOf(group string) string {
	if i := strings.LastIndexByte(group, '-'); i > 0 {
		return group[:i]
	}
	return group
}

func printSnapshots(w io.Writer, l *listing, rows []listedSnapshot) error {
	header := []string{"GROUP", "WHERE", "INDEX", "LEADER", "MODIFIED"}
	if l.wide() {
		header = append(header, "ID", "TERM", "OBJECT")
	}
	text := make([][]string, 0, len(rows))
	for _, r := range rows {
		modified, term := "-", "-"
		if !r.Modified.IsZero() {
			modified, term = r.Modified.Format(time.RFC3339), fmt.Sprint(r.LeaderTerm)
		}
		row := []string{orDash(r.Group), r.Where, fmt.Sprint(r.Index), orDash(map[bool]string{true: "leader"}[r.Leader]), modified}
		if l.wide() {
			row = append(row, fmt.Sprint(r.GroupID), term, orDash(r.Object))
		}
		text = append(text, row)
	}
	if rows == nil {
		rows = []listedSnapshot{}
	}
	return l.print(w, map[string]any{"snapshots": rows}, header, text)
}

// listNodes asks every node, and one of them for the object store.
func listNodes(ctx context.Context, s *archiveFlags, warn io.Writer) ([]listedSnapshot, error) {
	cl, err := s.b.cluster(ctx)
	if err != nil {
		return nil, err
	}
	answers, errs := make([]admin.Snapshots, len(cl.Nodes)), make([]error, len(cl.Nodes))
	var wg sync.WaitGroup
	for i, n := range cl.Nodes {
		wg.Go(func() {
			actx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			errs[i] = getJSON(actx, n.Admin, "/v1/snapshots?archived=false", &answers[i])
		})
	}
	wg.Wait()
	var rows []listedSnapshot
	for i, n := range cl.Nodes {
		if errs[i] != nil {
			fmt.Fprintf(warn, "chronik: node %d does not answer: %v\n", n.ID, errs[i])
		}
		for _, c := range answers[i].Snapshots {
			rows = append(rows, listedSnapshot{Where: fmt.Sprintf("node %d", n.ID), Group: c.Group, GroupID: c.GroupID, Index: c.Index, Leader: c.Leader})
		}
	}
	a, err := archivedOf(ctx, cl)
	if err != nil {
		return nil, err
	}
	if a.Error != "" {
		fmt.Fprintf(warn, "chronik: the list of the object store is not whole: %s\n", a.Error)
	}
	for _, r := range a.Snapshots {
		rows = append(rows, listedSnapshot{
			Where: "object store", Group: r.Group, GroupID: r.GroupID, Index: r.Index, LeaderTerm: r.LeaderTerm, Modified: r.Modified, Object: r.Object,
		})
	}
	return rows, nil
}

// listStore lists what an object store has, without a cluster.
func listStore(ctx context.Context, s *archiveFlags) ([]listedSnapshot, error) {
	_, cl, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := cl.Groups(ctx)
	if err != nil {
		return nil, err
	}
	var rows []listedSnapshot
	for _, g := range ids {
		refs, err := cl.Snapshots(ctx, g)
		if err != nil {
			return nil, err
		}
		name := ""
		if m, err := cl.Newest(ctx, g, nil); err == nil { // without it there is no name
			name = m.Name
		}
		for _, r := range refs {
			rows = append(rows, listedSnapshot{
				Where: "object store", Group: name, GroupID: uint64(g), Index: uint64(r.Index), LeaderTerm: uint64(r.LeaderTerm),
				Modified: r.Modified.UTC(), Object: r.Object,
			})
		}
	}
	return rows, nil
}

// createdSnapshot is a row of 'snapshot create'.
type createdSnapshot struct {
	Node int32 `json:"node"`
	admin.Checkpoint
}

func newSnapshotCreate() *cobra.Command {
	var b bootstrap
	var l listing
	var partition int32
	var upload bool
	var limit time.Duration
	c := &cobra.Command{
		Use: "create [TOPIC]", Short: "take snapshots on every node now and wait until they are durable", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{}
			if len(args) > 0 {
				q.Set("topic", args[0])
			}
			if partition >= 0 {
				if len(args) == 0 {
					return usagef("--partition wants a topic")
				}
				q.Set("partition", fmt.Sprint(partition))
			}
			if upload {
				q.Set("upload", "true")
			}
			ctx, cancel := context.WithTimeout(c.Context(), limit)
			defer cancel()
			return createSnapshots(ctx, c.OutOrStdout(), &b, &l, q)
		},
	}
	b.register(c)
	l.register(c)
	c.Flags().Int32Var(&partition, "partition", -1, "one partition of the topic")
	c.Flags().BoolVar(&upload, "upload", false, "and wait until they are in the object store")
	c.Flags().DurationVar(&limit, "timeout", 10*time.Minute, "how long to wait")
	return c
}

func createSnapshots(ctx context.Context, w io.Writer, b *bootstrap, l *listing, q url.Values) error {
	cl, err := b.cluster(ctx)
	if err != nil {
		return err
	}
	answers, errs := make([]admin.Snapshots, len(cl.Nodes)), make([]error, len(cl.Nodes))
	var wg sync.WaitGroup
	for i, n := range cl.Nodes {
		wg.Go(func() { errs[i] = postJSON(ctx, n.Admin, "/v1/snapshots?"+q.Encode(), &answers[i]) })
	}
	wg.Wait()
	rows := []createdSnapshot{}
	var text [][]string
	var failed []error
	for i, n := range cl.Nodes {
		if notFound := (*statusError)(nil); errors.As(errs[i], &notFound) && notFound.code == http.StatusNotFound && len(cl.Nodes) > 1 && !strings.Contains(notFound.text, "object store") {
			continue // no replica there
		}
		if errs[i] != nil {
			failed = append(failed, fmt.Errorf("node %d: %w", n.ID, errs[i]))
		}
		for _, r := range answers[i].Snapshots {
			rows = append(rows, createdSnapshot{Node: n.ID, Checkpoint: r})
			uploaded := "-"
			if r.Uploaded > 0 {
				uploaded = fmt.Sprint(r.Uploaded)
			}
			text = append(text, []string{r.Group, fmt.Sprint(n.ID), fmt.Sprint(r.Index), orDash(map[bool]string{true: "leader"}[r.Leader]), uploaded, orDash(r.Error)})
			if r.Error != "" {
				failed = append(failed, fmt.Errorf("%s on node %d: %s", r.Group, n.ID, r.Error))
			}
		}
	}
	if len(rows) == 0 && len(failed) == 0 {
		return withHint(fmt.Errorf("no replica of %s", q.Get("topic")), "'chronik topic list' shows the topics")
	}
	if err := l.print(w, map[string]any{"snapshots": rows}, []string{"GROUP", "NODE", "INDEX", "LEADER", "UPLOADED", "ERROR"}, text); err != nil {
		return err
	}
	if len(failed) > 0 {
		return withHint(joined(failed), "the node's log says more; 'chronik status' shows the nodes")
	}
	return nil
}

// shownSnapshot is the answer of 'snapshot show'.
type shownSnapshot struct {
	Object         string      `json:"object"`
	Cluster        string      `json:"cluster"`
	Group          string      `json:"group"`
	GroupID        uint64      `json:"group_id"`
	Topic          string      `json:"topic"`
	TopicID        string      `json:"topic_id"`
	Partition      int32       `json:"partition"`
	Index          uint64      `json:"index"`
	Term           uint64      `json:"term"`
	LeaderTerm     uint64      `json:"leader_term"`
	Node           int32       `json:"node"`
	CreatedAt      time.Time   `json:"created_at"`
	LogStartOffset int64       `json:"log_start_offset"` // -1: none
	NextOffset     int64       `json:"next_offset"`      // -1: none
	Bytes          int64       `json:"bytes"`
	Objects        int         `json:"objects"`
	Files          []shownFile `json:"files"`
}

type shownFile struct {
	Name    string `json:"name"`
	Bytes   int64  `json:"bytes"`
	Extents int    `json:"extents"`
}

func newSnapshotShow() *cobra.Command {
	var s archiveFlags
	var l listing
	var index uint64
	c := &cobra.Command{
		Use: "show GROUP", Short: "what a snapshot in the object store consists of", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			_, cl, err := s.open(c.Context())
			if err != nil {
				return err
			}
			g, err := groupNamed(c.Context(), cl, args[0])
			if err != nil {
				return err
			}
			refs, err := pick(c.Context(), cl, g, index)
			if err != nil {
				return err
			}
			m, err := cl.Manifest(c.Context(), refs[0])
			if err != nil {
				return withHint(err, "--index shows an older one, 'chronik snapshot list' what there is")
			}
			return printSnapshot(c.OutOrStdout(), &l, refs[0], m)
		},
	}
	s.register(c)
	l.register(c)
	c.Flags().Uint64Var(&index, "index", 0, "the snapshot at this index; default: the newest")
	return c
}

func printSnapshot(w io.Writer, l *listing, r archive.Ref, m *archive.Manifest) error {
	v := shownSnapshot{
		Object: r.Object, Cluster: m.Cluster, Group: m.Name, GroupID: uint64(m.Group), Topic: m.Topic, TopicID: m.TopicID, Partition: m.Partition,
		Index: uint64(m.Index), Term: uint64(m.Term), LeaderTerm: uint64(m.LeaderTerm), Node: int32(m.Node), CreatedAt: m.CreatedAt,
		LogStartOffset: m.LogStartOffset, NextOffset: m.NextOffset, Bytes: m.Bytes(), Objects: len(m.Objects),
	}
	for i := range m.Files {
		v.Files = append(v.Files, shownFile{m.Files[i].Name, m.Files[i].Size, len(m.Files[i].Extents)})
	}
	if l.asJSON() {
		return l.print(w, v, nil, nil)
	}
	rows := [][]string{
		{"object", v.Object},
		{"cluster", v.Cluster},
		{"group", fmt.Sprintf("%s (%d)", v.Group, v.GroupID)},
		{"index", fmt.Sprintf("%d, term %d", v.Index, v.Term)},
		{"uploaded by", fmt.Sprintf("node %d, leader in term %d", v.Node, v.LeaderTerm)},
		{"created", v.CreatedAt.Format(time.RFC3339)},
	}
	if v.NextOffset >= 0 {
		rows = append(rows, []string{"offsets", fmt.Sprintf("%d to before %d", v.LogStartOffset, v.NextOffset)})
	}
	rows = append(rows, []string{"bytes", fmt.Sprintf("%d in %d files, from %d objects", v.Bytes, len(v.Files), v.Objects)})
	for _, f := range v.Files {
		rows = append(rows, []string{"", fmt.Sprintf("%12d  %s", f.Bytes, f.Name)})
	}
	return table(w, []string{"SNAPSHOT", ""}, rows)
}

// verifiedSnapshot is a row of 'snapshot verify'.
type verifiedSnapshot struct {
	Group   string   `json:"group"`
	GroupID uint64   `json:"group_id"`
	Index   uint64   `json:"index"`
	Bytes   int64    `json:"bytes"`
	Good    bool     `json:"good"`
	Errors  []string `json:"errors,omitempty"`
}

func newSnapshotVerify() *cobra.Command {
	var s archiveFlags
	var l listing
	var index uint64
	var all bool
	c := &cobra.Command{
		Use: "verify [GROUP]", Short: "read snapshots in the object store and compare every byte with its hash", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if all && index > 0 || index > 0 && len(args) == 0 {
				return usagef("--index wants a group, and no --all")
			}
			rows, err := verifySnapshots(c.Context(), &s, args, index, all)
			if err != nil {
				return err
			}
			var text [][]string
			var bad []error
			for _, r := range rows {
				verdict := "good"
				if !r.Good {
					verdict = strings.Join(r.Errors, "; ")
					bad = append(bad, fmt.Errorf("%s at index %d: %s", cmp.Or(r.Group, fmt.Sprint(r.GroupID)), r.Index, verdict))
				}
				text = append(text, []string{orDash(r.Group), fmt.Sprint(r.GroupID), fmt.Sprint(r.Index), fmt.Sprint(r.Bytes), verdict})
			}
			if err := l.print(c.OutOrStdout(), map[string]any{"snapshots": rows}, []string{"GROUP", "ID", "INDEX", "BYTES", "VERDICT"}, text); err != nil {
				return err
			}
			if len(bad) > 0 {
				return withHint(fmt.Errorf("damaged snapshots: %w", joined(bad)),
					"'chronik snapshot create --upload' makes new ones; older ones may be good: verify --all")
			}
			return nil
		},
	}
	s.register(c)
	l.register(c)
	c.Flags().Uint64Var(&index, "index", 0, "the snapshot at this index; default: the newest")
	c.Flags().BoolVar(&all, "all", false, "every snapshot, not only the newest")
	return c
}

func verifySnapshots(ctx context.Context, s *archiveFlags, args []string, index uint64, all bool) ([]verifiedSnapshot, error) {
	a, cl, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := cl.Groups(ctx)
	if len(args) > 0 && err == nil {
		ids = make([]ident.GroupID, 1)
		ids[0], err = groupNamed(ctx, cl, args[0])
	}
	if err != nil {
		return nil, err
	}
	rows := []verifiedSnapshot{}
	for _, g := range ids {
		refs, err := pick(ctx, cl, g, index)
		if errors.Is(err, archive.ErrNoSnapshot) && len(args) == 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !all {
			refs = refs[:1]
		}
		for _, r := range refs {
			row, err := verifySnapshot(ctx, cl, r)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 { // a bucket that lost everything is not good
		return nil, withHint(fmt.Errorf("nothing to verify: %s has no snapshot of cluster %s", a, cl.ID()), "are the URL, with its prefix, and --cluster right?")
	}
	return rows, nil
}

// maxToldDamages bounds what is told of one snapshot.
const maxToldDamages = 10

func verifySnapshot(ctx context.Context, cl *archive.Cluster, r archive.Ref) (verifiedSnapshot, error) {
	row := verifiedSnapshot{GroupID: uint64(r.Group), Index: uint64(r.Index)}
	m, err := cl.Manifest(ctx, r)
	if errors.Is(err, archive.ErrCorrupt) || errors.Is(err, archive.ErrIncomplete) {
		row.Errors = []string{err.Error()}
		return row, nil
	}
	if err != nil {
		return row, err
	}
	row.Group, row.Bytes = m.Name, m.Bytes()
	v, err := cl.Verify(ctx, m, func(d archive.Damage) {
		if len(row.Errors) < maxToldDamages {
			row.Errors = append(row.Errors, d.Err.Error())
		}
	})
	if more := v.Damaged - len(row.Errors); more > 0 {
		row.Errors = append(row.Errors, fmt.Sprintf("and %d more chunks", more))
	}
	row.Good = v.Damaged == 0
	return row, err
}

func newSnapshotDownload() *cobra.Command {
	var s archiveFlags
	var index uint64
	var to string
	c := &cobra.Command{
		Use: "download GROUP", Short: "bring a snapshot from the object store into a directory, all or nothing", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if to == "" {
				return usagef("--to names the directory to make")
			}
			_, cl, err := s.open(c.Context())
			if err != nil {
				return err
			}
			g, err := groupNamed(c.Context(), cl, args[0])
			if err != nil {
				return err
			}
			dir, err := filepath.Abs(to)
			if err != nil {
				return err
			}
			m, err := downloadSnapshot(c, cl, g, index, dir)
			if errors.Is(err, archive.ErrExists) {
				return withHint(err, "--to names a directory that is not there yet")
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s at index %d: %d bytes in %d files in %s\n", m.Name, m.Index, m.Bytes(), len(m.Files), dir)
			return nil
		},
	}
	s.register(c)
	c.Flags().Uint64Var(&index, "index", 0, "the snapshot at this index; default: the newest that is whole")
	c.Flags().StringVar(&to, "to", "", "the directory to make")
	return c
}

func downloadSnapshot(c *cobra.Command, cl *archive.Cluster, g ident.GroupID, index uint64, dir string) (*archive.Manifest, error) {
	ctx := c.Context()
	if index == 0 {
		return cl.DownloadNewest(ctx, g, vfs.Default, dir, func(r archive.Ref, err error) {
			fmt.Fprintf(c.ErrOrStderr(), "chronik: the snapshot at index %d is damaged, going back to the one before it: %v\n", r.Index, err)
		})
	}
	refs, err := pick(ctx, cl, g, index)
	if err != nil {
		return nil, err
	}
	m, err := cl.Manifest(ctx, refs[0])
	if err != nil {
		return nil, err
	}
	return m, cl.Download(ctx, m, vfs.Default, dir)
}
