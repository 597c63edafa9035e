package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"chronik/internal/broker"
	"chronik/internal/config"
	"chronik/internal/ident"
	"chronik/internal/vfs"
)

func main() {
	began := time.Now()
	var peers []config.Peer
	for i := range 3 {
		peers = append(peers, config.Peer{ID: ident.NodeID(i + 1), Addr: fmt.Sprintf("127.0.0.1:%d", 9100+i)})
	}
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	for i := range 3 {
		cfg := config.Default()
		cfg.Node.ID, cfg.Node.DataDir = peers[i].ID, "data"
		cfg.Cluster.Peers = peers
		cfg.Raft.Listen = peers[i].Addr
		cfg.Kafka.Listen, cfg.Admin.Listen = fmt.Sprintf("127.0.0.1:%d", 9200+i), fmt.Sprintf("127.0.0.1:%d", 9300+i)
		cfg.Kafka.Advertised = cfg.Kafka.Listen
		cfg.Raft.ElectionTimeout, cfg.Raft.HeartbeatInterval = 400*time.Millisecond, 40*time.Millisecond
		cfg.Group.Partitions = 1
		_, err := broker.Start(context.Background(), broker.Options{Config: cfg, Log: log.With("at", i+1), FS: vfs.NewCrashableMem()})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	time.Sleep(60 * time.Second)
	fmt.Println("end", time.Since(began))
}
