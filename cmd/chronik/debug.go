package main

import (
	"bufio"
	"io"

	"github.com/spf13/cobra"

	"chronik/internal/archive"
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
				return firstErr(f(vfs.Default, args[0], w), w.Flush())
			},
		}
	}
	c.AddCommand(
		dump("raftlog", "the frames of a raftlog file", raftlog.Dump),
		dump("segment", "the batches of a segment file", segment.Dump),
		dump("snapshot", "the header and files of a checkpoint, or a manifest of the object store", dumpSnapshot),
	)
	return c
}

func dumpSnapshot(fs vfs.FS, name string, w io.Writer) error {
	is, err := archive.IsManifest(fs, name)
	if err != nil {
		return err
	}
	if is {
		return archive.Dump(fs, name, w)
	}
	return snapshot.Dump(fs, name, w)
}
