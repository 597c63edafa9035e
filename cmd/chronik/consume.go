package main

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
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
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args[0]) },
	}
	f.b.register(c)
	c.Flags().BoolVar(&f.fromBeginning, "from-beginning", false, "start at the first readable record")
	c.Flags().BoolVar(&f.exitAtEnd, "exit-at-end", false, "stop at the high watermark the partitions had at the start")
	c.Flags().StringVar(&f.group, "group", "", "consume as a member of this group and commit")
	c.Flags().Int32Var(&f.partition, "partition", -1, "only this partition")
	c.Flags().Int64Var(&f.offset, "offset", -1, "start here (with --partition)")
	c.Flags().StringVar(&f.isolation, "isolation", "read_uncommitted", "read_uncommitted or read_committed")
	c.Flags().StringVar(&f.format, "format", "%v", `what to print of a record, franz-go's layout: %v value, %k key, %t topic, %p partition, %o offset, %d timestamp`)
	c.Flags().Int64Var(&f.max, "max", 0, "stop after this many records (0: no limit)")
	return c
}

func (f *consumeFlags) options(topic string) ([]kgo.Opt, error) {
	start := kgo.NewOffset().AtEnd()
	if f.fromBeginning || f.group != "" {
		start = kgo.NewOffset().AtStart()
	}
	opts := []kgo.Opt{kgo.ConsumeResetOffset(start), kgo.FetchMaxWait(500 * time.Millisecond)}
	switch f.isolation {
	case "read_uncommitted":
	case "read_committed":
		opts = append(opts, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	default:
		return nil, usagef("unknown isolation %q", f.isolation)
	}
	switch {
	case f.group != "" && f.partition >= 0:
		return nil, usagef("--group and --partition exclude each other")
	case f.group != "":
		opts = append(opts, kgo.ConsumerGroup(f.group), kgo.ConsumeTopics(topic))
	case f.partition >= 0:
		if f.offset >= 0 {
			start = kgo.NewOffset().At(f.offset)
		}
		opts = append(opts, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {f.partition: start}}))
	case f.offset >= 0:
		return nil, usagef("--offset needs --partition")
	default:
		opts = append(opts, kgo.ConsumeTopics(topic))
	}
	return opts, nil
}

func (f *consumeFlags) run(c *cobra.Command, topic string) error {
	formatter, err := kgo.NewRecordFormatter(f.format + "\n")
	if err != nil {
		return usagef("--format: %w", err)
	}
	opts, err := f.options(topic)
	if err != nil {
		return err
	}
	cl, err := f.b.client(c.Context(), opts...)
	if err != nil {
		return err
	}
	defer cl.Close()
	var ends *ending
	if f.exitAtEnd {
		if ends, err = f.ending(c.Context(), kadm.NewClient(cl), topic); err != nil {
			return err
		}
	}
	out := bufio.NewWriterSize(c.OutOrStdout(), 1<<16)
	err = f.loop(c.Context(), cl, ends, func(r *kgo.Record, buf []byte) ([]byte, error) {
		buf = formatter.AppendRecord(buf, r)
		_, err := out.Write(buf)
		return buf[:0], err
	}, out.Flush)
	if isCanceled(err) {
		err = nil
	}
	return firstErr(err, out.Flush(), f.commit(cl))
}

func (f *consumeFlags) commit(cl *kgo.Client) error {
	if f.group == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return cl.CommitUncommittedOffsets(ctx)
}

// ending knows how far each partition is still to be read.
type ending struct{ left map[int32]int64 } // partition → exclusive end offset

func (f *consumeFlags) ending(ctx context.Context, adm *kadm.Client, topic string) (*ending, error) {
	starts, err1 := adm.ListStartOffsets(ctx, topic)
	ends, err2 := adm.ListEndOffsets(ctx, topic)
	if err := firstErr(err1, err2, starts.Error(), ends.Error()); err != nil {
		return nil, fmt.Errorf("topic %s: %w", topic, err)
	}
	var committed kadm.OffsetResponses
	if f.group != "" {
		var err error
		if committed, err = adm.FetchOffsets(ctx, f.group); err != nil {
			return nil, err
		}
	}
	e := &ending{left: map[int32]int64{}}
	ends.Each(func(o kadm.ListedOffset) {
		from := int64(0)
		if s, ok := starts.Lookup(topic, o.Partition); ok {
			from = s.Offset
		}
		if cm, ok := committed.Lookup(topic, o.Partition); ok && cm.At > from {
			from = cm.At
		}
		if f.offset > from {
			from = f.offset
		}
		if (f.partition < 0 || f.partition == o.Partition) && from < o.Offset {
			e.left[o.Partition] = o.Offset
		}
	})
	return e, nil
}

func (e *ending) saw(r *kgo.Record) {
	if end, ok := e.left[r.Partition]; ok && r.Offset+1 >= end {
		delete(e.left, r.Partition)
	}
}

func (f *consumeFlags) loop(ctx context.Context, cl *kgo.Client, ends *ending, emit func(*kgo.Record, []byte) ([]byte, error), flush func() error) error {
	var buf []byte
	var n int64
	for ends == nil || len(ends.left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, fe := range fetches.Errors() {
			return fmt.Errorf("partition %s-%s: %w", fe.Topic, strconv.Itoa(int(fe.Partition)), fe.Err)
		}
		for _, r := range fetches.Records() {
			var err error
			if buf, err = emit(r, buf); err != nil {
				return err
			}
			if ends != nil {
				ends.saw(r)
			}
			if n++; f.max > 0 && n >= f.max {
				return nil
			}
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}
