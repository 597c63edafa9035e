package alloctest

import (
	"testing"
)

// failures stands in for a test that may fail.
type failures struct {
	testing.TB
	n int
}

func (f *failures) Helper()               {}
func (f *failures) Errorf(string, ...any) { f.n++ }

var sink []byte

func TestBound(t *testing.T) {
	if Racing {
		t.Skip("Bound bounds nothing under the race detector")
	}
	grow := func(n, size int) func() {
		return func() {
			for range n {
				sink = make([]byte, size)
			}
		}
	}
	for _, c := range []struct {
		name   string
		input  int
		decode func()
		fails  bool
	}{
		{"one large", 1, grow(1, MaxAlloc+1<<20), true},
		{"many, none kept", MaxInput, grow(MaxAlloc>>10*9/8, 1<<10), true},
		{"many small", 1, grow(MaxAlloc>>4*9/8, 16), true},
		{"in a goroutine", 1, func() {
			done := make(chan struct{})
			go func() { defer close(done); grow(1, MaxAlloc+1<<20)() }()
			<-done
		}, true},
		{"just below", 1, grow(1, MaxAlloc-1<<20), false},
		{"nothing", 0, func() {}, false},
		{"a larger input", MaxInput + 1, grow(1, 2*MaxAlloc), false},
	} {
		f := &failures{TB: t}
		end := Bound(f, c.input)
		c.decode()
		end()
		if (f.n > 0) != c.fails {
			t.Errorf("%s: %d failures", c.name, f.n)
		}
	}
}

func BenchmarkBound(b *testing.B) {
	for b.Loop() {
		Bound(b, 1)()
	}
}
