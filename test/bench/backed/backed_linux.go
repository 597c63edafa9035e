// Package backed makes a virtual machine's memory alike for everything that is measured on it.
//
// Free memory of a virtual machine may have no memory of the host behind it: the guest told the host that it
// is free (free page reporting), and the host took it. The first write to such a page then waits for the host. Here
// that made a write through the page cache cost 2.7 s of processor time a GB instead of 0.26, so that figures told what
// the server measured before had left behind, more than what the present one did.
//
// Memory that is merely touched beforehand is no remedy: free again, it is reported, and each report of a GiB, every
// 2.5 s, takes half a second of a quarter of both processors away. So a Reserve holds what it has touched and frees it
// piece by piece, as others use up what is free.
package backed

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// enough is what a cluster of three and its page cache fill in about a minute of full load. On a machine
	// with less it is everything: then the page cache ends with all of it, and goes on in pages that it had before.
	enough = 32 << 30
	piece  = 4 << 20
	// ahead is how much is freed before it is needed: less than that is used between two looks.
	ahead = 8 * piece
	look  = 10 * time.Millisecond
	// spare is left alone: whoever takes the last of the memory pushes out what others have.
	spare = 2 << 30
)

// Reserve is memory that the host has given, for others to use. Its methods may be called from any goroutine.
type Reserve struct {
	most int64 // bytes that it is to hold
	mu   sync.Mutex
	held [][]byte
	// fed is what others used when there was as much free as there should be, in bytes.
	fed int64

	stop context.CancelFunc
	wg   sync.WaitGroup
}

// NewReserve returns one that holds nothing until Refill.
func NewReserve() *Reserve { return newReserve(enough) }

func newReserve(most int64) *Reserve {
	ctx, stop := context.WithCancel(context.Background())
	r := &Reserve{most: most, stop: stop}
	r.wg.Go(func() { r.feed(ctx) })
	return r
}

// Close frees everything.
func (r *Reserve) Close() {
	r.stop()
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free(len(r.held))
}

// Refill has the host give what the reserve lacks, or as much as is free. From then on
// it frees as much as others take, until it is used up.
func (r *Reserve) Refill(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for int64(len(r.held))*piece < r.most && ctx.Err() == nil {
		info, err := meminfo()
		if err != nil {
			return err
		}
		if info["MemFree"] < piece+spare {
			break
		}
		b, err := unix.Mmap(-1, 0, piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return fmt.Errorf("map %d bytes: %w", piece, err)
		}
		r.held = append(r.held, b)
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // faster, if it may
		if err := unix.Madvise(b, unix.MADV_POPULATE_WRITE); err != nil {
			return fmt.Errorf("populate %d bytes: %w", piece, err)
		}
	}
	r.free(ahead / piece)
	var err error
	if r.fed, err = r.used(); err != nil {
		return err
	}
	return ctx.Err()
}

// feed frees what others take.
func (r *Reserve) feed(ctx context.Context) {
	for t := time.NewTicker(look); ; {
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		r.mu.Lock()
		if used, err := r.used(); err == nil && len(r.held) > 0 && used > r.fed {
			n := min(int((used-r.fed+piece-1)/piece), len(r.held))
			r.free(n)
			r.fed += int64(n) * piece
		}
		r.mu.Unlock()
	}
}

// free gives n pieces to whoever needs them.
func (r *Reserve) free(n int) {
	for range min(n, len(r.held)) {
		last := len(r.held) - 1
		_ = unix.Munmap(r.held[last])
		r.held = r.held[:last]
	}
}

// used is what everybody else has, the page cache included, in bytes. It is not the difference to what is free: that
// lacks, for a moment, what the guest is telling the host about, and to feed that would only give it more to tell.
func (r *Reserve) used() (int64, error) {
	info, err := meminfo()
	if err != nil {
		return 0, err
	}
	return info["AnonPages"] + info["Buffers"] + info["Cached"] + info["Slab"] - int64(len(r.held))*piece, nil
}

// meminfo is how the system's memory is used, in bytes, by the kernel's names.
func meminfo() (map[string]int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	info := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64); err == nil {
			info[name] = n << 10
		}
	}
	return info, nil
}
