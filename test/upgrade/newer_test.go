package upgrade

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chronik/test/harness"
)

// TestNewerIsRefused: a data directory of a newer release ends the process with one line
// that says what to do, and is left as it is.
func TestNewerIsRefused(t *testing.T) {
	kept, err := filepath.Glob("testdata/*.tar.gz")
	if err != nil || len(kept) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for name, c := range map[string]struct {
		file string
		bump func(b []byte)
	}{
		"store": {"store.id", func(b []byte) { b[len("chronik-store ")]++ }},
		"log": {"raftlog/*.log", func(b []byte) { // docs/formats/raftlog.md: file header
			b[11]++
			binary.BigEndian.PutUint32(b[72:], crc32.Checksum(b[:72], crc32.MakeTable(crc32.Castagnoli)))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := unpack(kept[len(kept)-1], dir); err != nil {
				t.Fatal(err)
			}
			files, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(c.file)))
			if err != nil || len(files) == 0 {
				t.Fatalf("no %s: %v", c.file, err)
			}
			file := files[len(files)-1]
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c.bump(b)
			if err := os.WriteFile(file, b, 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(harness.Binary(t), append([]string{
				"start", "--data-dir", dir, "--kafka-addr", harness.FreeAddr(t),
				"--raft-addr", harness.FreeAddr(t), "--admin-addr", harness.FreeAddr(t),
			}, settings...)...)
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != 1 {
				t.Fatalf("exit: %v\n%s", err, out)
			}
			var said []string
			for line := range strings.SplitSeq(string(out), "\n") {
				if strings.Contains(line, "chronik: error") {
					said = append(said, line)
				}
			}
			if len(said) != 1 || !strings.Contains(said[0], "version 2, this release knows 1") || !strings.Contains(said[0], "run that release") {
				t.Errorf("said:\n%s", out)
			}
			if strings.Contains(string(out), "remove the data directory") || strings.Contains(string(out), "corrupt") {
				t.Errorf("takes it for damage:\n%s", out)
			}
			if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, b) {
				t.Errorf("%s was changed: %v", file, err)
			}
		})
	}
}

// TestNewerCheckpointIsKept: a replica with a checkpoint of a newer release takes no part, and says what to do.
// Its files stay: that release finds all of it again.
func TestNewerCheckpointIsKept(t *testing.T) {
	kept, err := filepath.Glob("testdata/*.tar.gz")
	if err != nil || len(kept) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	if err := unpack(kept[len(kept)-1], dir); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "replicas", "*-?.*", "g1", "checkpoint"))
	if err != nil || len(files) != 2 { // one for each of the topic's partitions
		t.Fatalf("checkpoints: %v, %v", files, err)
	}
	reversion(t, files, +1)
	p := start(t, dir)
	for began := time.Now(); ; <-time.After(5 * time.Millisecond) {
		log := p.log.String()
		if n := strings.Count(log, "quarantined replica"); n == len(files) && strings.Count(log, "version 2, this release knows 1: a newer release wrote it; run that release") >= n {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal("the node does not say that a newer release wrote its checkpoints")
		}
	}
	p.kill()
	reversion(t, files, -1)
	checkKept(t, dir)
}

// reversion adds to the versions of checkpoints, and makes their checksums right (docs/formats/checkpoint.md).
func reversion(t *testing.T, files []string, by int) {
	t.Helper()
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || len(b) < 48 {
			t.Fatalf("%s has %d bytes: %v", file, len(b), err)
		}
		header := int(binary.BigEndian.Uint32(b[12:])) - 4
		if header < 44 || header > len(b)-36 {
			t.Fatalf("%s: header of %d bytes", file, header)
		}
		b[8] = byte(int(b[8]) + by)
		binary.BigEndian.PutUint32(b[header:], crc32.Checksum(b[:header], castagnoli))
		sum := crc32.Update(crc32.Checksum(b[header:header+4], castagnoli), castagnoli, b[len(b)-32:len(b)-4])
		binary.BigEndian.PutUint32(b[len(b)-4:], sum)
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
