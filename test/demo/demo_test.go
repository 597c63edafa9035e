// Package demo runs 'chronik demo' as a user does.
package demo

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chronik/test/harness"
)

// run is a demo under way.
type run struct {
	t    *testing.T
	tmp  string // holds the demo's directory
	cmd  *exec.Cmd
	out  *os.File // what it printed so far
	errs bytes.Buffer
	late *time.Timer
}

func start(t *testing.T, args ...string) *run {
	t.Helper()
	harness.Alone(t)
	exe := harness.Binary(t)
	r := &run{t: t, tmp: t.TempDir()}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	r.out = out
	r.cmd = exec.Command(exe, append([]string{"demo"}, args...)...)
	r.cmd.Env = append(os.Environ(), "TMPDIR="+r.tmp)
	r.cmd.Stdout, r.cmd.Stderr = out, &r.errs
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Its promise is to end by itself. If it does not, its guard ends the nodes.
	r.late = time.AfterFunc(60*time.Second, func() { _ = r.cmd.Process.Kill() })
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		_ = out.Close()
	})
	return r
}

func (r *run) printed() string {
	b, err := os.ReadFile(r.out.Name())
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// eventually asks every 20 ms until f returns nil.
func (r *run) eventually(limit time.Duration, what string, f func() error) {
	r.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		err := f()
		if err == nil {
			return
		}
		if time.Since(began) > limit {
			r.t.Fatalf("%s: not within %v: %v\n%s%s", what, limit, err, r.printed(), r.errs.String())
		}
	}
}

// says waits until the demo has printed text.
func (r *run) says(text string) {
	r.t.Helper()
	r.eventually(30*time.Second, "demo", func() error {
		if !strings.Contains(r.printed(), text) {
			return fmt.Errorf("no %q yet", text)
		}
		return nil
	})
}

// ends waits for the exit code.
func (r *run) ends() int {
	r.t.Helper()
	_ = r.cmd.Wait() // the code says it
	if !r.late.Stop() {
		r.t.Errorf("the demo did not end by itself\n%s", r.printed())
	}
	return r.cmd.ProcessState.ExitCode()
}

// dir is the demo's directory, "" if it is gone.
func (r *run) dir() string {
	found, err := filepath.Glob(filepath.Join(r.tmp, "chronik-demo-*"))
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Join(found, " ")
}

// nobody: no process is left that names the demo's directory.
func (r *run) nobody() error {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, f := range lines {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(r.tmp)) {
			return fmt.Errorf("%s runs: %q", filepath.Dir(f), b)
		}
	}
	return nil
}

// plain: only what any file can hold.
func (r *run) plain() {
	r.t.Helper()
	for _, b := range []byte(r.printed()) {
		if b < ' ' && b != '\n' {
			r.t.Fatalf("control character %#x without a terminal: %q", b, r.printed())
		}
	}
}

// TestDemo: the story ends well, in time, and leaves nothing.
func TestDemo(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	began := time.Now()
	r := start(t, "--json")
	if code := r.ends(); code != 0 || r.errs.Len() > 0 {
		t.Fatalf("exit code %d\n%s%s", code, r.printed(), r.errs.String())
	}
	took := time.Since(began)
	if took > 50*time.Second {
		t.Errorf("took %v", took)
	}
	var got struct {
		Verified     bool
		Seconds      float64
		Acknowledged int     `json:"records_acknowledged"`
		ReadBack     int     `json:"records_read_back"`
		Before       float64 `json:"p99_before_ms"`
		During       float64 `json:"p99_during_ms"`
		Error, Dir   string
		Digests      []struct{ SHA256 string }
		Returns      []struct {
			Disk      string
			OldID     uint64 `json:"replica_id_before"`
			NewID     uint64 `json:"replica_id_after"`
			Missing   int64  `json:"bytes_written_while_away"`
			Sent      int64  `json:"bytes_sent"`
			Reused    int64  `json:"bytes_reused"`
			Installed int    `json:"snapshots_installed"`
			Replayed  int    `json:"entries_replayed"`
			Source    int    `json:"source_node"`
			Seconds   float64
			P99       float64 `json:"p99_during_ms"`
			Updates   int     `json:"transfer_updates"`
		}
	}
	if err := json.Unmarshal([]byte(r.printed()), &got); err != nil {
		t.Fatalf("%v: %s", err, r.printed())
	}
	t.Logf("%v: %+v", took, got)
	if !got.Verified || got.Error != "" || got.Dir != "" || got.ReadBack != got.Acknowledged || got.Acknowledged < 500 || got.Seconds <= 0 || got.Before <= 0 || got.During <= 0 {
		t.Errorf("%+v", got)
	}
	if len(got.Digests) != 3 || got.Digests[0].SHA256 == "" || got.Digests[0] != got.Digests[1] || got.Digests[0] != got.Digests[2] {
		t.Errorf("digests %+v", got.Digests)
	}
	if len(got.Returns) != 2 || got.Returns[0].Disk != "intact" || got.Returns[1].Disk != "wiped" {
		t.Fatalf("returns %+v", got.Returns)
	}
	for _, ret := range got.Returns {
		updates := 5
		if ret.Missing < 20e6 { // a slow machine writes less in the same time
			updates = 1
		}
		if ret.Installed != 1 || ret.Missing < 1e6 || ret.Sent < ret.Missing/2 || ret.Source == 0 || ret.Source == 3 || ret.Updates < updates || ret.Seconds <= 0 || ret.P99 <= 0 {
			t.Errorf("%+v", ret)
		}
	}
	intact, wiped := got.Returns[0], got.Returns[1]
	if intact.OldID != intact.NewID || intact.Reused < 9e6 || intact.Sent > intact.Missing+2<<20 {
		t.Errorf("with its disk: %+v", intact)
	}
	if wiped.OldID == wiped.NewID || wiped.Reused != 0 || wiped.Sent < intact.Missing {
		t.Errorf("without its disk: %+v", wiped)
	}
	if dir := r.dir(); dir != "" {
		t.Errorf("%s is left", dir)
	}
	r.eventually(5*time.Second, "no process is left", r.nobody)
}

// TestDemoNoticesDivergence: a replica's file gets other bytes, with the checksum that belongs to
// them, as no disk does: only the comparison can tell.
func TestDemoNoticesDivergence(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	r := start(t)
	r.says("150 records acknowledged")
	file := forge(t, r.dir())
	t.Logf("forged the first batch of %s", file)
	if code := r.ends(); code != 1 {
		t.Fatalf("exit code %d\n%s", code, r.printed())
	}
	for _, want := range []string{"chronik: error: comparison of the replicas: not verified: orders-0: nodes 1 and 2 differ from offset 0", "chronik: hint: data and logs are in " + r.dir()} {
		if !strings.Contains(r.errs.String(), want) {
			t.Errorf("no %q in %q", want, r.errs.String())
		}
	}
	if strings.Contains(r.printed(), "verified in") {
		t.Errorf("%s", r.printed())
	}
	r.plain()
	r.eventually(5*time.Second, "no process is left", r.nobody)
	if _, err := os.Stat(file); err != nil { // now that the guard is gone, too
		t.Errorf("what must be looked at is gone: %v", err)
	}
}

// forge changes a byte in the first batch of node 2's replica, and its checksum.
func forge(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "node-2", "replicas", "*", "g*", "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if st, err := os.Stat(name); err != nil || st.Size() < 1<<20 {
			continue
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		var head [12]byte
		if _, err := io.ReadFull(f, head[:]); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, binary.BigEndian.Uint32(head[8:]))
		if _, err := f.ReadAt(b, 12); err != nil {
			t.Fatal(err)
		}
		// The checksum is at byte 17 of a batch and covers what follows it.
		if crc32.Checksum(b[9:], crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(b[5:]) {
			t.Fatalf("%s does not begin with a batch", name)
		}
		b[len(b)/2] ^= 1
		binary.BigEndian.PutUint32(b[5:], crc32.Checksum(b[9:], crc32.MakeTable(crc32.Castagnoli)))
		if _, err := f.WriteAt(b, 12); err != nil {
			t.Fatal(err)
		}
		return name
	}
	t.Fatalf("no segment of node 2 has the records: %v", files)
	return ""
}

// TestDemoStopped: however it is stopped, neither a process nor a file is left.
func TestDemoStopped(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			r := start(t)
			r.says("150 records acknowledged")
			if err := r.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			code := r.ends()
			if sig == syscall.SIGINT && (code != 1 || r.errs.String() != "chronik: error: interrupted\n") {
				t.Errorf("exit code %d, %q", code, r.errs.String())
			}
			r.plain()
			r.eventually(5*time.Second, "nothing is left", func() error {
				if dir := r.dir(); dir != "" {
					return fmt.Errorf("%s is left", dir)
				}
				return r.nobody()
			})
		})
	}
}
