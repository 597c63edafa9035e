package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"chronik/internal/admin"
)

const rebalanceLong = "Move replicas so that every node holds as many as the others: after a node was added, or topics were created unevenly.\n\n" +
	"The fewest moves that do it, within the racks. A replica goes on serving until its successor on the other node has caught up and takes its place in one " +
	"step, so nothing is ever short of a replica. A few are under way at a time. The command waits until all are done; stopped before, those under way go on, and " +
	"the rest is for the next run. Nodes that do not answer neither give nor get replicas."

func newRebalance() *cobra.Command {
	var b bootstrap
	var l listing
	var dry bool
	var limit time.Duration
	c := &cobra.Command{
		Use: "rebalance", Short: "even out the number of replicas over the nodes, and wait until that is done", Long: rebalanceLong, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := b.cluster(c.Context())
			if err != nil {
				return err
			}
			plan, err := askRebalance(c.Context(), cl, true)
			if err != nil {
				return err
			}
			w, errw := c.OutOrStdout(), c.ErrOrStderr()
			for _, n := range plan.Unreachable {
				fmt.Fprintf(errw, "chronik: node %d does not answer: it neither gives nor gets replicas\n", n)
			}
			moves := append(plan.UnderWay, plan.Planned...)
			switch {
			case dry:
				return l.print(w, plan, moveHeader(&l), moveRows(&l, moves))
			case len(moves) == 0 && !l.asJSON():
				fmt.Fprintln(w, "nothing to move: the replicas are even")
				return nil
			case !l.asJSON():
				if err := table(w, moveHeader(&l), moveRows(&l, moves)); err != nil {
					return err
				}
			}
			moved, err := rebalance(c.Context(), errw, cl, plan.UnderWay, limit)
			if err != nil {
				return err
			}
			if l.asJSON() {
				return l.print(w, map[string]any{"moved": moved}, nil, nil)
			}
			fmt.Fprintf(w, "moved %d replicas\n", len(moved))
			return nil
		},
	}
	b.register(c)
	l.register(c)
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be moved")
	c.Flags().DurationVar(&limit, "timeout", 0, "how long to wait (0: until all is moved); what is under way then goes on")
	return c
}

func moveHeader(l *listing) []string {
	header := []string{"GROUP", "FROM", "TO"}
	if l.wide() {
		header = append(header, "ID", "REPLICA")
	}
	return header
}

func moveRows(l *listing, moves []admin.Move) [][]string {
	rows := make([][]string, 0, len(moves))
	for _, m := range moves {
		row := []string{m.Group, strconv.Itoa(int(m.From)), strconv.Itoa(int(m.To))}
		if l.wide() {
			row = append(row, fmt.Sprint(m.GroupID), fmt.Sprint(m.ReplicaID))
		}
		rows = append(rows, row)
	}
	return rows
}

// askRebalance has the first node that answers plan, and unless dry begin what may be begun.
func askRebalance(ctx context.Context, cl *admin.Cluster, dry bool) (*admin.Rebalance, error) {
	var errs []error
	for _, n := range cl.Nodes {
		var got admin.Rebalance
		actx, cancel := context.WithTimeout(ctx, adminTimeout)
		err := postJSON(actx, n.Admin, "/v1/cluster/rebalance?dry_run="+strconv.FormatBool(dry), &got)
		cancel()
		if err == nil {
			return &got, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		errs = append(errs, fmt.Errorf("node %d: %w", n.ID, err))
	}
	return nil, withHint(joined(errs), "does a majority of the nodes run? 'chronik status' shows them")
}

// rebalanceEvery is how often the moves are looked at, and new ones begun.
const rebalanceEvery = 500 * time.Millisecond

// movesGoOn is what is told who stops waiting.
const movesGoOn = "the moves under way go on; another 'chronik cluster rebalance' begins the rest"

// rebalance asks until no move is under way or left, for no longer than limit unless that is 0.
// It returns all moves that were made.
func rebalance(ctx context.Context, errw io.Writer, cl *admin.Cluster, underWay []admin.Move, limit time.Duration) ([]admin.Move, error) {
	moved := append([]admin.Move{}, underWay...)
	began, progress := time.Now(), "nothing moved yet"
	var failing time.Time // since when nobody answers
	for {
		got, err := askRebalance(ctx, cl, false)
		switch {
		case ctx.Err() != nil:
			fmt.Fprintln(errw, "chronik: "+movesGoOn)
			return moved, ctx.Err()
		case err != nil && failing.IsZero():
			failing = time.Now()
		case err != nil && time.Since(failing) > adminTimeout:
			return moved, err
		case err == nil:
			failing = time.Time{}
			moved = append(moved, got.Begun...)
			if len(got.UnderWay)+len(got.Planned) == 0 {
				return moved, nil
			}
			done := max(len(moved)-len(got.UnderWay), 0)
			if text := fmt.Sprintf("%d moved, %d under way, %d to come", done, len(got.UnderWay), len(got.Planned)); text != progress {
				progress = text
				fmt.Fprintln(errw, text)
			}
		}
		if limit > 0 && time.Since(began) > limit {
			return moved, withHint(fmt.Errorf("not done within %v: %s", limit, progress), movesGoOn)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rebalanceEvery):
		}
	}
}
