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
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// adminTimeout bounds what asks and changes: a cluster without a majority answers nothing.
const adminTimeout = 30 * time.Second

// bootstrap is the --bootstrap flag every client command takes.
type bootstrap struct{ addrs string }

const defaultBootstrap = "127.0.0.1:9092"

func (b *bootstrap) register(c *cobra.Command) {
	c.PersistentFlags().StringVar(&b.addrs, "bootstrap", "",
		"brokers to ask first, host:port,host:port; default CHRONIK_BOOTSTRAP, then "+defaultBootstrap)
}

// seeds are the addresses of the flag, else of the environment, else the default.
func (b *bootstrap) seeds() ([]string, error) {
	if b.addrs == "" {
		b.addrs = os.Getenv("CHRONIK_BOOTSTRAP")
	}
	if b.addrs == "" {
		b.addrs = defaultBootstrap
	}
	var seeds []string
	for _, s := range strings.Split(b.addrs, ",") {
		if s = strings.TrimSpace(s); s != "" {
			seeds = append(seeds, s)
		}
	}
	if len(seeds) == 0 {
		return nil, usagef("--bootstrap %q names no broker", b.addrs)
	}
	return seeds, nil
}

// client connects with opts added. It fails within ten seconds when nobody answers.
func (b *bootstrap) client(ctx context.Context, opts ...kgo.Opt) (*kgo.Client, error) {
	seeds, err := b.seeds()
	if err != nil {
		return nil, err
	}
	opts = append([]kgo.Opt{
		kgo.SeedBrokers(seeds...),
		kgo.ClientID("chronik-cli"),
		kgo.DialTimeout(3 * time.Second),
		kgo.MetadataMinAge(100 * time.Millisecond),
	}, opts...)
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, usagef("--bootstrap %s: %w", b.addrs, err)
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

// with runs f with a client that asks and changes. It ends within adminTimeout.
func (b *bootstrap) with(c *cobra.Command, f func(context.Context, *kadm.Client) error) error {
	ctx, cancel := context.WithTimeout(c.Context(), adminTimeout)
	defer cancel()
	cl, err := b.client(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	if err = f(ctx, kadm.NewClient(cl)); err != nil && c.Context().Err() == nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %v: %w", adminTimeout, errors.Join(err, context.DeadlineExceeded))
	}
	return err
}

// brokerError is what a broker says about subject: its own words, if it has any, and Kafka's name of the error.
func brokerError(subject string, err error, message string) error {
	if ke := (*kerr.Error)(nil); message != "" && errors.As(err, &ke) {
		return &toldError{text: fmt.Sprintf("%s: %s (%s)", subject, message, ke.Message), err: err}
	}
	return fmt.Errorf("%s: %w", subject, err)
}

// toldError has a broker's words instead of those of the error it wraps.
type toldError struct {
	text string
	err  error
}

func (t *toldError) Error() string { return t.text }
func (t *toldError) Unwrap() error { return t.err }

// awaitTopic waits until every partition of topic has a leader, and returns the
// number of partitions. With create an unknown topic may come into being by the
// question, if the cluster creates topics so.
func awaitTopic(ctx context.Context, cl *kgo.Client, topic string, create bool) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	began := time.Now()
	for last := error(nil); ; {
		req := kmsg.NewPtrMetadataRequest()
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &topic
		req.Topics = append(req.Topics, t)
		req.AllowAutoTopicCreation = create
		resp, err := req.RequestWith(ctx, cl)
		switch {
		case err != nil && last != nil && ctx.Err() != nil:
			return 0, fmt.Errorf("topic %s: %w", topic, last)
		case err != nil:
			return 0, fmt.Errorf("topic %s: %w", topic, err)
		}
		if last = topicError(resp); last == nil {
			return len(resp.Topics[0].Partitions), nil
		}
		fresh := errors.Is(last, kerr.UnknownTopicOrPartition) && time.Since(began) < time.Second // this broker may hear of it in a moment
		if !fresh && (errors.Is(last, kerr.UnknownTopicOrPartition) || !kerr.IsRetriable(last)) {
			return 0, fmt.Errorf("topic %s: %w", topic, last)
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("topic %s: %w", topic, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func topicError(resp *kmsg.MetadataResponse) error {
	if len(resp.Topics) != 1 {
		return kerr.UnknownTopicOrPartition
	}
	if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil {
		return err
	}
	for _, p := range resp.Topics[0].Partitions {
		if p.Leader >= 0 {
			return nil // one is enough: the others wait by themselves
		}
	}
	return kerr.LeaderNotAvailable
}

// listing prints rows as a table or, with --json, values as JSON.
type listing struct {
	json   bool
	output outputFormat
}

// outputFormat is the value of -o.
type outputFormat string

func (o *outputFormat) String() string { return string(*o) }
func (o *outputFormat) Type() string   { return "format" }

func (o *outputFormat) Set(s string) error {
	if s != "wide" && s != "json" {
		return fmt.Errorf("want wide or json")
	}
	*o = outputFormat(s)
	return nil
}

func (l *listing) register(c *cobra.Command) {
	c.Flags().BoolVar(&l.json, "json", false, "print JSON")
	c.Flags().VarP(&l.output, "output", "o", "wide: more columns; json: as --json")
}

func (l *listing) wide() bool   { return l.output == "wide" }
func (l *listing) asJSON() bool { return l.json || l.output == "json" }

func (l *listing) print(w io.Writer, value any, header []string, rows [][]string) error {
	if l.asJSON() {
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

// orDash is s, or a dash where a table would have a hole.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
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

// joined is one error that says all of errs, on one line.
func joined(errs []error) error {
	var text []string
	for _, err := range errs {
		text = append(text, err.Error())
	}
	if len(errs) < 2 {
		return firstErr(errs...)
	}
	return &toldError{text: strings.Join(text, "; "), err: errors.Join(errs...)}
}

// isCanceled tells whether err is the user's own interrupt.
func isCanceled(err error) bool { return errors.Is(err, context.Canceled) }
