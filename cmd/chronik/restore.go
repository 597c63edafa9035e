package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"chronik/internal/archive"
	"chronik/internal/bucket"
	"chronik/internal/recovery"
)

const restoreLong = "Make a new cluster of the snapshots in an object store, when every disk of the old one is lost.\n\n" +
	"It fills an empty data directory, from which node N is started as ever; the other nodes then join with empty directories. Each partition ends " +
	"at its newest snapshot that is whole: what came after it is lost. `--dry-run` says to which index and offset that is, and writes nothing."

func newRestore() *cobra.Command {
	var l listing
	var s settings
	var from, cluster string
	var dry bool
	c := &cobra.Command{
		Use: "restore --from URL", Short: "make a new cluster of the snapshots in an object store", Long: restoreLong, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if from == "" {
				return usagef("--from is needed: the object_store.url of the lost cluster")
			}
			if !c.Flags().Changed("node-id") && s.file == "" {
				return usagef("--node-id is needed: the node that is started on the directory")
			}
			cfg, err := s.load(c)
			if err != nil {
				return err
			}
			b, err := bucket.Open(from, bucket.Options{})
			if err != nil {
				return &usageError{err}
			}
			rep, err := recovery.Restore(c.Context(), recovery.RestoreOptions{
				Archive: archive.New(b), From: cluster, Dir: cfg.Node.DataDir, Node: cfg.Node.ID, DryRun: dry,
			})
			if err != nil && rep == nil {
				return fmt.Errorf("restore: %w", err)
			}
			return printRecovery(c, &l, rep, err)
		},
	}
	s.registerDir(c)
	c.Flags().StringVar(&from, "from", "", "the object store: file:///directory or s3://bucket/prefix?endpoint=…&region=…")
	c.Flags().StringVar(&cluster, "cluster", "", "the lost cluster's id, if the object store holds more than one")
	s.values["node-id"] = c.Flags().String("node-id", "", "the node whose data directory it becomes (node.id)")
	c.Flags().BoolVar(&dry, "dry-run", false, "say what there is, and write nothing")
	l.register(c)
	return c
}
