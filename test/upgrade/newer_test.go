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
