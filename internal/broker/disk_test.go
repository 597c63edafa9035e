package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/metadata"
	"chronik/internal/vfs"
)

// TestDisk holds correctness rule 31: records are refused before the disk is
// full, with what is in flight taken into account; then nothing is taken from leaders; and the ballast is the raftlog's.
func TestDisk(t *testing.T) {
	const file = 1 << 20 // so the reserve is 2 MiB and the ballast a little more than 1 MiB
	fs := vfs.NewCrashableMem()
	if err := fs.MkdirAll("/data", 0o755); err != nil {
		t.Fatal(err)
	}
	var inFlight used
	d := newDisk(fs, "/data", &inFlight, file, slog.New(slog.DiscardHandler))
	space := 0
	d.onSpace = func() { space++ }
	for _, c := range []struct {
		name                 string
		free                 uint64
		flight               int64
		full, tight, ballast bool
		gave                 bool // the log asks for room and gets it
		space                int
	}{
		{"no room for a ballast", 4 * file, 0, false, false, false, false, 0},
		{"room", 5 * file, 0, false, false, true, false, 0},
		{"at the reserve", 2 * file, 0, false, false, true, false, 0},
		{"below it", 2*file - 1, 0, true, false, true, false, 0},
		{"above it, without slack", 2 * file, 0, true, false, true, false, 0},
		{"above it", 2*file + file/4, 0, false, false, true, false, 1},
		{"what is in flight comes on top, twice", 3 * file, file/2 + 1, true, false, true, false, 1},
		{"and is done", 3 * file, 0, false, false, true, false, 2},
		{"one file is left", file, 0, true, false, true, false, 2},
		{"less", file - 1, 0, true, true, true, false, 2},
		{"nothing is left", 0, 0, true, true, true, false, 2},
		{"the log needs a file", 0, 0, true, true, false, true, 2},
		{"which makes no space", 2 * file, 0, true, true, false, false, 2},
		{"leaders are followed again, clients' records wait for what is in flight", 3 * file, file/2 + 1, true, false, false, false, 3},
		{"space returns", 10 * file, 0, false, false, true, false, 4},
	} {
		fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 40, AvailBytes: c.free, UsedBytes: 1<<40 - c.free})
		inFlight = used(c.flight)
		d.look()
		if c.gave && !d.giveUp() {
			t.Errorf("%s: no ballast", c.name)
		}
		_, err := fs.Stat("/data/" + ballastName)
		if d.full.Load() != c.full || d.tight.Load() != c.tight || (err == nil) != c.ballast || d.hasBallast() != c.ballast || space != c.space {
			t.Errorf("%s: full %v, tight %v, ballast %v, space returned %d times", c.name, d.full.Load(), d.tight.Load(), err == nil, space)
		}
	}
	if !d.giveUp() || d.giveUp() {
		t.Error("the ballast is given up once")
	}
}

// TestBallastOutlivesARestart: a node that starts while its disk is nearly full knows the ballast it has, on a real disk.
func TestBallastOutlivesARestart(t *testing.T) {
	dir := t.TempDir()
	var inFlight used
	d := newDisk(vfs.Default, dir, &inFlight, 1<<20, slog.New(slog.DiscardHandler))
	if d.hasBallast() {
		t.Error("a ballast before it was made")
	}
	d.look()
	again := newDisk(vfs.Default, dir, &inFlight, 1<<20, slog.New(slog.DiscardHandler))
	if !d.hasBallast() || !again.hasBallast() || !again.giveUp() {
		t.Errorf("made: %v, known after a restart: %v", d.hasBallast(), again.hasBallast())
	}
	if third := newDisk(vfs.Default, dir, &inFlight, 1<<20, slog.New(slog.DiscardHandler)); third.hasBallast() {
		t.Error("known after it was given up")
	}
}

// TestBallastWithoutRoomIsNone: what has no blocks is not taken for room, now or after a restart.
func TestBallastWithoutRoomIsNone(t *testing.T) {
	mem := vfs.NewCrashableMem()
	mem.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 40, AvailBytes: 1 << 39, UsedBytes: 1 << 39})
	full := true
	wrapped := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full && op.Kind == errorfs.OpFilePreallocate {
			return syscall.ENOSPC
		}
		return nil
	}))
	if err := mem.MkdirAll("/data", 0o755); err != nil {
		t.Fatal(err)
	}
	var inFlight used
	open := func() *disk { return newDisk(wrapped, "/data", &inFlight, 1<<20, slog.New(slog.DiscardHandler)) }
	d := open()
	d.look()
	if _, err := mem.Stat("/data/" + ballastName); d.hasBallast() || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("has it: %v, its file: %v", d.hasBallast(), err)
	}
	// A crash between the file's making and the blocks' leaves the file.
	f, err := mem.Create("/data/"+ballastName, vfs.CategoryNode)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if open().hasBallast() {
		t.Error("an empty file is taken for the ballast")
	}
	full = false
	if d.look(); !d.hasBallast() {
		t.Error("not made once there was room")
	}
}

// used is the bytes in flight.
type used int64

func (u *used) Used() int64 { return int64(*u) }

// TestReplicasMadeOnAFullDisk has no room for directories while topics are created: their replicas live once there
// is, and those of a topic that was deleted meanwhile are gone.
func TestReplicasMadeOnAFullDisk(t *testing.T) {
	mem := vfs.NewCrashableMem()
	mem.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 40, AvailBytes: 1 << 39, UsedBytes: 1 << 39})
	var full atomic.Bool
	b := standalone(t, testConfig(t, map[string]string{"group.partitions": "1"}), errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpMkdirAll && strings.Contains(op.Path, "/replicas/") {
			return &fs.PathError{Op: "mkdir", Path: op.Path, Err: syscall.ENOSPC}
		}
		return nil
	})))
	var s *session
	eventually(t, 10*time.Second, "it serves", func() error {
		if s = b.session(); s == nil || !s.serving.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	full.Store(true)
	create := &metadata.CreateTopics{Topics: []metadata.NewTopic{
		{Name: "stays", ID: metadata.TopicID{1}, Partitions: 2, ReplicationFactor: 1}, {Name: "goes", ID: metadata.TopicID{2}, Partitions: 1, ReplicationFactor: 1},
	}}
	if _, err := s.submit(t.Context(), create); err != nil {
		t.Fatal(err)
	}
	img := s.meta.Image()
	gone := img.TopicPartition("goes", 0).Replicas[0].ID
	eventually(t, 5*time.Second, "its replica was made", func() error {
		if s.rlog.Replica(gone) == nil {
			return errors.New("not yet")
		}
		return nil
	})
	if _, err := s.submit(t.Context(), &metadata.DeleteTopics{Topics: []metadata.TopicRef{{Name: "goes"}}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the deleted topic's replica is gone", func() error {
		if s.rlog.Replica(gone) != nil {
			return errors.New("not yet")
		}
		return nil
	})
	full.Store(false)
	eventually(t, 5*time.Second, "the other topic serves", func() error {
		for i := range int32(2) {
			p := img.TopicPartition("stays", i)
			if r := s.host.Replica(p.Group); r == nil || s.registry.partition(p.Group) == nil || !r.IsLeader() {
				return fmt.Errorf("partition %d does not", i)
			}
		}
		return nil
	})
}
