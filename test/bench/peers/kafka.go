package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed pom.xml
var pom []byte

const (
	kafkaVersion = "4.4.0"
	heap         = "1g"
	clusterID    = "Y2hyb25pay1iZW5jaC1wZQ" // any 16 bytes
)

// log4j writes the broker's log to its standard output at the level of Kafka's own configuration.
const log4j = `appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=out
`

// jvmFlags are those of Kafka's own start script.
var jvmFlags = []string{
	"-Xms" + heap, "-Xmx" + heap, "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
	"-XX:+ExplicitGCInvokesConcurrent", "-XX:MaxInlineLevel=15", "-Djava.awt.headless=true",
}

// apacheKafka is Kafka in KRaft combined mode. With flush it fsyncs each append
// before it answers, as Chronik does; without, it answers from the page cache.
type apacheKafka struct {
	kafkaPeer
	flush     bool
	cache     string // where jars stay between runs
	dir       string // for this run
	java      string
	jvm       string
	formatted map[string]string
}

func (p *apacheKafka) name() string {
	if p.flush {
		return "kafka-flush"
	}
	return "kafka"
}

func (p *apacheKafka) about() string {
	s := "Apache Kafka " + kafkaVersion + ", KRaft combined mode, replication factor 3, min.insync.replicas=2, otherwise its defaults; -Xms" + heap + " -Xmx" + heap +
		" and the JVM flags of its own start script; " + p.jvm
	if p.flush {
		return s + "; log.flush.interval.messages=1 (fsync before each answer)"
	}
	return s + " (no fsync before an answer)"
}

func (p *apacheKafka) libs() string { return filepath.Join(p.cache, "kafka-"+kafkaVersion) }

func (p *apacheKafka) prepare(ctx context.Context) error {
	java, err := exec.LookPath("java")
	if err != nil {
		return fmt.Errorf("%w: Apache Kafka needs java (17 or later): %w", errMissing, err)
	}
	p.java = java
	out, err := exec.CommandContext(ctx, java, "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("java -version: %w: %s", err, out)
	}
	p.jvm, _, _ = strings.Cut(string(out), "\n")
	if _, err := os.Stat(p.libs()); err == nil {
		return nil
	}
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return fmt.Errorf("%w: Apache Kafka's jars come by mvn: %w", errMissing, err)
	}
	part := p.libs() + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := os.MkdirAll(part, 0o755); err != nil {
		return err
	}
	file := filepath.Join(part, "pom.xml")
	if err := os.WriteFile(file, pom, 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mvn, "-q", "-B", "-f", file, "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+part)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: mvn cannot fetch Apache Kafka: %w: %s", errMissing, err, out)
	}
	return os.Rename(part, p.libs())
}

func (p *apacheKafka) layout(ctx context.Context, dir string, nodes, port int) ([]*node, error) {
	conf := filepath.Join(dir, "log4j2.properties")
	if err := os.WriteFile(conf, []byte(log4j), 0o644); err != nil {
		return nil, err
	}
	var voters []string
	for i := range nodes {
		voters = append(voters, fmt.Sprintf("%d@127.0.0.1:%d", i+1, port+100+i))
	}
	var ns []*node
	for i := range nodes {
		n := &node{
			id: i + 1, addr: fmt.Sprintf("127.0.0.1:%d", port+i),
			dir: filepath.Join(dir, fmt.Sprintf("node-%d", i+1)), log: filepath.Join(dir, fmt.Sprintf("node-%d.log", i+1)),
		}
		props := filepath.Join(dir, fmt.Sprintf("node-%d.properties", n.id))
		if err := os.WriteFile(props, p.properties(n, nodes, port+100+i, strings.Join(voters, ",")), 0o644); err != nil {
			return nil, err
		}
		java := append([]string{p.java}, jvmFlags...)
		java = append(java, "-Dlog4j2.configurationFile="+conf, "-cp", filepath.Join(p.libs(), "*"))
		n.argv = append(java[:len(java):len(java)], "kafka.Kafka", props)
		if err := p.format(ctx, n, props, nodes); err != nil {
			return nil, err
		}
		ns = append(ns, n)
	}
	return ns, nil
}

// format makes the node's directory. That takes a JVM two seconds, so that a later
// cluster of this run gets a copy; nothing in it depends on the place.
func (p *apacheKafka) format(ctx context.Context, n *node, props string, nodes int) error {
	of := fmt.Sprintf("%d of %d", n.id, nodes)
	if kept := p.formatted[of]; kept != "" {
		return os.CopyFS(n.dir, os.DirFS(kept))
	}
	cmd := exec.CommandContext(ctx, p.java, "-cp", filepath.Join(p.libs(), "*"), "kafka.tools.StorageTool", "format", "-t", clusterID, "-c", props)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("format node %d: %w: %s", n.id, err, out)
	}
	kept := filepath.Join(p.dir, fmt.Sprintf("%s-formatted-%d-%d", p.name(), n.id, nodes))
	if err := os.CopyFS(kept, os.DirFS(n.dir)); err != nil {
		return err
	}
	if p.formatted == nil {
		p.formatted = map[string]string{}
	}
	p.formatted[of] = kept
	return nil
}

func (p *apacheKafka) properties(n *node, nodes, controller int, voters string) []byte {
	var w strings.Builder
	fmt.Fprintf(&w, "process.roles=broker,controller\nnode.id=%d\ncontroller.quorum.voters=%s\n", n.id, voters)
	fmt.Fprintf(&w, "listeners=PLAINTEXT://%s,CONTROLLER://127.0.0.1:%d\nadvertised.listeners=PLAINTEXT://%s\n", n.addr, controller, n.addr)
	fmt.Fprintf(&w, "inter.broker.listener.name=PLAINTEXT\ncontroller.listener.names=CONTROLLER\nlog.dirs=%s\n", n.dir)
	fmt.Fprintf(&w, "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n")
	fmt.Fprintf(&w, "default.replication.factor=%d\noffsets.topic.replication.factor=%d\nmin.insync.replicas=%d\n", nodes, nodes, nodes/2+1)
	if p.flush {
		fmt.Fprintf(&w, "log.flush.interval.messages=1\n")
	}
	return []byte(w.String())
}
