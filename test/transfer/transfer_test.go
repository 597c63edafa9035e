package transfer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

const (
	mib   = 1 << 20
	files = 20
	kills = 10
)

// size is how many bytes are moved, and whether times are judged.
func size(t *testing.T) (n int64, full bool) {
	t.Helper()
	text := os.Getenv("CHRONIK_TEST_TRANSFER_BYTES")
	if text == "" {
		return 96 * mib, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n, true
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dataDir is a directory on this disk, not on a memory file system.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(".", "transfer-data-") //nolint:usetesting // TempDir may be memory
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

func fileName(i int) string { return fmt.Sprintf("%02d.log", i) }

// makeState writes a checkpoint over total bytes in files, into dir.
func makeState(t *testing.T, dir string, total int64) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	ck := snapshot.Checkpoint{Group: group, Point: snapshot.Point{Index: 100, Term: 4}, CreatedAt: time.Now()}
	rng := rand.NewChaCha8([32]byte{1})
	b := make([]byte, mib)
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fileName(i)))
		must(t, err)
		each := total / files
		for left := each; left > 0; left -= int64(len(b)) {
			_, _ = rng.Read(b)
			_, err = f.Write(b[:min(left, int64(len(b)))])
			must(t, err)
		}
		must(t, errors.Join(f.Sync(), f.Close()))
		ck.Files = append(ck.Files, snapshot.DataFile{Name: fileName(i), Size: each})
	}
	_, err := snapshot.Write(vfs.Default, dir, ck, snapshot.None, func(w io.Writer) (int64, error) {
		n, err := w.Write([]byte("state"))
		return int64(n), err
	})
	must(t, err)
}

// process is a source or a sink.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err bytes.Buffer
}

func start(t *testing.T, role string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0], args...)}
	p.cmd.Env = append(os.Environ(), roleEnv+"="+role)
	p.cmd.Stderr = &p.err
	var err error
	p.in, err = p.cmd.StdinPipe()
	must(t, err)
	out, err := p.cmd.StdoutPipe()
	must(t, err)
	p.out = bufio.NewScanner(out)
	must(t, p.cmd.Start())
	return p
}

// next reads a report.
func (p *process) next() (r report, ok bool) {
	if !p.out.Scan() {
		return r, false
	}
	if err := json.Unmarshal(p.out.Bytes(), &r); err != nil {
		p.t.Fatalf("%s: %v", p.out.Text(), err)
	}
	return r, true
}

// ask sends a line to a source.
func (p *process) ask(line string) report {
	p.t.Helper()
	_, err := io.WriteString(p.in, line+"\n")
	must(p.t, err)
	r, ok := p.next()
	if !ok {
		p.t.Fatalf("source ended: %s", lastLine(&p.err))
	}
	return r
}

func (p *process) stop() {
	must(p.t, p.in.Close())
	must(p.t, p.cmd.Wait())
}

// fetch runs a sink to its end, or kills it once done bytes are in place.
func fetch(t *testing.T, src *process, base string, kill int64) (r report, killed bool) {
	t.Helper()
	o := src.ask("offer")
	p := start(t, "sink", o.Addr, o.Offer, base)
	defer func() { _ = p.in.Close() }()
	for {
		got, ok := p.next()
		if !ok {
			t.Fatalf("sink ended: %v %s", p.cmd.Wait(), lastLine(&p.err))
		}
		if got.Final {
			must(t, p.cmd.Wait())
			return got, false
		}
		if kill > 0 && got.Done >= kill {
			must(t, p.cmd.Process.Signal(syscall.SIGKILL))
			_ = p.cmd.Wait() // killed, as it says
			return got, true
		}
	}
}

// bareCopy moves the same files: read, loopback TCP, write, fsync.
func bareCopy(t *testing.T, from, to string) time.Duration {
	t.Helper()
	must(t, os.MkdirAll(to, 0o755))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	begin := time.Now()
	sent := make(chan error, 1)
	go func() { sent <- sendAll(l.Addr().String(), from) }()
	conn, err := l.Accept()
	must(t, err)
	b := make([]byte, mib)
	for i := range files {
		st, err := os.Stat(filepath.Join(from, fileName(i)))
		must(t, err)
		f, err := os.Create(filepath.Join(to, fileName(i)))
		must(t, err)
		for left := st.Size(); left > 0; {
			n, err := io.ReadFull(conn, b[:min(left, int64(len(b)))])
			must(t, err)
			_, err = f.Write(b[:n])
			must(t, err)
			left -= int64(n)
		}
		must(t, errors.Join(f.Sync(), f.Close()))
	}
	must(t, errors.Join(<-sent, conn.Close()))
	return time.Since(begin)
}

func sendAll(addr, from string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	b := make([]byte, mib)
	for i := range files {
		f, err := os.Open(filepath.Join(from, fileName(i)))
		if err != nil {
			return err
		}
		for {
			n, err := f.Read(b)
			if n > 0 {
				if _, err := conn.Write(b[:n]); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return conn.Close()
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// warm has the kernel use the memory that the next size bytes of files will need:
// where memory comes page by page from a virtual machine's host, the first use costs
// more than a copy.
func warm(t *testing.T, dir string, total int64) {
	t.Helper()
	name := filepath.Join(dir, "warm")
	f, err := os.Create(name)
	must(t, err)
	b := make([]byte, mib)
	for left := total; left > 0; left -= mib {
		_, err := f.Write(b)
		must(t, err)
	}
	must(t, errors.Join(f.Close(), os.Remove(name)))
	syscall.Sync()
}

func rounds(full bool) int {
	if full {
		return 3
	}
	return 1
}

// A follower that lacks everything: the transfer takes at most 1/0.7 of the time of a
// bare copy, and little memory on either side.
func TestTransferAgainstBareCopy(t *testing.T) {
	total, full := size(t)
	dir := dataDir(t)
	from := filepath.Join(dir, "g1")
	makeState(t, from, total)
	var bare, transfers []time.Duration
	for i := range rounds(full) {
		warm(t, dir, total)
		to := filepath.Join(dir, fmt.Sprint("bare", i))
		before := cpu()
		bare = append(bare, bareCopy(t, from, to))
		bareCPU := cpu() - before
		must(t, os.RemoveAll(to))
		warm(t, dir, total)
		src := start(t, "source", from, "0") // a new one: it has hashed nothing yet
		base := filepath.Join(dir, fmt.Sprint("sink", i))
		got, _ := fetch(t, src, base, 0)
		transfers = append(transfers, got.Took)
		st := src.ask("report")
		src.stop()
		must(t, os.RemoveAll(base))
		sender, receiver := (st.TopKiB-st.IdleKiB)/1024, (got.TopKiB-got.IdleKiB)/1024
		t.Logf("%d MiB: bare copy %v, transfer %v (%.0f %%); processor: bare copy %v, sender %v, receiver %v; memory above idle: sender %d MiB, receiver %d MiB",
			total/mib, ms(bare[i]), ms(got.Took), 100*bare[i].Seconds()/got.Took.Seconds(),
			ms(bareCPU), ms(st.CPU), ms(got.CPU), sender, receiver)
		if sender > 64 || receiver > 64 {
			t.Errorf("memory above idle: sender %d MiB, receiver %d MiB; at most 64", sender, receiver)
		}
		if got.Received < total || got.Received > total+total/100+mib {
			t.Errorf("received %d bytes of %d", got.Received, total)
		}
	}
	slices.Sort(bare)
	slices.Sort(transfers)
	ratio := bare[len(bare)/2].Seconds() / transfers[len(transfers)/2].Seconds()
	t.Logf("medians: %.0f %% of a bare copy's speed", 100*ratio)
	if full && ratio < 0.7 {
		t.Errorf("%.0f %% of a bare copy's speed, at least 70 are wanted", 100*ratio)
	}
}

// With nine tenths of the segments here, the sender sends a tenth.
func TestTransferOfTheMissingTenth(t *testing.T) {
	total, _ := size(t)
	dir := dataDir(t)
	from, base := filepath.Join(dir, "g1"), filepath.Join(dir, "sink")
	makeState(t, from, total)
	must(t, os.MkdirAll(filepath.Join(base, "g1"), 0o755))
	for i := range files * 9 / 10 {
		must(t, os.Link(filepath.Join(from, fileName(i)), filepath.Join(base, "g1", fileName(i))))
	}
	src := start(t, "source", from, "0")
	got, _ := fetch(t, src, base, 0)
	sent := src.ask("report").Sent
	src.stop()
	t.Logf("%d MiB, 90 %% of the files here: sent %d bytes (%.2f %%) in %v", total/mib, sent, 100*float64(sent)/float64(total), got.Took.Round(time.Millisecond))
	if limit := total/1000*105 + 8<<10; sent > limit {
		t.Errorf("sent %d bytes, at most %d are wanted", sent, limit)
	}
}

// A receiver killed ten times goes on where it was. What is sent twice is what was on
// its way, at most a chunk for each call.
func TestTransferKilledTenTimes(t *testing.T) {
	total, full := size(t)
	dir := dataDir(t)
	from, base := filepath.Join(dir, "g1"), filepath.Join(dir, "sink")
	makeState(t, from, total)
	rate := "0"
	if !full {
		rate = fmt.Sprint(64 * mib) // slow enough to be caught at work
	}
	src := start(t, "source", from, rate)
	n := 0
	for k := int64(1); k <= kills; k++ {
		if _, killed := fetch(t, src, base, k*total/(kills+1)); killed {
			n++
		}
	}
	if n < kills {
		t.Fatalf("killed only %d times", n)
	}
	got, _ := fetch(t, src, base, 0)
	sent := src.ask("report").Sent
	src.stop()
	t.Logf("%d MiB, killed %d times: sent %d bytes (%.3f x), the last reused %d", total/mib, n, sent, float64(sent)/float64(total), got.Reused)
	limit := total + total/50
	if !full {
		limit = total + kills*5*mib
	}
	if sent > limit {
		t.Errorf("sent %d bytes, at most %d are wanted", sent, limit)
	}
}
