package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// nodeArg finds the node that args[0] names in the running dev cluster.
func (f *devFlags) nodeArg(args []string) (*devCluster, int, error) {
	id, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, 0, usagef("node %q: want a number", args[0])
	}
	dc, err := loadDev(f.dataDir)
	if err != nil {
		return nil, 0, err
	}
	for i, n := range dc.Nodes {
		if n.ID == id {
			return dc, i, nil
		}
	}
	return nil, 0, withHint(fmt.Errorf("no node %d in %s: it has %d", id, dc.path(), len(dc.Nodes)), "'chronik dev ps' shows them")
}

func newDevKill(f *devFlags) *cobra.Command {
	return &cobra.Command{
		Use: "kill N", Short: "SIGKILL node N", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dc, i, err := f.nodeArg(args)
			if err != nil {
				return err
			}
			n := dc.Nodes[i]
			if !n.alive() {
				return withHint(fmt.Errorf("node %d does not run", n.ID), fmt.Sprintf("'chronik dev restart %d' starts it", n.ID))
			}
			if err := n.kill(); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "killed node %d (pid %d)\n", n.ID, n.PID)
			return nil
		},
	}
}

// kill sends SIGKILL and waits until the process is gone.
func (n *devNode) kill() error {
	if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil {
		return err
	}
	for range 500 {
		if !n.alive() {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("node %d (pid %d) does not go away", n.ID, n.PID)
}

// takeTurn waits until nobody else changes dev.json. Of two that write it at once,
// one would lose the other's pid, and nobody would end that process.
func takeTurn(dir string) (io.Closer, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	return d, err
}

func newDevRestart(f *devFlags) *cobra.Command {
	return &cobra.Command{
		Use: "restart N", Short: "start node N again (killing it first when it runs)", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, _, err := f.nodeArg(args); err != nil {
				return err
			}
			turn, err := takeTurn(f.dataDir)
			if err != nil {
				return err
			}
			defer func() { _ = turn.Close() }() // it ends with the process anyway
			dc, i, err := f.nodeArg(args)
			if err != nil {
				return err
			}
			if !dc.running() {
				return withHint(fmt.Errorf("no dev cluster runs on %s", dc.dir), "nothing would end the node: start 'chronik dev' again")
			}
			if n := dc.Nodes[i]; n.alive() {
				if err := n.kill(); err != nil {
					return err
				}
			}
			if err := dc.start(i); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "started node %d (pid %d)\n", dc.Nodes[i].ID, dc.Nodes[i].PID)
			return nil
		},
	}
}

func newDevWipe(f *devFlags) *cobra.Command {
	return &cobra.Command{
		Use: "wipe N", Short: "remove the data directory of node N, which must not run", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dc, i, err := f.nodeArg(args)
			if err != nil {
				return err
			}
			n := dc.Nodes[i]
			if n.alive() {
				return withHint(fmt.Errorf("node %d runs", n.ID), fmt.Sprintf("'chronik dev kill %d' first", n.ID))
			}
			if err := os.RemoveAll(n.Dir); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "wiped node %d (%s)\n", n.ID, n.Dir)
			return nil
		},
	}
}

func newDevPs(f *devFlags) *cobra.Command {
	var l listing
	ps := &cobra.Command{
		Use: "ps", Short: "show the processes of a dev cluster", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dc, err := loadDev(f.dataDir)
			if err != nil {
				return err
			}
			type row struct {
				devNode
				Alive bool `json:"alive"`
				Ready bool `json:"ready"`
			}
			list := []row{}
			var rows [][]string
			for _, n := range dc.Nodes {
				r := row{devNode: n, Alive: n.alive()}
				r.Ready = r.Alive && ready(c.Context(), n.Admin)
				list = append(list, r)
				state := "dead"
				if r.Alive {
					state = "starting"
				}
				if r.Ready {
					state = "ready"
				}
				row := []string{strconv.Itoa(n.ID), strconv.Itoa(n.PID), state, n.Kafka, n.Raft, n.Admin}
				if l.wide() {
					row = append(row, n.Dir, dc.logPath(n.ID))
				}
				rows = append(rows, row)
			}
			header := []string{"NODE", "PID", "STATE", "KAFKA", "RAFT", "ADMIN"}
			if l.wide() {
				header = append(header, "DIR", "LOG")
			}
			return l.print(c.OutOrStdout(), list, header, rows)
		},
	}
	l.register(ps)
	return ps
}

// guardKeeps is what a guard is told that must leave the directory where it is.
const guardKeeps = "keep\n"

// newDevGuard is the process that kills the nodes once dev is gone: its stdin is
// a pipe whose other end only dev holds.
func newDevGuard(f *devFlags) *cobra.Command {
	remove := false
	c := &cobra.Command{
		Use: "guard", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			told, _ := io.ReadAll(c.InOrStdin()) // ends when dev ends
			dc, err := loadDev(f.dataDir)
			if err != nil {
				return nil // --ephemeral removed it: the nodes were stopped in order
			}
			dc.endAll()
			if remove && string(told) != guardKeeps {
				return os.RemoveAll(dc.dir)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&remove, "remove", false, "remove the directory afterwards")
	return c
}
