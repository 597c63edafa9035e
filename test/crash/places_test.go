package crash

import (
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// places remembers from where in the code a disk was synced.
type places struct {
	mu   sync.Mutex
	seen map[string]bool
}

// here returns the lines in internal/ that lead to the sync being made, the innermost first.
func (p *places) here() (lines []string) {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasPrefix(f.Function, "chronik/internal/") {
			_, file, _ := cutLast(f.File, "internal/")
			lines = append(lines, file+":"+strconv.Itoa(f.Line))
		}
		if !more {
			break
		}
	}
	p.add(lines)
	return lines
}

func (p *places) add(lines []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil {
		p.seen = map[string]bool{}
	}
	for _, l := range lines {
		p.seen[l] = true
	}
}

func (p *places) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.seen))
}

// cutLast is strings.Cut around the last sep.
func cutLast(s, sep string) (head, tail string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}
