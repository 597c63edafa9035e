package transfer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"chronik/internal/ident"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// The test binary is also the two processes: a source that hands out a snapshot and
// a sink that fetches it.
const roleEnv = "CHRONIK_TEST_TRANSFER_ROLE"

const (
	sourceNode = ident.NodeID(1)
	sinkNode   = ident.NodeID(2)
	group      = ident.GroupID(7)
)

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		goleak.VerifyTestMain(m)
	}
	if name := os.Getenv("CHRONIK_TEST_TRANSFER_PROFILE"); name != "" {
		f, err := os.Create(name + "." + role)
		check(err)
		check(pprof.StartCPUProfile(f))
		defer pprof.StopCPUProfile()
	}
	switch role {
	case "source":
		source(os.Args[1], os.Args[2])
	case "sink":
		sink(os.Args[1], os.Args[2], os.Args[3])
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "transfer:", err)
		os.Exit(1)
	}
}

// peer is a node's Handler: everybody is let in.
type peer struct {
	node   ident.NodeID
	addr   string
	server *snapshot.Server
	up     chan struct{}
}

func (p *peer) Hello() []byte {
	b, err := json.Marshal(transport.PeerInfo{Node: p.node, Store: ident.StoreID{byte(p.node)}, Addr: p.addr})
	check(err)
	return b
}

func (p *peer) AcceptHello(b []byte) (info transport.PeerInfo, err error) {
	return info, json.Unmarshal(b, &info)
}
func (p *peer) Refused(ident.NodeID, string)                      {}
func (p *peer) Frame(transport.PeerInfo, transport.Class, []byte) {}
func (p *peer) PeerUp(transport.PeerInfo)                         { p.up <- struct{}{} }
func (p *peer) PeerDown(ident.NodeID)                             {}
func (p *peer) Call(ctx context.Context, _ transport.PeerInfo, m string, req []byte) ([]byte, error) {
	return p.server.Handle(ctx, m, req)
}

// Sent implements transport.Recycler.
func (p *peer) Sent(method string, resp []byte) { p.server.Sent(method, resp) }

func connect(p *peer, others map[ident.NodeID]string) *transport.Transport {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	p.addr, p.up = l.Addr().String(), make(chan struct{}, 100)
	tr, err := transport.New(transport.Options{
		Node: p.node, Listen: l, Peers: others, Handler: p,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	check(err)
	tr.Start()
	return tr
}

// report is what a process says of itself.
type report struct {
	Addr            string
	Offer           string
	Sent            int64 // by the source since it started
	Done            int64 // in place at the sink
	Received        int64
	Reused          int64
	Took            time.Duration
	CPU             time.Duration // user and system
	IdleKiB, TopKiB int64
	Final           bool
}

func say(r report) {
	b, err := json.Marshal(r)
	check(err)
	fmt.Println(string(b))
}

// memory is a field of /proc/self/status in KiB.
func memory(field string) int64 {
	b, err := os.ReadFile("/proc/self/status")
	check(err)
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
			check(err)
			return n
		}
	}
	return 0
}

// cpu is the processor time this process has taken.
func cpu() time.Duration {
	var u syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resetTop makes VmHWM begin anew.
func resetTop() { check(os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o200)) }

// source serves the checkpoint in dir; a line on stdin pins it again and asks for a report.
func source(dir, rate string) {
	limit, err := strconv.ParseInt(rate, 10, 64)
	check(err)
	s := snapshot.NewServer(snapshot.ServerOptions{FS: vfs.Default, MaxBytesPerSecond: limit})
	p := &peer{node: sourceNode, server: s}
	tr := connect(p, nil)
	idle := memory("VmRSS")
	resetTop()
	in := bufio.NewScanner(os.Stdin)
	var last uint64
	for in.Scan() {
		r := report{Addr: p.addr, Sent: s.Stats().BytesSent, CPU: cpu(), IdleKiB: idle, TopKiB: memory("VmHWM")}
		if in.Text() == "offer" {
			s.Unpin(last) // as a leader does
			pin, err := s.Pin(group, 70, dir, sinkNode)
			check(err)
			last = pin.ID
			r.Offer = hex.EncodeToString(pin.Offer(sourceNode).Append(nil))
		}
		say(r)
	}
	tr.Close()
	check(s.Close())
}

// sink fetches an offer into base and says how far it is.
func sink(addr, offer, base string) {
	raw, err := hex.DecodeString(offer)
	check(err)
	o, err := snapshot.DecodeOffer(raw)
	check(err)
	p := &peer{node: sinkNode, server: snapshot.NewServer(snapshot.ServerOptions{FS: vfs.Default})}
	tr := connect(p, map[ident.NodeID]string{sourceNode: addr})
	<-p.up
	idle := memory("VmRSS")
	resetTop()
	r := snapshot.NewReceiver(snapshot.ReceiverOptions{FS: vfs.Default})
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			if ts := r.Transfers(); len(ts) == 1 {
				say(report{Done: ts[0].BytesDone})
			}
		}
	}()
	start := time.Now()
	staged, err := r.Fetch(context.Background(), o, snapshot.FetchOptions{Base: base, Live: 1, Next: 2, Node: sinkNode}, tr)
	took := time.Since(start)
	close(stop)
	check(err)
	say(report{
		Received: staged.BytesReceived, Reused: staged.BytesReused, Took: took, CPU: cpu(), IdleKiB: idle, TopKiB: memory("VmHWM"), Final: true,
	})
	tr.Close()
}

// lastLine is for a process that ended badly.
func lastLine(b *bytes.Buffer) string { return strings.TrimSpace(b.String()) }
