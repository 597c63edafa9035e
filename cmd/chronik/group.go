package main

import (
	"fmt"

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
			adm, err := b.admin(c.Context())
			if err != nil {
				return err
			}
			defer adm.Close()
			groups, err := adm.ListGroups(c.Context())
			if err != nil {
				return err
			}
			list := []groupRow{}
			var rows [][]string
			for _, g := range groups.Sorted() {
				list = append(list, groupRow{g.Group, g.State, g.ProtocolType, g.Coordinator})
				rows = append(rows, []string{g.Group, g.State, g.ProtocolType, fmt.Sprint(g.Coordinator)})
			}
			return l.print(c.OutOrStdout(), list, []string{"GROUP", "STATE", "TYPE", "COORDINATOR"}, rows)
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
}

func newGroupDescribe(b *bootstrap) *cobra.Command {
	var l listing
	c := &cobra.Command{
		Use: "describe GROUP", Short: "show a group's members, committed offsets and lag", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			adm, err := b.admin(c.Context())
			if err != nil {
				return err
			}
			defer adm.Close()
			lags, err := adm.Lag(c.Context(), args[0])
			if err != nil {
				return err
			}
			g := lags[args[0]]
			if err := g.Error(); err != nil {
				return fmt.Errorf("group %s: %w", args[0], err)
			}
			list := []lagRow{}
			var rows [][]string
			for _, p := range g.Lag.Sorted() {
				r := lagRow{Topic: p.Topic, Partition: p.Partition, Committed: p.Commit.At, End: p.End.Offset, Lag: p.Lag}
				if p.Member != nil {
					r.Member = p.Member.MemberID
				}
				list = append(list, r)
				rows = append(rows, []string{r.Topic, fmt.Sprint(r.Partition), fmt.Sprint(r.Committed), fmt.Sprint(r.End), fmt.Sprint(r.Lag), r.Member})
			}
			if !l.json {
				fmt.Fprintf(c.OutOrStdout(), "group %s: %s, %d members, coordinator %d\n", args[0], g.State, len(g.Members), g.Coordinator.NodeID)
			}
			return l.print(c.OutOrStdout(), map[string]any{"group": args[0], "state": g.State, "members": len(g.Members), "partitions": list},
				[]string{"TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER"}, rows)
		},
	}
	l.register(c)
	return c
}

func newGroupReset(b *bootstrap) *cobra.Command {
	var topic, to string
	c := &cobra.Command{
		Use: "reset GROUP", Short: "set a group's committed offsets (the group must be empty)", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			adm, err := b.admin(c.Context())
			if err != nil {
				return err
			}
			defer adm.Close()
			var listed kadm.ListedOffsets
			switch to {
			case "earliest":
				listed, err = adm.ListStartOffsets(c.Context(), topic)
			case "latest":
				listed, err = adm.ListEndOffsets(c.Context(), topic)
			default:
				return usagef("--to %q: want earliest or latest", to)
			}
			if err := firstErr(err, listed.Error()); err != nil {
				return err
			}
			rs, err := adm.CommitOffsets(c.Context(), args[0], listed.Offsets())
			if err := firstErr(err, rs.Error()); err != nil {
				return fmt.Errorf("reset group %s: %w", args[0], err)
			}
			fmt.Fprintf(c.OutOrStdout(), "reset %s on %s to %s\n", args[0], topic, to)
			return nil
		},
	}
	c.Flags().StringVar(&topic, "topic", "", "the topic to reset on")
	c.Flags().StringVar(&to, "to", "earliest", "earliest or latest")
	_ = c.MarkFlagRequired("topic")
	return c
}

func newGroupDelete(b *bootstrap) *cobra.Command {
	return &cobra.Command{
		Use: "delete GROUP...", Short: "delete empty groups and their offsets", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			adm, err := b.admin(c.Context())
			if err != nil {
				return err
			}
			defer adm.Close()
			rs, err := adm.DeleteGroups(c.Context(), args...)
			if err != nil {
				return err
			}
			for _, r := range rs.Sorted() {
				if r.Err != nil {
					return fmt.Errorf("delete group %s: %w", r.Group, r.Err)
				}
				fmt.Fprintf(c.OutOrStdout(), "deleted %s\n", r.Group)
			}
			return nil
		},
	}
}
