package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"chronik/internal/broker"
	"chronik/internal/config"
)

// startFlags are start's own flags; each stands for a setting.
var startFlags = []struct{ flag, setting, usage string }{
	{"node-id", "node.id", "this node's id, 1 or higher"},
	{"data-dir", "node.data_dir", "where all data lies"},
	{"kafka-addr", "kafka.listen", "where Kafka clients connect, host:port"},
	{"raft-addr", "raft.listen", "where other nodes connect, host:port"},
	{"admin-addr", "admin.listen", "health, metrics and status, host:port"},
	{"advertised-addr", "kafka.advertised", "what Kafka clients are told to connect to, host:port"},
	{"peers", "cluster.peers", "all nodes of a new cluster: 1@host:9192,2@host:9193,3@host:9194"},
}

// settings are the flags by which start and config take a configuration.
type settings struct {
	file   string
	values map[string]*string
	set    []string
}

func (s *settings) register(c *cobra.Command) {
	s.values = map[string]*string{}
	c.Flags().StringVar(&s.file, "config", "", "TOML file")
	for _, f := range startFlags {
		s.values[f.flag] = c.Flags().String(f.flag, "", f.usage)
	}
	c.Flags().StringArrayVar(&s.set, "set", nil, "any setting as key=value, repeatable (docs/configuration.md)")
}

// load merges defaults, file, environment and flags, in that order.
func (s *settings) load(c *cobra.Command) (*config.Config, error) {
	flags := map[string]string{}
	for _, f := range startFlags {
		if c.Flags().Changed(f.flag) {
			flags[f.setting] = *s.values[f.flag]
		}
	}
	for _, kv := range s.set {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return nil, usagef("--set %q: want key=value", kv)
		}
		flags[k] = v
	}
	cfg, err := config.Load(config.LoadOptions{File: s.file, Env: os.Environ(), Flags: flags})
	if ce := (*config.Error)(nil); errors.As(err, &ce) && ce.Flag {
		return nil, &usageError{err}
	}
	return cfg, err
}

func newStart() *cobra.Command {
	var s settings
	c := &cobra.Command{
		Use: "start", Short: "run one node; nothing set: a standalone broker on 127.0.0.1:9092 with data in ./data", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := s.load(c)
			if err != nil {
				return err
			}
			log, err := newLogger(cfg)
			if err != nil {
				return err
			}
			return runNode(c.Context(), cfg, log)
		},
	}
	s.register(c)
	return c
}

// gcPercent lets the heap grow by half between collections. Nearly all that a node
// allocates under load are payloads, which the collector need not look into: a
// cycle costs little, and what it would spare is resident memory.
const gcPercent = 50

// runNode serves until ctx ends (a clean stop) or the node must stop (an error).
func runNode(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	b, err := broker.Start(ctx, broker.Options{Config: cfg, Log: log, Version: version})
	if err != nil {
		return err
	}
	return b.Wait(ctx)
}

func newLogger(cfg *config.Config) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(os.Stderr, opts)
	if cfg.Log.Format == "json" {
		h = slog.NewJSONHandler(os.Stderr, opts)
	}
	return slog.New(h).With("node", strconv.Itoa(int(cfg.Node.ID))), nil
}

func newConfig() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "print or check the configuration", Args: cobra.NoArgs}
	var printed, checked settings
	var l listing
	show := &cobra.Command{
		Use: "print", Short: "print the effective configuration as TOML, and where each value comes from", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := printed.load(c)
			if err != nil {
				return err
			}
			if !l.asJSON() && !l.wide() {
				return cfg.Print(c.OutOrStdout())
			}
			var rows [][]string
			for _, s := range cfg.List() {
				rows = append(rows, []string{s.Name, orDash(s.Value), s.Origin, s.Env})
			}
			return l.print(c.OutOrStdout(), cfg.List(), []string{"SETTING", "VALUE", "ORIGIN", "ENVIRONMENT"}, rows)
		},
	}
	printed.register(show)
	l.register(show)
	check := &cobra.Command{
		Use: "check", Short: "check the configuration without starting", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := checked.load(c); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "ok")
			return nil
		},
	}
	checked.register(check)
	reference := &cobra.Command{
		Use: "reference", Short: "print every setting with its default and meaning, as Markdown", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write([]byte(config.Reference()))
			return err
		},
	}
	c.AddCommand(show, check, reference)
	return c
}
