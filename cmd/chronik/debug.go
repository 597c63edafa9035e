package main

import (
	"bufio"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"chronik/internal/raftlog"
	"chronik/internal/segment"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

func newDebug() *cobra.Command {
	c := &cobra.Command{Use: "debug", Short: "print a data file in readable form", Args: cobra.NoArgs}
	dump := func(name, short string, f func(vfs.FS, string, io.Writer) error) *cobra.Command {
		return &cobra.Command{
			Use: name + " FILE", Short: short, Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				w := bufio.NewWriter(c.OutOrStdout())
				return errors.Join(f(vfs.Default, args[0], w), w.Flush())
			},
		}
	}
	c.AddCommand(
		dump("raftlog", "the frames of a raftlog file", raftlog.Dump),
		dump("segment", "the batches of a segment file", segment.Dump),
		dump("snapshot", "the header and files of a checkpoint", snapshot.Dump),
	)
	return c
}
