package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

func newTopic() *cobra.Command {
	var b bootstrap
	c := &cobra.Command{Use: "topic", Short: "create, list, describe, alter and delete topics", Args: cobra.NoArgs}
	b.register(c)
	c.AddCommand(newTopicCreate(&b), newTopicList(&b), newTopicDescribe(&b), newTopicAlter(&b), newTopicDelete(&b))
	return c
}

// parseConfigs reads k=v pairs.
func parseConfigs(pairs []string) (map[string]*string, error) {
	configs := make(map[string]*string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, usagef("config %q: want key=value", p)
		}
		configs[k] = &v
	}
	return configs, nil
}

func newTopicCreate(b *bootstrap) *cobra.Command {
	var partitions int32
	var rf int16
	var configs []string
	var ifNotExists bool
	c := &cobra.Command{
		Use: "create TOPIC", Short: "create a topic", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			kv, err := parseConfigs(configs)
			if err != nil {
				return err
			}
			if c.Flags().Changed("partitions") && partitions < 1 && partitions != -1 {
				return usagef("--partitions %d: want 1 or higher", partitions)
			}
			if c.Flags().Changed("replication-factor") && rf < 1 && rf != -1 {
				return usagef("--replication-factor %d: want 1 or higher", rf)
			}
			return b.with(c, func(ctx context.Context, adm *kadm.Client) error {
				r, err := adm.CreateTopic(ctx, partitions, rf, kv, args[0])
				switch {
				case errors.Is(err, kerr.TopicAlreadyExists) && ifNotExists:
					fmt.Fprintf(c.OutOrStdout(), "%s exists\n", args[0])
					return nil
				case err != nil:
					return brokerError("create topic "+args[0], err, r.ErrMessage)
				}
				fmt.Fprintf(c.OutOrStdout(), "created %s: %d partitions, replication factor %d\n", r.Topic, r.NumPartitions, r.ReplicationFactor)
				return nil
			})
		},
	}
	c.Flags().Int32Var(&partitions, "partitions", -1, "number of partitions (-1: the cluster's default)")
	c.Flags().Int16Var(&rf, "replication-factor", -1, "replicas of each partition (-1: the cluster's default)")
	c.Flags().StringArrayVar(&configs, "config", nil, "topic config key=value, repeatable")
	c.Flags().BoolVar(&ifNotExists, "if-not-exists", false, "succeed when the topic exists")
	return c
}

type topicRow struct {
	Topic             string `json:"topic"`
	ID                string `json:"id"`
	Partitions        int    `json:"partitions"`
	ReplicationFactor int    `json:"replication_factor"`
	Internal          bool   `json:"internal"`
}

func newTopicList(b *bootstrap) *cobra.Command {
	var l listing
	c := &cobra.Command{
		Use: "list", Short: "list topics", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return b.with(c, func(ctx context.Context, adm *kadm.Client) error {
				topics, err := adm.ListTopicsWithInternal(ctx)
				if err != nil {
					return err
				}
				return listTopics(c.OutOrStdout(), &l, topics)
			})
		},
	}
	l.register(c)
	return c
}

func listTopics(w io.Writer, l *listing, topics kadm.TopicDetails) error {
	list := []topicRow{}
	var rows [][]string
	for _, t := range topics.Sorted() {
		r := topicRow{Topic: t.Topic, ID: t.ID.String(), Partitions: len(t.Partitions), ReplicationFactor: t.Partitions.NumReplicas(), Internal: t.IsInternal}
		list = append(list, r)
		row := []string{r.Topic, strconv.Itoa(r.Partitions), strconv.Itoa(r.ReplicationFactor)}
		if l.wide() {
			row = append(row, r.ID, strconv.FormatBool(r.Internal))
		}
		rows = append(rows, row)
	}
	header := []string{"TOPIC", "PARTITIONS", "REPLICAS"}
	if l.wide() {
		header = append(header, "ID", "INTERNAL")
	}
	return l.print(w, list, header, rows)
}

type partitionRow struct {
	Partition   int32   `json:"partition"`
	Leader      int32   `json:"leader"`
	LeaderEpoch int32   `json:"leader_epoch"`
	Replicas    []int32 `json:"replicas"`
	ISR         []int32 `json:"isr"`
	Start       int64   `json:"log_start_offset"`
	End         int64   `json:"high_watermark"`
}

func newTopicDescribe(b *bootstrap) *cobra.Command {
	var l listing
	c := &cobra.Command{
		Use: "describe TOPIC", Short: "show a topic's partitions and configs", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return b.with(c, func(ctx context.Context, adm *kadm.Client) error {
				return describeTopic(ctx, c.OutOrStdout(), adm, &l, args[0])
			})
		},
	}
	l.register(c)
	return c
}

func describeTopic(ctx context.Context, w io.Writer, adm *kadm.Client, l *listing, topic string) error {
	details, err := adm.ListTopics(ctx, topic)
	if err != nil {
		return err
	}
	t := details[topic]
	if t.Err != nil {
		return fmt.Errorf("topic %s: %w", topic, t.Err)
	}
	starts, err1 := adm.ListStartOffsets(ctx, topic)
	ends, err2 := adm.ListEndOffsets(ctx, topic)
	configs, err3 := adm.DescribeTopicConfigs(ctx, topic)
	if err := firstErr(err1, err2, err3); err != nil {
		return err
	}
	list := []partitionRow{}
	var rows [][]string
	for _, p := range t.Partitions.Sorted() {
		s, _ := starts.Lookup(topic, p.Partition)
		e, _ := ends.Lookup(topic, p.Partition)
		r := partitionRow{p.Partition, p.Leader, p.LeaderEpoch, p.Replicas, p.ISR, s.Offset, e.Offset}
		list = append(list, r)
		rows = append(rows, []string{
			fmt.Sprint(r.Partition), fmt.Sprint(r.Leader), fmt.Sprint(r.LeaderEpoch), fmt.Sprint(r.Replicas), fmt.Sprint(r.ISR), fmt.Sprint(r.Start), fmt.Sprint(r.End),
		})
	}
	set := map[string]string{}
	for _, rc := range configs {
		for _, cfg := range rc.Configs {
			if cfg.Source.String() == "DYNAMIC_TOPIC_CONFIG" || l.wide() {
				set[cfg.Key] = cfg.MaybeValue()
			}
		}
	}
	value := map[string]any{"topic": topic, "id": t.ID.String(), "partitions": list, "configs": set}
	if err := l.print(w, value, []string{"PARTITION", "LEADER", "EPOCH", "REPLICAS", "ISR", "START", "END"}, rows); err != nil || l.asJSON() {
		return err
	}
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(w, "config %s=%s\n", k, set[k])
	}
	return nil
}

func newTopicAlter(b *bootstrap) *cobra.Command {
	var set, del []string
	var partitions int
	c := &cobra.Command{
		Use: "alter TOPIC", Short: "set or delete topic configs, or add partitions", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			kv, err := parseConfigs(set)
			if err != nil {
				return err
			}
			if c.Flags().Changed("partitions") && partitions < 1 {
				return usagef("--partitions %d: want 1 or higher", partitions)
			}
			if len(kv)+len(del) == 0 && partitions == 0 {
				return usagef("nothing to alter: give --config, --delete-config or --partitions")
			}
			var changes []kadm.AlterConfig
			for k, v := range kv {
				changes = append(changes, kadm.AlterConfig{Op: kadm.SetConfig, Name: k, Value: v})
			}
			for _, k := range del {
				changes = append(changes, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: k})
			}
			err = b.with(c, func(ctx context.Context, adm *kadm.Client) error {
				return alterTopic(ctx, adm, args[0], changes, partitions)
			})
			if err == nil {
				fmt.Fprintf(c.OutOrStdout(), "altered %s\n", args[0])
			}
			return err
		},
	}
	c.Flags().StringArrayVar(&set, "config", nil, "set key=value, repeatable")
	c.Flags().StringArrayVar(&del, "delete-config", nil, "return key to its default, repeatable")
	c.Flags().IntVar(&partitions, "partitions", 0, "raise the number of partitions to this")
	return c
}

func alterTopic(ctx context.Context, adm *kadm.Client, topic string, changes []kadm.AlterConfig, partitions int) error {
	if len(changes) > 0 {
		rs, err := adm.AlterTopicConfigs(ctx, changes, topic)
		if err != nil {
			return err
		}
		for _, r := range rs {
			if r.Err != nil {
				return brokerError("alter topic "+topic, r.Err, r.ErrMessage)
			}
		}
	}
	if partitions == 0 {
		return nil
	}
	rs, err := adm.UpdatePartitions(ctx, partitions, topic)
	if err != nil {
		return err
	}
	for _, r := range rs {
		if r.Err != nil {
			return brokerError("alter topic "+topic, r.Err, r.ErrMessage)
		}
	}
	return nil
}

func newTopicDelete(b *bootstrap) *cobra.Command {
	return &cobra.Command{
		Use: "delete TOPIC...", Short: "delete topics and their records", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return b.with(c, func(ctx context.Context, adm *kadm.Client) error {
				rs, err := adm.DeleteTopics(ctx, args...)
				if err != nil {
					return err
				}
				var errs []error
				for _, r := range rs.Sorted() {
					if r.Err != nil {
						errs = append(errs, brokerError("delete topic "+r.Topic, r.Err, r.ErrMessage))
						continue
					}
					fmt.Fprintf(c.OutOrStdout(), "deleted %s\n", r.Topic)
				}
				return joined(errs)
			})
		},
	}
}
