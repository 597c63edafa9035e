package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// bootstrap is the --bootstrap flag every client command takes.
type bootstrap struct{ addrs string }

func (b *bootstrap) register(c *cobra.Command) {
	def := os.Getenv("CHRONIK_BOOTSTRAP")
	if def == "" {
		def = "127.0.0.1:9092"
	}
	c.PersistentFlags().StringVar(&b.addrs, "bootstrap", def, "brokers to ask first, host:port,host:port (CHRONIK_BOOTSTRAP)")
}

func (b *bootstrap) seeds() []string {
	seeds := strings.Split(b.addrs, ",")
	for i := range seeds {
		seeds[i] = strings.TrimSpace(seeds[i])
	}
	return seeds
}

// client connects with opts added. It fails within ten seconds when nobody answers.
func (b *bootstrap) client(ctx context.Context, opts ...kgo.Opt) (*kgo.Client, error) {
	opts = append([]kgo.Opt{
		kgo.SeedBrokers(b.seeds()...),
		kgo.ClientID("chronik-cli"),
		kgo.DialTimeout(3 * time.Second),
		kgo.MetadataMinAge(100 * time.Millisecond),
	}, opts...)
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := cl.Ping(ctx); err != nil {
		cl.Close()
		return nil, withHint(fmt.Errorf("no broker answers at %s: %w", b.addrs, err),
			"is a node running there? 'chronik dev' starts a local cluster; --bootstrap names another")
	}
	return cl, nil
}

func (b *bootstrap) admin(ctx context.Context) (*kadm.Client, error) {
	cl, err := b.client(ctx)
	if err != nil {
		return nil, err
	}
	return kadm.NewClient(cl), nil
}

// listing prints rows as a table or, with --json, values as JSON.
type listing struct {
	json   bool
	output string
}

func (l *listing) register(c *cobra.Command) {
	c.Flags().BoolVar(&l.json, "json", false, "print JSON")
	c.Flags().StringVarP(&l.output, "output", "o", "", "wide: more columns")
}

func (l *listing) wide() bool { return l.output == "wide" }

func (l *listing) print(w io.Writer, value any, header []string, rows [][]string) error {
	if l.output != "" && l.output != "wide" {
		return usagef("unknown output %q, want wide", l.output)
	}
	if l.json {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(value)
	}
	return table(w, header, rows)
}

func table(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(header, "\t"))
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// firstErr returns the first non-nil error.
func firstErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// isCanceled tells whether err is the user's own interrupt.
func isCanceled(err error) bool { return errors.Is(err, context.Canceled) }
