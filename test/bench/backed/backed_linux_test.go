package backed

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const takes = 512 << 20

// What others take comes out of the reserve, piece by piece.
func TestReserveFeedsWhoeverTakesMemory(t *testing.T) {
	r := newReserve(2 * takes)
	defer r.Close()
	if err := r.Refill(t.Context()); err != nil {
		t.Fatal(err)
	}
	held := resident(t)
	if held < takes {
		t.Skip("hardly any memory is free")
	}
	taken, err := unix.Mmap(-1, 0, takes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(taken) }()
	if err := unix.Madvise(taken, unix.MADV_POPULATE_WRITE); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		// Half of it: other processes may give some memory back meanwhile.
		if now := resident(t) - takes; now <= held-takes/2 {
			return
		}
		time.Sleep(look)
	}
	t.Errorf("%d MiB of the reserve were resident, now %d", held>>20, (resident(t)-takes)>>20)
}

func TestReserveGivesBackWhatItHolds(t *testing.T) {
	before := resident(t)
	r := newReserve(2 * takes)
	if err := r.Refill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if resident(t) < before+64<<20 {
		t.Skip("hardly any memory is free")
	}
	r.Close()
	if after := resident(t); after > before+64<<20 {
		t.Errorf("%d MiB are resident, before the reserve it were %d", after>>20, before>>20)
	}
}

// resident is the memory of this process, in bytes.
func resident(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
