// Command chronik is a Kafka-compatible streaming broker, its local cluster, and
// the tools to look at both. One file a subcommand.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kerr"
)

// hinted is an error with advice on what to do about it.
type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// withHint adds advice to err.
func withHint(err error, hint string) error { return &hinted{err: err, hint: hint} }

// usageError is a wrong command line: exit code 2.
type usageError struct{ err error }

func (u *usageError) Error() string { return u.err.Error() }
func (u *usageError) Unwrap() error { return u.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// errInterrupted ends a command that the user stopped before it was done.
var errInterrupted = errors.New("interrupted")

func main() {
	signal.Ignore(syscall.SIGPIPE) // a closed pipe is an error of the write, so that a group is left in order
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second Ctrl-C ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// output remembers the first failed write, which most printing does not look at.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(b []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.w.Write(b)
	if err != nil {
		o.err = fmt.Errorf("standard output: %w", err)
	}
	return n, o.err
}

// run executes one command line and returns its exit code: 0, 1, or 2 for wrong usage.
func run(ctx context.Context, args []string, in io.Reader, w, errw io.Writer) int {
	root, out := newRoot(), &output{w: w}
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	c, err := root.ExecuteContextC(ctx)
	gone := errors.Is(out.err, syscall.EPIPE) // who reads has seen enough; that is no error, and hides none
	switch {
	case gone && (err == nil || errors.Is(err, syscall.EPIPE)):
		return 0
	case out.err != nil && !gone:
		err = out.err
	case err != nil && ctx.Err() != nil && isCanceled(err):
		err = errInterrupted
	}
	if err == nil {
		return 0
	}
	usage := (*usageError)(nil)
	wrong := errors.As(err, &usage)
	hint := hintOf(err)
	if hint == "" && wrong {
		hint = fmt.Sprintf("see '%s --help'", c.CommandPath())
	}
	fmt.Fprintf(errw, "chronik: error: %v\n", err)
	if hint != "" {
		fmt.Fprintf(errw, "chronik: hint: %s\n", hint)
	}
	if wrong {
		return 2
	}
	return 1
}

// hints are advice on errors of the brokers.
var hints = []struct {
	err  error
	hint string
}{
	{kerr.UnknownTopicOrPartition, "'chronik topic list' shows the topics, 'chronik topic create' makes one"},
	{kerr.TopicAlreadyExists, "--if-not-exists accepts that"},
	{kerr.InvalidTopicException, "letters, digits, '.', '_' and '-' make a name, 249 at most"},
	{kerr.InvalidConfig, "'chronik topic describe TOPIC -o wide' shows the settings a topic has"},
	{kerr.InvalidReplicationFactor, "'chronik status' shows the nodes"},
	{kerr.MessageTooLarge, "'chronik topic alter TOPIC --config max.message.bytes=N' allows more"},
	{kerr.GroupIDNotFound, "'chronik group list' shows the groups"},
	{kerr.NonEmptyGroup, "stop the group's consumers first; 'chronik group describe' shows them"},
	{kerr.UnknownMemberID, "stop the group's consumers first; 'chronik group describe' shows them"},
	{kerr.NotEnoughReplicas, "'chronik status' shows which nodes are missing"},
	{kerr.NotEnoughReplicasAfterAppend, "'chronik status' shows which nodes are missing"},
	{kerr.KafkaStorageError, "a node's disk is full or failing: its log and GET /readyz say more"},
	{kerr.LeaderNotAvailable, "does a majority of the nodes run? 'chronik status' shows them"},
	{kerr.RequestTimedOut, "does a majority of the nodes run? 'chronik status' shows them"},
	{context.DeadlineExceeded, "does a majority of the nodes run? 'chronik status' shows them"},
}

// hintOf finds the advice in err's chain: ours, a package's own error with an Advice method, or a broker's error.
func hintOf(err error) string {
	if h := (*hinted)(nil); errors.As(err, &h) {
		return h.hint
	}
	var adviser interface{ Advice() string }
	if errors.As(err, &adviser) {
		return adviser.Advice()
	}
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	return ""
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "chronik",
		Short:         "A Kafka-compatible broker whose nodes come back with only the bytes they lack",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		newStart(), newDev(), newDemo(), newStatus(), newVerify(), newTopic(), newProduce(), newConsume(), newGroup(),
		newSnapshot(), newCluster(), newRestore(), newConfig(), newDebug(), newBench(), newVersion(), newReference(),
	)
	wrapUsage(root)
	return root
}

// wrapUsage makes wrong positional arguments usage errors, for every command, and
// has a command that only holds others refuse names it does not know.
func wrapUsage(c *cobra.Command) {
	if !c.Runnable() {
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			switch {
			case err == nil:
				return nil
			case c.HasSubCommands():
				msg := fmt.Sprintf("%s has no command %q", c.CommandPath(), args[0])
				c.SuggestionsMinimumDistance = 2
				if near := c.SuggestionsFor(args[0]); len(near) > 0 {
					msg += "; did you mean " + strings.Join(near, " or ") + "?"
				}
				return usagef("%s", msg)
			}
			return usagef("want '%s', got %d arguments", strings.TrimSuffix(c.UseLine(), " [flags]"), len(args))
		}
	}
	for _, sub := range c.Commands() {
		wrapUsage(sub)
	}
}
