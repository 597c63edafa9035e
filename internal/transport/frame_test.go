package transport

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/mem"
	"pgregory.net/rapid"

	"chronik/internal/alloctest"
)

func frames(t *testing.T, m mem.BufferSlice) []string {
	t.Helper()
	var got []string
	if err := unpack(m, func(f []byte) { got = append(got, string(f)) }); err != nil {
		t.Fatal(err)
	}
	return got
}

// Whatever is packed is unpacked, in whatever pieces it was given.
func TestPackUnpack(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var (
			m    packer
			want []string
			kept [][]byte
		)
		piece := rapid.OneOf(rapid.SliceOfN(rapid.Byte(), 0, 64), rapid.Map(rapid.IntRange(0, 3*copyBelow),
			func(n int) []byte { return bytes.Repeat([]byte{byte(n)}, n) }), rapid.Map(rapid.IntRange(chunkBytes-8, chunkBytes+8),
			func(n int) []byte { return bytes.Repeat([]byte{byte(n), 7}, n)[:n] }))
		for range rapid.IntRange(1, 60).Draw(r, "frames") {
			bufs := rapid.SliceOfN(piece, 0, 4).Draw(r, "bufs")
			all := bytes.Join(bufs, nil)
			m.frame(len(all), bufs)
			want = append(want, string(all))
		}
		size := m.size
		msg := m.done()
		if msg.Len() != size {
			r.Fatalf("message of %d bytes, counted %d", msg.Len(), size)
		}
		if err := unpack(msg, func(f []byte) { kept = append(kept, f) }); err != nil {
			r.Fatal(err)
		}
		msg.Free()
		for i := range kept {
			if cap(kept[i]) != len(kept[i]) {
				r.Fatalf("frame %d has room for %d bytes of the next", i, cap(kept[i])-len(kept[i]))
			}
		}
		if len(kept) != len(want) {
			r.Fatalf("%d frames, want %d", len(kept), len(want))
		}
		for i := range kept {
			if string(kept[i]) != want[i] {
				r.Fatalf("frame %d differs", i)
			}
		}
	})
}

// A frame that its owner keeps must not pin a whole message.
func TestUnpackPinsLittle(t *testing.T) {
	var m packer
	for range packBytes / 300 {
		m.frame(200, [][]byte{make([]byte, 200)})
	}
	msg := m.done()
	allocs := testing.AllocsPerRun(1, func() { _ = unpack(msg, func([]byte) {}) })
	if chunks := float64(msg.Len() / chunkBytes); allocs < chunks {
		t.Fatalf("%v allocations for %d bytes: chunks are larger than %d", allocs, msg.Len(), chunkBytes)
	}
}

func TestUnpackRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		b    []byte
	}{
		{"cut header", []byte{0, 0, 1}},
		{"frame longer than message", []byte{0, 0, 0, 2, 'x'}},
		{"huge length", []byte{255, 255, 255, 255}},
		{"second frame cut", []byte{0, 0, 0, 1, 'x', 0, 0, 0, 1}},
	} {
		err := unpack(mem.BufferSlice{mem.SliceBuffer(c.b)}, func([]byte) {})
		if !errors.Is(err, errMessage) {
			t.Errorf("%s: error %v, want errMessage", c.name, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 'x', 0, 0, 0, 0}, 3)
	f.Add([]byte{255, 255, 255, 255}, 1)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		defer alloctest.Bound(t, len(b))()
		if cut < 0 || cut > len(b) {
			cut = 0
		}
		total := 0
		m := mem.BufferSlice{mem.SliceBuffer(b[:cut]), mem.SliceBuffer(b[cut:])}
		err := unpack(m, func(f []byte) { total += frameHeader + len(f) })
		if total > len(b) || (err == nil && total != len(b)) {
			t.Fatalf("%d bytes of frames out of %d, err %v", total, len(b), err)
		}
	})
}

func FuzzPreamble(f *testing.F) {
	f.Add(preamble{version: protocolVersion, class: Append, from: 1, to: 2, hello: []byte("hi")}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		p, err := decodePreamble(b)
		if err == nil && !bytes.Equal(p.encode(), b) {
			t.Fatalf("%x decodes to %+v and back to something else", b, p)
		}
	})
}

func FuzzSplitCall(f *testing.F) {
	f.Add(append([]byte{255}, make([]byte, 255)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		method, req, ok := splitCall(b)
		if ok && 1+len(method)+len(req) != len(b) {
			t.Fatalf("%x: method %q and %d bytes", b, method, len(req))
		}
	})
}

func TestOutboxBounds(t *testing.T) {
	o := newOutbox(100)
	frame := [][]byte{make([]byte, 26)} // 30 with its header
	if o.push(frame) {
		t.Fatal("a closed box took a frame")
	}
	o.setOpen(true)
	for i := range 3 {
		if !o.push(frame) {
			t.Fatalf("frame %d dropped below the limit", i)
		}
	}
	if o.push(frame) {
		t.Fatal("the box took more than its limit")
	}
	ticket := o.attach()
	m, n, ok := o.pop(ticket)
	if !ok || n != 3 || m.Len() != 90 {
		t.Fatalf("popped %d frames of %d bytes", n, m.Len())
	}
	if o.push(frame) {
		t.Fatal("what is on its way no longer counts")
	}
	popped := make(chan int)
	go func() {
		_, n, _ := o.pop(ticket)
		popped <- n
	}()
	for !o.push(frame) { // until the pop says that the first message is in the stream
	}
	if n := <-popped; n != 1 {
		t.Fatalf("popped %d frames, want 1", n)
	}
	o.setOpen(false)
	o.setOpen(true)
	if o.queued() != 0 {
		t.Fatalf("%d bytes left in a box that was closed", o.queued())
	}
	if big := make([]byte, 1000); !o.push([][]byte{big}) {
		t.Fatal("an empty box must take any frame")
	}
	if o.push([][]byte{make([]byte, MaxFrame+1)}) {
		t.Fatal("a frame above MaxFrame was taken")
	}
}

// What one stream did not pop, the next one does; the old one gets nothing.
func TestOutboxTickets(t *testing.T) {
	o := newOutbox(1 << 20)
	o.setOpen(true)
	old := o.attach()
	waiting := make(chan bool)
	go func() {
		_, _, ok := o.pop(old)
		waiting <- ok
	}()
	fresh := o.attach()
	if <-waiting {
		t.Fatal("the old ticket popped")
	}
	o.push([][]byte{[]byte("x")})
	if _, _, ok := o.pop(old); ok {
		t.Fatal("the old ticket popped")
	}
	o.detach(old)
	m, _, ok := o.pop(fresh)
	if got := fmt.Sprint(frames(t, m)); !ok || got != "[x]" {
		t.Fatalf("popped %s", got)
	}
	o.detach(fresh)
	if _, _, ok := o.pop(fresh); ok {
		t.Fatal("a detached ticket popped")
	}
}

// Small frames share a message up to packBytes; a large one travels alone.
func TestOutboxPacks(t *testing.T) {
	o := newOutbox(8 << 20)
	o.setOpen(true)
	for _, n := range []int{10, 20, packBytes + 5, 30, packBytes / 2, packBytes / 2, 40} {
		o.push([][]byte{make([]byte, n)})
	}
	var got []int
	ticket := o.attach()
	for range 4 {
		_, n, _ := o.pop(ticket)
		got = append(got, n)
	}
	if fmt.Sprint(got) != "[2 1 2 2]" {
		t.Fatalf("frames of the messages: %v", got)
	}
}

func TestPreambleVersion(t *testing.T) {
	b := preamble{version: protocolVersion, from: 1, to: 2}.encode()
	b[4]++
	_, err := decodePreamble(b)
	if want := "node-to-node protocol version 2, this program speaks 1: upgrade the older one"; err == nil || err.Error() != want {
		t.Fatalf("error %v", err)
	}
}
