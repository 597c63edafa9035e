package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
)

// plainSessions are h's outgoing plain streams to node: 0 or 1.
func plainSessions(h *host, node ident.NodeID) (n int) {
	p := h.t.peer(node)
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.out[Append]; s != nil && s.cc == nil {
		n++
	}
	return n
}

// sendUntilTaken sends a frame until there is room for it.
func sendUntilTaken(t *testing.T, h *host, to ident.NodeID, frame string) {
	t.Helper()
	for end := time.Now().Add(patience); !h.t.Send(to, Append, []byte(frame)); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no room for a frame")
		}
	}
}

// Entries take a plain stream if both ends know it, and gRPC's if one is a release that does not.
func TestPlainIfBothKnowIt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		old   bool
		plain int
	}{{"both", false, 1}, {"an older peer", true, 0}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, b := newHost(1), newHost(2)
			b.grpcOnly = c.old
			pairOf(t, a, b)
			for from, to := range map[*host]*host{a: b, b: a} {
				sendUntilTaken(t, from, to.node, "entry")
				to.await(t, "an entry", func() bool { return slices.Equal(to.frames[Append], []string{"entry"}) })
			}
			if got := plainSessions(a, 2); got != c.plain {
				t.Errorf("%d plain streams to the peer, want %d", got, c.plain)
			}
			if got := plainSessions(b, 1); got != 1 {
				t.Errorf("%d plain streams to the newer node, want 1", got)
			}
		})
	}
}

// reader returns a frameReader over what the frames look like, and reads that are as long as pieces say.
func readerOf(frames []string, pieces func(io.Reader) io.Reader) *frameReader {
	var b []byte
	for _, f := range frames {
		b = append(b, life...)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return newFrameReader(pieces(bytes.NewReader(append(b, life...))))
}

// However the bytes come, the frames are those that were sent, and nobody else's memory.
func TestFrameReader(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		size := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(readBuffer/2-8, readBuffer/2+8), rapid.IntRange(readBuffer-8, 3*readBuffer), rapid.IntRange(trustedBytes-1, 3*trustedBytes))
		var want []string
		for i, n := range rapid.SliceOfN(size, 0, 12).Draw(r, "sizes") {
			want = append(want, strings.Repeat(string(rune('a'+i)), n))
		}
		pieces := rapid.SampledFrom([]func(io.Reader) io.Reader{
			func(r io.Reader) io.Reader { return r }, iotest.HalfReader, iotest.DataErrReader,
			func(r io.Reader) io.Reader { return &shortReads{r, 7} }, func(r io.Reader) io.Reader { return &shortReads{r, 40_000} },
		}).Draw(r, "pieces")
		fr := readerOf(want, pieces)
		var kept [][]byte
		for {
			f, err := fr.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				r.Fatal(err)
			}
			if cap(f) != len(f) {
				r.Fatalf("a frame has room for %d bytes of the next", cap(f)-len(f))
			}
			kept = append(kept, f)
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

// shortReads gives n bytes a read.
type shortReads struct {
	r io.Reader
	n int
}

func (s *shortReads) Read(b []byte) (int, error) { return s.r.Read(b[:min(len(b), s.n)]) }

func TestFrameReaderRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"cut header", []byte{0, 0, 1}, io.EOF},
		{"cut frame", []byte{0, 0, 0, 2, 'x'}, io.EOF},
		{"cut large frame", []byte{0, 1, 0, 0, 'x'}, io.EOF},
		{"above the limit", []byte{255, 255, 255, 254}, errMessage},
	} {
		if _, err := newFrameReader(bytes.NewReader(c.b)).next(); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
	}
}

// A length is not believed: memory comes with the bytes.
func TestLengthsAreNotBelieved(t *testing.T) {
	b := append(binary.BigEndian.AppendUint32(nil, MaxFrame), make([]byte, 1<<20-4)...)
	n := testing.Benchmark(func(tb *testing.B) {
		tb.ReportAllocs()
		for range tb.N {
			_, _ = newFrameReader(bytes.NewReader(b)).next()
		}
	}).AllocedBytesPerOp()
	if n > 4<<20 {
		t.Errorf("%d bytes allocated for 1 MiB that says it is %d", n, MaxFrame)
	}
}

// A frame that its owner keeps must not pin much else.
func TestFrameReaderPinsLittle(t *testing.T) {
	fr := readerOf([]string{"one", "two"}, func(r io.Reader) io.Reader { return &shortReads{r, 11} }) // a sign and a frame
	one, err := fr.next()
	if err != nil {
		t.Fatal(err)
	}
	if len(fr.chunk) != 0 {
		t.Errorf("a frame %q that came alone is in a chunk with room for %d bytes", one, len(fr.chunk))
	}
}

func FuzzFrameReader(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 'x', 0, 0, 0, 0}, 3)
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 254}, 1)
	f.Add(append([]byte{0, 0, 200, 0}, make([]byte, 200<<8)...), 5000)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		if piece <= 0 {
			piece = 1
		}
		defer alloctest.Bound(t, len(b))()
		total := 0
		for r := newFrameReader(&shortReads{bytes.NewReader(b), piece}); ; {
			frame, err := r.next()
			if err != nil {
				break
			}
			total += frameHeader + len(frame)
		}
		if total > len(b) {
			t.Fatalf("%d bytes of frames out of %d", total, len(b))
		}
	})
}

// dialAsNode opens a plain stream to h as node from would, and returns the answer.
func dialAsNode(t *testing.T, h *host, first []byte) (net.Conn, []byte) {
	t.Helper()
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	b := binary.BigEndian.AppendUint32([]byte(plainPreface), uint32(len(first)))
	if _, err := c.Write(append(b, first...)); err != nil {
		t.Fatal(err)
	}
	answer, err := readPart(c, 1<<20)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return c, answer
}

func helloOf(node ident.NodeID, class Class) []byte {
	h := newHost(node)
	h.addr = "127.0.0.1:1"
	return preamble{version: protocolVersion, class: class, from: node, to: 2, hello: h.Hello()}.encode()
}

func TestPlainRefusals(t *testing.T) {
	t.Parallel()
	b := newHost(2)
	b.accept = func(p PeerInfo) error {
		if p.Node == 3 {
			return errors.New("no node 3 here")
		}
		return nil
	}
	b.start(t, nil, nil)
	old := helloOf(1, Append)
	old[4]++
	for want, first := range map[string][]byte{
		"not a chronik preamble":  []byte("hello there, I am a node"),
		"upgrade the older one":   old,
		"no node 3 here":          helloOf(3, Append),
		"carries entries only":    helloOf(1, Control),
		"this is node 2, not nod": preamble{version: protocolVersion, class: Append, from: 1, to: 7}.encode(),
	} {
		if _, answer := dialAsNode(t, b, first); len(answer) == 0 || answer[0] != plainRefused || !strings.Contains(string(answer), want) {
			t.Errorf("answered %q, want a refusal with %q", answer, want)
		}
	}
}

// A node that is closing refuses nobody: to the dialer it is gone.
func TestPlainClosingIsNoRefusal(t *testing.T) {
	t.Parallel()
	b := newHost(2)
	b.accept = func(PeerInfo) error {
		b.t.mu.Lock() // as Close does first
		defer b.t.mu.Unlock()
		b.t.closed = true
		return nil
	}
	b.start(t, nil, nil)
	_, answer := dialAsNode(t, b, helloOf(1, Append))
	b.t.mu.Lock()
	b.t.closed = false
	b.t.mu.Unlock()
	if len(answer) != 0 {
		t.Errorf("answered %q", answer)
	}
}

// A dialer reads the refusal and tells it on.
func TestPlainRefusalIsTold(t *testing.T) {
	t.Parallel()
	var lines lockedBuffer
	a, b := newHost(1), newHost(2)
	a.log = slog.New(slog.NewTextHandler(&lines, nil))
	pairOf(t, a, b)
	p := a.t.peer(2)
	s, err := p.await(t.Context(), Append)
	if err != nil {
		t.Fatal(err)
	}
	b.note(func() { b.accept = func(PeerInfo) error { return errors.New("enough of it") } })
	s.end() // and Control goes on
	for end := time.Now().Add(patience); !strings.Contains(lines.String(), "enough of it"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing said:\n%s", lines.String())
		}
	}
}

// Malformed frames end the stream and are told; what came before them counts.
func TestPlainMalformed(t *testing.T) {
	t.Parallel()
	var lines lockedBuffer
	b := newHost(2)
	b.log = slog.New(slog.NewTextHandler(&lines, nil))
	b.start(t, nil, nil)
	c, answer := dialAsNode(t, b, helloOf(1, Append))
	if len(answer) == 0 || answer[0] != plainAccepted {
		t.Fatalf("answered %q", answer)
	}
	if _, err := c.Write([]byte{0, 0, 0, 1, 'x', 255, 255, 255, 254}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the stream did not end: %v", err)
	}
	b.await(t, "the frame before", func() bool { return slices.Equal(b.frames[Append], []string{"x"}) })
	if !strings.Contains(lines.String(), "malformed frames") {
		t.Errorf("nothing said:\n%s", lines.String())
	}
}

// A plain stream alone goes silent, in either direction, while Control goes on: both ends give it up.
func TestPlainSilence(t *testing.T) {
	t.Parallel()
	b := newHost(2).start(t, nil, nil)
	began := time.Now() // before the other end can have heard anything
	c, answer := dialAsNode(t, b, helloOf(1, Append))
	if len(answer) == 0 || answer[0] != plainAccepted {
		t.Fatalf("answered %q", answer)
	}
	signs, err := io.Copy(io.Discard, c) // without an answer to the signs
	if took := time.Since(began); err != nil || took < quiet || took > quiet+2*keepaliveTime {
		t.Errorf("given up after %v, %v", took, err)
	}
	if signs < 2 || signs > 4 {
		t.Errorf("%d signs of life in %v", signs, time.Since(began))
	}
}

// The dialer gives up a peer that says Hello on a plain stream, and nothing more.
func TestPlainSilenceOfTheOtherEnd(t *testing.T) {
	t.Parallel()
	a := newHost(1).start(t, nil, nil)
	dumb := listen(t, "127.0.0.1:0")
	t.Cleanup(func() { _ = dumb.Close() })
	var ended time.Time
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := dumb.Accept()
		if err != nil {
			return
		}
		_, _ = io.ReadFull(c, make([]byte, len(plainPreface)))
		_, _ = readPart(c, 1<<20)
		h := newHost(9)
		h.addr = "127.0.0.1:1"
		_ = answerPlain(c, plainAccepted, preamble{version: protocolVersion, class: Append, from: 9, to: 1, hello: h.Hello()}.encode())
		_, _ = io.Copy(io.Discard, c)
		ended = time.Now()
		_ = c.Close()
	}()
	p := newPeer(a.t, 9) // without links of its own
	p.out[Control] = &outStream{end: func() {}}
	began := time.Now()
	if accepted, err := (&link{p: p, class: Append}).plainSession(dumb.Addr().String()); !accepted || err != nil {
		t.Errorf("not accepted: %v", err)
	}
	<-done
	if took := ended.Sub(began); took < quiet || took > quiet+keepaliveTime {
		t.Errorf("given up after %v", took)
	}
}

// A handler that takes its time is no silence of the other end.
func TestPlainSlowHandler(t *testing.T) {
	t.Parallel()
	a, b := newHost(1), newHost(2)
	got := make(chan string, 2)
	b.onFrame = func(_ PeerInfo, _ Class, f []byte) {
		if string(f) == "slow" {
			time.Sleep(quiet + 2*keepaliveTime)
		}
		got <- string(f)
	}
	pairOf(t, a, b)
	sendUntilTaken(t, a, 2, "slow")
	next := strings.Repeat("next", 2<<20) // more than lies in buffers meanwhile
	sendUntilTaken(t, a, 2, next)
	for _, want := range []string{"slow", next} {
		if f := <-got; f != want {
			t.Fatalf("frame %.10q, want %.10q", f, want)
		}
	}
}

// A stream on which nothing is sent lasts.
func TestPlainIdles(t *testing.T) {
	t.Parallel()
	a, b := pairOf(t, newHost(1), newHost(2))
	var before [2]*outStream
	for i, p := range []*peer{a.t.peer(2), b.t.peer(1)} {
		s, err := p.await(t.Context(), Append)
		if err != nil {
			t.Fatal(err)
		}
		before[i] = s
	}
	time.Sleep(quiet + 2*keepaliveTime)
	for i, p := range []*peer{a.t.peer(2), b.t.peer(1)} {
		if s, err := p.await(t.Context(), Append); err != nil || s != before[i] {
			t.Errorf("stream %d was made anew: %v", i, err)
		}
	}
}
