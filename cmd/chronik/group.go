package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
)

func newGroup() *cobra.Command {
	var b bootstrap
	c := &cobra.Command{Use: "group", Short: "list, describe, reset and delete consumer groups", Args: cobra.NoArgs}
	b.register(c)
	c.AddCommand(newGroupList(&b), newGroupDescribe(&b), newGroupReset(&b), newGroupDelete(&b))
	return c
}

type groupRow struct {
	Group       string `json:"group"`
	State       string `json:"state"`
	Protocol    string `json:"protocol_type"`
	Coordinator int32  `json:"coordinator"`
}

func newGroupList(b *bootstrap) *cobra.Command {
	var l listing
	c := &cobra.Command{
		Use: "list", Short: "list consumer groups", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return b.with(c, func(ctx context.Context, adm *kadm.Client) error {
				groups, err := adm.ListGroups(ctx)
				if err != nil {
					return err
				}
				list := []groupRow{}
				var rows [][]string
				header := []string{"GROUP", "STATE", "COORDINATOR"}
				if l.wide() {
					header = append(header, "TYPE")
				}
				for _, g := range groups.Sorted() {
					list = append(list, groupRow{g.Group, g.State, g.ProtocolType, g.Coordinator})
					row := []string{g.Group, g.State, fmt.Sprint(g.Coordinator)}
					if l.wide() {
						row = append(row, orDash(g.ProtocolType))
					}
					rows = append(rows, row)
				}
				return l.print(c.OutOrStdout(), list, header, rows)
			})
		},
	}
	l.register(c)
	return c
}

type lagRow struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed int64  `json:"committed"`
	End       int64  `json:"high_watermark"`
	Lag       int64  `json:"lag"`
	Member    string `json:"member"`
	Client    string `json:"client_id"`
	Host      string `json:"host"`
}

func newGroupDescribe(b *bootstrap) *cobra.Command {
	var l listing
	c := &cobra.Command{
		Use: "describe GROUP", Short: "show a group's members, committed offsets and lag", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return b.with(c, func(ctx context.Context, adm *kadm.Client) error {
				lags, err := adm.Lag(ctx, args[0])
				if err != nil {
					return err
				}
				g := lags[args[0]]
				if err := g.Error(); err != nil {
					return fmt.Errorf("group %s: %w", args[0], err)
				}
				return describeGroup(c.OutOrStdout(), &l, &g)
			})
		},
	}
	l.register(c)
	return c
}

func describeGroup(w io.Writer, l *listing, g *kadm.DescribedGroupLag) error {
	list := []lagRow{}
	var rows [][]string
	header := []string{"TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER"}
	if l.wide() {
		header = append(header, "CLIENT", "HOST")
	}
	for _, p := range g.Lag.Sorted() {
		r := lagRow{Topic: p.Topic, Partition: p.Partition, Committed: p.Commit.At, End: p.End.Offset, Lag: p.Lag}
		if p.Member != nil {
			r.Member, r.Client, r.Host = p.Member.MemberID, p.Member.ClientID, p.Member.ClientHost
		}
		list = append(list, r)
		committed := "-" // nothing yet
		if r.Committed >= 0 {
			committed = fmt.Sprint(r.Committed)
		}
		row := []string{r.Topic, fmt.Sprint(r.Partition), committed, fmt.Sprint(r.End), fmt.Sprint(r.Lag), orDash(r.Member)}
		if l.wide() {
			row = append(row, orDash(r.Client), orDash(r.Host))
		}
		rows = append(rows, row)
	}
	if !l.asJSON() {
		fmt.Fprintf(w, "group %s: %s, %d members, coordinator %d\n", g.Group, g.State, len(g.Members), g.Coordinator.NodeID)
	}
	return l.print(w, map[string]any{
		"group": g.Group, "state": g.State, "members": len(g.Members), "coordinator": g.Coordinator.NodeID, "partitions": list,
	}, header, rows)
}

func newGroupReset(b *bootstrap) *cobra.Command {
	var topic, to string
	c := &cobra.Command{
		Use: "reset GROUP", Short: "set a group's committed offsets (the group must be empty)", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if topic == "" {
				return usagef("--topic is missing: the topic to reset on")
			}
			if to != "earliest" && to != "latest" {
				return usagef("--to %q: want earliest or latest", to)
			}
			return b.with(c, func(ctx context.Context, adm *kadm.Client) error {
				list := adm.ListStartOffsets
				if to == "latest" {
					list = adm.ListEndOffsets
				}
				listed, err := list(ctx, topic)
				if err := firstErr(err, listed.Error()); err != nil {
					return fmt.Errorf("topic %s: %w", topic, err)
				}
				rs, err := adm.CommitOffsets(ctx, args[0], listed.Offsets())
				if err := firstErr(err, rs.Error()); err != nil {
					return fmt.Errorf("reset group %s: %w", args[0], err)
				}
				fmt.Fprintf(c.OutOrStdout(), "reset %s on %s to %s\n", args[0], topic, to)
				return nil
			})
		},
	}
	c.Flags().StringVar(&topic, "topic", "", "the topic to reset on (required)")
	c.Flags().StringVar(&to, "to", "earliest", "earliest or latest")
	return c
}

func newGroupDelete(b *bootstrap) *cobra.Command {
	return &cobra.Command{
		Use: "delete GROUP...", Short: "delete empty groups and their offsets", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return b.with(c, func(ctx context.Context, adm *kadm.Client) error {
				rs, err := adm.DeleteGroups(ctx, args...)
				if err != nil {
					return err
				}
				var errs []error
				for _, r := range rs.Sorted() {
					if r.Err != nil {
						errs = append(errs, fmt.Errorf("delete group %s: %w", r.Group, r.Err))
						continue
					}
					fmt.Fprintf(c.OutOrStdout(), "deleted %s\n", r.Group)
				}
				return joined(errs)
			})
		},
	}
}
