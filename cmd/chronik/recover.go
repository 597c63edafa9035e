package main

import (
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"chronik/internal/recovery"
)

func newCluster() *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "act on a cluster as a whole", Args: cobra.NoArgs}
	c.AddCommand(newRecover(), newRebalance())
	return c
}

const recoverLong = "Make a new cluster of a survivor's data directory, when so many disks are lost that a majority is gone for good.\n\n" +
	"The node must be stopped. `--dry-run` says, partition by partition, what there is and what is lost, and changes nothing. Without it " +
	"the directory becomes a new cluster of this one node: topics, offsets, configs and committed offsets stay, the other nodes then join with empty " +
	"directories. The old files remain beside the new ones as `*.before-recovery-<store>`. Interrupted, it is run again."

func newRecover() *cobra.Command {
	var l listing
	var s settings
	var dry bool
	c := &cobra.Command{
		Use: "recover", Short: "make a new cluster of a survivor's data directory; --dry-run only says of what", Long: recoverLong, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := s.load(c)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelError}))
			rep, err := recovery.Recover(c.Context(), recovery.Options{Dir: cfg.Node.DataDir, DryRun: dry, Log: log})
			return printRecovery(c, &l, rep, err)
		},
	}
	s.registerDir(c)
	c.Flags().BoolVar(&dry, "dry-run", false, "say what would be kept and what is lost, and change nothing")
	l.register(c)
	return c
}

// registerDir takes only what names a data directory.
func (s *settings) registerDir(c *cobra.Command) {
	s.values = map[string]*string{"data-dir": c.Flags().String("data-dir", "", "the node's data directory (node.data_dir)")}
	c.Flags().StringVar(&s.file, "config", "", "the node's TOML file, which names the data directory")
}

func printRecovery(c *cobra.Command, l *listing, rep *recovery.Report, err error) error {
	if rep == nil {
		return err
	}
	w := c.OutOrStdout()
	if l.asJSON() {
		return firstErr(err, l.print(w, rep, nil, nil))
	}
	if rep.Resumed {
		printResumed(w, rep)
	} else {
		printGroups(w, l, rep)
	}
	if err != nil {
		return err
	}
	printNext(w, rep)
	return nil
}

func printResumed(w io.Writer, rep *recovery.Report) {
	if rep.DryRun {
		fmt.Fprintf(w, "%s: an earlier run was interrupted after it had made cluster %s: run it without --dry-run to finish\n", rep.DataDir, rep.NewCluster)
		return
	}
	fmt.Fprintf(w, "%s: finished what an earlier run had begun\n", rep.DataDir)
}

func printGroups(w io.Writer, l *listing, rep *recovery.Report) {
	fmt.Fprintf(w, "from %s: cluster %s, for node %d\n\n", rep.Source, rep.OldCluster, rep.Node)
	header := []string{"GROUP", "OUTCOME", "FROM", "TO", "COMMIT", "BEYOND", "START", "NEXT"}
	if l.wide() {
		header = append(header, "TERM", "NEW-TERM", "REPLICA", "NEW", "OTHERS")
	}
	var rows [][]string
	for i := range rep.Groups {
		g := &rep.Groups[i]
		row := []string{
			g.Group, string(g.Outcome), fmt.Sprint(g.FromIndex), fmt.Sprint(g.ToIndex), fmt.Sprint(g.KnownCommit), fmt.Sprint(g.Beyond),
			offsetText(g.LogStart), offsetText(g.NextOffset),
		}
		if l.wide() {
			var others []string
			for _, o := range g.Others {
				others = append(others, strconv.Itoa(int(o.Node)))
			}
			row = append(row, fmt.Sprint(g.Term), fmt.Sprint(g.NewTerm), fmt.Sprint(g.Replica), fmt.Sprint(g.NewReplica), orDash(strings.Join(others, ",")))
		}
		rows = append(rows, row)
	}
	_ = table(w, header, rows) // a failed write of standard output is kept by output
	fmt.Fprintln(w)
	for i := range rep.Groups {
		for _, n := range rep.Groups[i].Notes {
			fmt.Fprintf(w, "%s: %s\n", rep.Groups[i].Group, n)
		}
	}
	for _, n := range rep.Notes {
		fmt.Fprintln(w, n)
	}
	fmt.Fprintf(w, "%d groups kept, %d lost, %d damaged; the last two begin anew, empty\n", rep.Count(recovery.Kept), rep.Count(recovery.Lost), rep.Count(recovery.Damaged))
}

func offsetText(o int64) string {
	if o < 0 {
		return "-"
	}
	return strconv.FormatInt(o, 10)
}

// printNext says what has been made and what the operator does now.
func printNext(w io.Writer, rep *recovery.Report) {
	if rep.DryRun {
		fmt.Fprintln(w, "\nnothing was changed; without --dry-run this becomes a new cluster")
		return
	}
	fmt.Fprintf(w, "\n%s is now node %d of the new cluster %s\n", rep.DataDir, rep.Node, rep.NewCluster)
	for _, name := range rep.Aside {
		fmt.Fprintf(w, "kept aside: %s\n", name)
	}
	fmt.Fprintf(w, "next: start node %d as before: it serves what it has\n", rep.Node)
	others := "other nodes"
	if len(rep.Nodes) > 0 {
		ids := make([]string, len(rep.Nodes))
		for i, n := range rep.Nodes {
			ids[i] = strconv.Itoa(int(n))
		}
		others = "nodes " + strings.Join(ids, ", ")
	}
	fmt.Fprintf(w, "then: empty the data directories of %s and start them: they join and get their replicas\n", others)
}
