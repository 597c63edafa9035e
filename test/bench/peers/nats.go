package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// natsPeer is NATS JetStream, which speaks a protocol of its own: the program in
// ../nats is its server and its load. A partition is a stream of three replicas.
type natsPeer struct {
	dir string
	exe string
	at  string
}

func (*natsPeer) name() string { return "nats" }

func (p *natsPeer) about() string {
	return "NATS JetStream " + p.at + ", file streams of three replicas (one a partition), sync_interval: always, otherwise its defaults; its own protocol and client"
}

func (p *natsPeer) prepare(ctx context.Context) error {
	p.exe = filepath.Join(p.dir, "nats")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", p.exe, ".")
	cmd.Dir = filepath.Join("test", "bench", "nats")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: NATS is a module that cannot be built: %w: %s", errMissing, err, out)
	}
	out, err := exec.CommandContext(ctx, p.exe, "version").Output()
	p.at = strings.TrimSpace(string(out))
	return err
}

func (p *natsPeer) layout(_ context.Context, dir string, nodes, port int) ([]*node, error) {
	var routes []string
	for i := range nodes {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", port+100+i))
	}
	var ns []*node
	for i := range nodes {
		n := &node{
			id: i + 1, addr: fmt.Sprintf("127.0.0.1:%d", port+i),
			dir: filepath.Join(dir, fmt.Sprintf("node-%d", i+1)), log: filepath.Join(dir, fmt.Sprintf("node-%d.log", i+1)),
		}
		conf := filepath.Join(dir, fmt.Sprintf("node-%d.conf", n.id))
		text := fmt.Sprintf("server_name: n%d\nlisten: %s\njetstream { store_dir: %q, sync_interval: always }\n", n.id, n.addr, n.dir)
		if nodes > 1 {
			text += fmt.Sprintf("cluster { name: bench, listen: 127.0.0.1:%d, routes: [%s] }\n", port+100+i, strings.Join(routes, ", "))
		}
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			return nil, err
		}
		n.argv = []string{p.exe, "serve", conf}
		ns = append(ns, n)
	}
	return ns, nil
}

// ask runs the client program with a question as JSON.
func (p *natsPeer) ask(ctx context.Context, verb string, q, answer any) error {
	in, err := json.Marshal(q)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, p.exe, verb)
	cmd.Stdin = bytes.NewReader(in)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("nats %s: %w: %s", verb, err, errs.Bytes())
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(out, answer)
}

func (p *natsPeer) ready(ctx context.Context, c *cluster) error {
	for _, n := range c.nodes {
		if err := n.listening(ctx); err != nil {
			return err
		}
	}
	return p.ask(ctx, "ready", load{Seeds: c.seeds()}, nil)
}

func (p *natsPeer) create(ctx context.Context, c *cluster, topic string, partitions int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return p.ask(ctx, "create", load{Seeds: c.seeds(), Topics: []string{topic}, Partitions: partitions}, nil)
}

func (p *natsPeer) produce(ctx context.Context, _ *cluster, l load) (*loaded, error) {
	var got loaded
	return &got, p.ask(ctx, "produce", l, &got)
}
