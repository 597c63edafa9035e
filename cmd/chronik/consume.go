package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"
)

type consumeFlags struct {
	b             bootstrap
	fromBeginning bool
	exitAtEnd     bool
	group         string
	partition     int32
	offset        int64
	isolation     string
	format        string
	max           int64
}

func newConsume() *cobra.Command {
	var f consumeFlags
	c := &cobra.Command{
		Use: "consume TOPIC", Short: "print one record a line", Args: cobra.ExactArgs(1),
		Long: `Print one record a line, beginning with those written from now on.

With --group, offsets are committed once their records are written out; a group without offsets starts at the first readable
record. With --exit-at-end a member of a group stops when the whole group has come that far.`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := f.check(c); err != nil {
				return err
			}
			return f.run(c, args[0])
		},
	}
	f.b.register(c)
	c.Flags().BoolVar(&f.fromBeginning, "from-beginning", false, "start at the first readable record")
	c.Flags().BoolVar(&f.exitAtEnd, "exit-at-end", false, "stop at the high watermark the partitions had at the start")
	c.Flags().StringVar(&f.group, "group", "", "consume as a member of this group and commit")
	c.Flags().Int32Var(&f.partition, "partition", -1, "only this partition")
	c.Flags().Int64Var(&f.offset, "offset", -1, "start here (with --partition)")
	c.Flags().StringVar(&f.isolation, "isolation", "read_uncommitted", "read_uncommitted or read_committed")
	c.Flags().StringVar(&f.format, "format", "%v", `what to print of a record: %v value, %k key, %t topic, %p partition, %o offset, %d timestamp, \t tab (franz-go's layout)`)
	c.Flags().Int64Var(&f.max, "max", 0, "stop after this many records (0: no limit)")
	return c
}

func (f *consumeFlags) check(c *cobra.Command) error {
	given := c.Flags().Changed
	switch {
	case f.isolation != "read_uncommitted" && f.isolation != "read_committed":
		return usagef("unknown isolation %q, want read_uncommitted or read_committed", f.isolation)
	case given("group") && f.group == "":
		return usagef("--group is empty")
	case given("group") && given("partition"):
		return usagef("--group and --partition exclude each other")
	case given("offset") && !given("partition"):
		return usagef("--offset needs --partition")
	case given("offset") && f.fromBeginning:
		return usagef("--offset and --from-beginning exclude each other")
	case given("partition") && f.partition < 0:
		return usagef("--partition %d: want 0 or higher", f.partition)
	case given("offset") && f.offset < 0:
		return usagef("--offset %d: want 0 or higher", f.offset)
	case f.max < 0:
		return usagef("--max %d: want 0 or higher", f.max)
	}
	return nil
}

// span is what is to be read of a partition. to is exclusive.
type span struct{ from, to int64 }

// spans asks where each partition begins and ends now, and clips that to what was
// committed or asked for. Partitions with nothing in between are in it, too.
func (f *consumeFlags) spans(ctx context.Context, adm *kadm.Client, topic string) (map[int32]span, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	list := adm.ListEndOffsets
	if f.isolation == "read_committed" {
		list = adm.ListCommittedOffsets
	}
	starts, err1 := adm.ListStartOffsets(ctx, topic)
	ends, err2 := list(ctx, topic)
	if err := firstErr(err1, err2, starts.Error(), ends.Error()); err != nil {
		return nil, fmt.Errorf("topic %s: %w", topic, err)
	}
	committed, err := f.committed(ctx, adm)
	if err != nil {
		return nil, err
	}
	out := map[int32]span{}
	ends.Each(func(o kadm.ListedOffset) {
		if f.partition >= 0 && f.partition != o.Partition {
			return
		}
		s := span{from: o.Offset, to: o.Offset}
		if start, ok := starts.Lookup(topic, o.Partition); ok && (f.fromBeginning || f.group != "" || f.offset >= 0) {
			s.from = max(start.Offset, f.offset)
		}
		if cm, ok := committed.Lookup(topic, o.Partition); ok {
			s.from = max(s.from, cm.At)
		}
		out[o.Partition] = s
	})
	return out, nil
}

func (f *consumeFlags) committed(ctx context.Context, adm *kadm.Client) (kadm.OffsetResponses, error) {
	if f.group == "" {
		return nil, nil
	}
	offsets, err := adm.FetchOffsets(ctx, f.group)
	if err := firstErr(err, offsets.Error()); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("group %s: %w", f.group, err)
	}
	return offsets, nil
}

// options says what to read. left is what --exit-at-end still wants, else nil.
func (f *consumeFlags) options(topic string, all, left map[int32]span) []kgo.Opt {
	start := kgo.NewOffset().AtEnd()
	if f.fromBeginning || f.group != "" || f.offset >= 0 {
		start = kgo.NewOffset().AtStart()
	}
	opts := []kgo.Opt{kgo.ConsumeResetOffset(start), kgo.FetchMaxWait(500 * time.Millisecond)}
	if f.isolation == "read_committed" {
		opts = append(opts, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	}
	exact := left
	if f.partition >= 0 {
		exact = all
	}
	switch {
	case f.group != "":
		return append(opts, kgo.ConsumerGroup(f.group), kgo.ConsumeTopics(topic), kgo.AutoCommitMarks())
	case exact != nil:
		at := map[int32]kgo.Offset{}
		for p, s := range exact {
			at[p] = kgo.NewOffset().At(s.from)
		}
		return append(opts, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}))
	}
	return append(opts, kgo.ConsumeTopics(topic))
}

func (f *consumeFlags) run(c *cobra.Command, topic string) error {
	formatter, err := kgo.NewRecordFormatter(f.format + "\n")
	if err != nil {
		return usagef("--format: %w", err)
	}
	plan, err := f.plan(c, topic)
	if err != nil || f.exitAtEnd && len(plan.left) == 0 {
		return err
	}
	cl, err := f.b.client(c.Context(), plan.opts...)
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	if file, ok := c.OutOrStdout().(*output); ok {
		go file.watch(cancel)
	}
	r := &reading{
		consumeFlags: f, topic: topic, cl: cl, adm: kadm.NewClient(cl), left: plan.left,
		format: formatter, out: bufio.NewWriterSize(c.OutOrStdout(), 1<<16),
	}
	err = r.loop(ctx)
	if isCanceled(err) {
		err = nil // the user's way to end it
	}
	return firstErr(err, r.emitted(), r.commit())
}

// plan is what a consume command is going to do.
type plan struct {
	opts []kgo.Opt
	left map[int32]span // nil without --exit-at-end
}

func (f *consumeFlags) plan(c *cobra.Command, topic string) (*plan, error) {
	cl, err := f.b.client(c.Context())
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	n, err := awaitTopic(c.Context(), cl, topic, false)
	if err != nil {
		return nil, err
	}
	if int(f.partition) >= n {
		return nil, fmt.Errorf("topic %s has no partition %d: it has %d", topic, f.partition, n)
	}
	p := &plan{}
	if !f.exitAtEnd && f.partition < 0 {
		p.opts = f.options(topic, nil, nil)
		return p, nil
	}
	all, err := f.spans(c.Context(), kadm.NewClient(cl), topic)
	if err != nil {
		return nil, err
	}
	if s, ok := all[f.partition]; ok && f.offset > s.to {
		return nil, withHint(fmt.Errorf("offset %d is beyond the end of %s-%d, which is %d", f.offset, topic, f.partition, s.to),
			"without --offset, consume waits for new records")
	}
	if f.exitAtEnd {
		p.left = map[int32]span{}
		for id, s := range all {
			if s.from < s.to {
				p.left[id] = s
			}
		}
	}
	if f.exitAtEnd && f.group == "" && f.offset < 0 && !f.fromBeginning {
		fmt.Fprintln(c.ErrOrStderr(), "chronik: hint: the beginning of what comes now is the end: --from-beginning reads what is there")
	}
	p.opts = f.options(topic, all, p.left)
	return p, nil
}

// reading is a consume command at work.
type reading struct {
	*consumeFlags
	topic  string
	cl     *kgo.Client
	adm    *kadm.Client
	left   map[int32]span
	format *kgo.RecordFormatter
	out    *bufio.Writer
	shown  []*kgo.Record // written, perhaps still in out
	count  int64
}

// emitted writes out what was printed; only then may it be committed.
func (r *reading) emitted() error {
	if err := r.out.Flush(); err != nil {
		return err
	}
	if r.group != "" {
		r.cl.MarkCommitRecords(r.shown...)
	}
	r.shown = r.shown[:0]
	return nil
}

func (r *reading) commit() error {
	if r.group == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.cl.CommitMarkedOffsets(ctx); err != nil {
		return fmt.Errorf("commit of group %s: %w", r.group, err)
	}
	return nil
}

// idle is how long --exit-at-end waits for records before it asks whether any are to come.
const idle = time.Second

func (r *reading) loop(ctx context.Context) error {
	for r.left == nil || len(r.left) > 0 {
		fetches, err := r.poll(ctx)
		if err != nil {
			return err
		}
		if fetches.NumRecords() == 0 && r.left != nil {
			if err := r.look(ctx); err != nil {
				return err
			}
		}
		enough, err := r.print(fetches)
		if err := firstErr(err, r.emitted()); err != nil || enough {
			return err
		}
	}
	return nil
}

// poll waits for records; with --exit-at-end no longer than idle. The client
// tries again what may pass, and tells what does not.
func (r *reading) poll(ctx context.Context) (kgo.Fetches, error) {
	pctx := ctx
	if r.left != nil {
		var cancel context.CancelFunc
		pctx, cancel = context.WithTimeout(ctx, idle)
		defer cancel()
	}
	fetches := r.cl.PollFetches(pctx)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, fe := range fetches.Errors() {
		lost := (*kgo.ErrDataLoss)(nil)
		switch {
		case errors.Is(fe.Err, context.DeadlineExceeded), errors.As(fe.Err, &lost), kerr.IsRetriable(fe.Err), kgo.IsRetryableBrokerErr(fe.Err):
		default:
			return nil, fmt.Errorf("%s-%d: %w", fe.Topic, fe.Partition, fe.Err)
		}
	}
	return fetches, nil
}

// look finds out what will not come any more: retention or deletion took it, or
// another member of the group has read it.
func (r *reading) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	starts, err := r.adm.ListStartOffsets(ctx, r.topic)
	if err := firstErr(err, starts.Error()); err != nil {
		return fmt.Errorf("topic %s: %w", r.topic, err)
	}
	committed, err := r.committed(ctx, r.adm)
	if err != nil {
		return err
	}
	for p, s := range r.left {
		start, ok := starts.Lookup(r.topic, p)
		cm, ok2 := committed.Lookup(r.topic, p)
		if ok && start.Offset >= s.to || ok2 && cm.At >= s.to {
			delete(r.left, p)
		}
	}
	return nil
}

// print formats what was fetched, up to the ends that --exit-at-end knows and up
// to --max records.
func (r *reading) print(fetches kgo.Fetches) (enough bool, err error) {
	var buf []byte
	for iter := fetches.RecordIter(); !iter.Done(); {
		rec := iter.Next()
		if r.left != nil {
			s, wanted := r.left[rec.Partition]
			if !wanted || rec.Offset >= s.to {
				delete(r.left, rec.Partition)
				continue
			}
			if rec.Offset+1 == s.to {
				delete(r.left, rec.Partition)
			}
		}
		buf = r.format.AppendRecord(buf[:0], rec)
		if _, err := r.out.Write(buf); err != nil {
			return false, err
		}
		r.shown = append(r.shown, rec)
		if r.count++; r.max > 0 && r.count >= r.max {
			return true, nil
		}
	}
	return false, nil
}

// watch calls gone when the reader of a pipe went away: without it, that would
// show only when the next record is written.
func (o *output) watch(gone func()) {
	f, ok := o.w.(*os.File)
	if !ok {
		return
	}
	fds := []unix.PollFd{{Fd: int32(f.Fd())}}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && fds[0].Revents&unix.POLLERR != 0 {
			gone()
		}
		return
	}
}

var _ io.Writer = (*output)(nil)
