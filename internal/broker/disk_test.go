package broker

import (
	"log/slog"
	"testing"

	"chronik/internal/vfs"
)

// TestDisk holds correctness rule 31: records are refused before the disk is
// full, with what is in flight taken into account, and the ballast is given up before
// the log finds no room.
func TestDisk(t *testing.T) {
	const file = 1 << 20 // so the reserve is 2 MiB and the ballast 1 MiB
	fs := vfs.NewCrashableMem()
	if err := fs.MkdirAll("/data", 0o755); err != nil {
		t.Fatal(err)
	}
	var inFlight used
	d := newDisk(fs, "/data", &inFlight, file, slog.New(slog.DiscardHandler))
	space := 0
	d.onSpace = func() { space++ }
	for _, c := range []struct {
		name          string
		free          uint64
		flight        int64
		full, ballast bool
		space         int
	}{
		{"no room for a ballast", 4*file - 1, 0, false, false, 0},
		{"room", 4 * file, 0, false, true, 0},
		{"at the reserve", 2 * file, 0, false, true, 0},
		{"below it", 2*file - 1, 0, true, true, 0},
		{"above it, without slack", 2 * file, 0, true, true, 0},
		{"above it", 2*file + file/4, 0, false, true, 1},
		{"what is in flight comes on top, twice", 3 * file, file/2 + 1, true, true, 1},
		{"and is done", 3 * file, 0, false, true, 2},
		{"nearly full", file / 2, 0, true, true, 2},
		{"the ballast goes", file/2 - 1, 0, true, false, 2},
		{"space returns", 10 * file, 0, false, true, 3},
	} {
		fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 40, AvailBytes: c.free, UsedBytes: 1<<40 - c.free})
		inFlight = used(c.flight)
		d.look()
		_, err := fs.Stat("/data/" + ballastName)
		if d.full.Load() != c.full || (err == nil) != c.ballast || space != c.space {
			t.Errorf("%s: full %v, ballast %v, space returned %d times", c.name, d.full.Load(), err == nil, space)
		}
	}
}

// used is the bytes in flight.
type used int64

func (u *used) Used() int64 { return int64(*u) }
