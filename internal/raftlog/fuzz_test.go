package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"slices"
	"testing"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
	"chronik/internal/vfs"
)

const fuzzEpoch = 0x1122334455667788

var be = binary.BigEndian

// allKinds has a frame of each kind with everything it can carry.
func allKinds() []frame {
	es := append(run(5, 7, 2, 3, 20), run(5, 9, 1, 4, 0)...)
	c := &Creation{Replica: 5, Group: 2, CreatedAt: 3, First: 1, FirstTerm: 1, Info: []byte("info")}
	in := &Install{Index: 6, Term: 3, Generation: 2, ConfState: []byte("conf")}
	hs := HardState{4, 5, 8}
	fs := []frame{
		{kind: kindAppend, flags: hasHardState, hs: hs, entries: es},
		{kind: kindAppend, flags: hasHardState, hs: hs},
		{kind: kindAppend, flags: hasHardState | hasInstall, hs: hs, install: in, entries: es},
		{kind: kindCreate, flags: hasCreation, creation: c},
		{kind: kindRemove},
		{kind: kindTrim, flags: hasBase, base: 6, baseTerm: 3},
		{
			kind: kindRelocate, flags: hasHardState | hasInstall | hasCreation | hasBase, hs: hs, install: in,
			creation: c, base: 6, baseTerm: 3, entries: es,
		},
		{kind: kindRelocate, flags: hasDamage, damage: "lost", first: 7, n: 3},
		{kind: kindNode, flags: hasBlob, blob: []byte("node")},
	}
	for i := range fs {
		f := &fs[i]
		f.lsn, f.durable = uint64(100+i), 99
		if f.kind != kindNode {
			f.replica, f.group = 5, 2
		}
		if n := len(f.entries); n > 0 {
			f.first, f.n, f.lastTerm = f.entries[0].Index, uint32(n), f.entries[n-1].Term
			for k := range f.entries {
				f.spans = addSpan(f.spans, 0, &f.entries[k])
			}
		}
		f.size = frameSize(f.bodyBytes())
	}
	return fs
}

func TestFrameRoundTrip(t *testing.T) {
	for i, f := range allKinds() {
		b := appendFrame(nil, &f, fuzzEpoch)
		if int64(len(b)) != f.size || len(b)%frameAlign != 0 {
			t.Fatalf("frame %d: %d bytes, size says %d", i, len(b), f.size)
		}
		got, err := decodeFrame(b, fuzzEpoch, true)
		check(t, err)
		if len(got.entries) == 0 {
			got.entries = nil
		}
		for k := range got.entries {
			if got.entries[k].Data == nil {
				got.entries[k].Data = []byte{}
			}
		}
		if !reflect.DeepEqual(got, f) {
			t.Fatalf("frame %d:\n got %+v\nwant %+v", i, got, f)
		}
		if _, err := decodeFrame(b, fuzzEpoch+1, true); err == nil {
			t.Fatal("a frame of another epoch")
		}
		for n := range len(b) - int(f.size-frameHeaderBytes-f.bodyBytes()) {
			if _, err := decodeFrame(b[:n], fuzzEpoch, true); err == nil {
				t.Fatalf("frame %d cut to %d bytes", i, n)
			}
		}
	}
}

// resum makes the checksums right again, so that the fuzzer gets behind them.
func resum(b []byte) {
	if len(b) < frameHeaderBytes {
		return
	}
	body := int64(len(b)) - frameHeaderBytes
	if n := padded(b) - frameHeaderBytes; n < body {
		body = n
	}
	be.PutUint32(b, frameMagic)
	be.PutUint64(b[32:], fuzzEpoch)
	be.PutUint32(b[4:], uint32(body))
	be.PutUint32(b[72:], checksum(b[:72]))
	be.PutUint32(b[76:], checksum(slices.Concat(b[:76], b[80:80+body])))
}

func FuzzDecodeFrame(f *testing.F) {
	for _, fr := range allKinds() {
		f.Add(appendFrame(nil, &fr, fuzzEpoch), true)
		f.Add(appendFrame(nil, &fr, fuzzEpoch), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, honest bool) {
		defer alloctest.Bound(t, len(b))()
		b = slices.Clone(b)
		if honest {
			resum(b)
		}
		fr, err := decodeFrame(b, fuzzEpoch, true)
		if err != nil {
			if !errors.Is(err, errFormat) {
				t.Fatal(err)
			}
			return
		}
		// What decodes encodes to the same bytes.
		again := appendFrame(nil, &fr, fuzzEpoch)
		end := frameHeaderBytes + fr.bodyBytes()
		copy(again[10:12], b[10:12]) // reserved
		resum(again)
		resum(b)
		if !bytes.Equal(again[:end], b[:end]) {
			t.Fatalf("%x\nbecomes\n%x", b[:end], again[:end])
		}
		bare, err := decodeFrame(b, fuzzEpoch, false)
		if err != nil || !reflect.DeepEqual(bare.spans, fr.spans) {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeFooter(f *testing.F) {
	var w footer
	w.reset()
	end := int64(dataOffset)
	for _, fr := range allKinds() {
		w.add(&fr)
		end += fr.size
	}
	f.Add(w.buf, uint16(end))
	f.Add([]byte{}, uint16(dataOffset))
	f.Fuzz(func(t *testing.T, b []byte, end uint16) {
		defer alloctest.Bound(t, len(b))()
		var w footer
		w.reset()
		read := false
		_, err := decodeFooter(b, 100, int64(end), func(fr *footFrame) error {
			if fr.off < dataOffset || fr.end() > int64(end) || fr.size < frameHeaderBytes {
				t.Fatalf("%+v", fr)
			}
			n := uint32(0)
			for _, s := range fr.spans {
				if s.first != fr.first+ident.Index(n) || s.n == 0 {
					t.Fatalf("%+v", fr)
				}
				n += s.n
			}
			if n != fr.n {
				t.Fatalf("%+v", fr)
			}
			read = read || fr.read
			w.add(&fr.frame)
			return nil
		})
		if err != nil && !errors.Is(err, errFormat) {
			t.Fatal(err)
		}
	})
}

func TestFooterRoundTrip(t *testing.T) {
	var w footer
	w.reset()
	frames := allKinds()
	off := int64(dataOffset)
	for i := range frames {
		frames[i].off = off
		off += frames[i].size
		w.add(&frames[i])
	}
	i := 0
	last, err := decodeFooter(w.buf, 100, off, func(got *footFrame) error {
		want := frames[i]
		i++
		if got.off != want.off || got.size != want.size || got.lsn != want.lsn || got.replica != want.replica || got.group != want.group {
			t.Fatalf("frame %d: %+v, want %+v", i, got, want)
		}
		if got.read != (want.kind != kindAppend || want.install != nil) {
			t.Fatalf("frame %d: read %v", i, got.read)
		}
		if !got.read && (got.hs != want.hs || got.first != want.first || got.n != want.n || got.lastTerm != want.lastTerm || !reflect.DeepEqual(got.spans, want.spans)) {
			t.Fatalf("frame %d: %+v, want %+v", i, got, want)
		}
		return nil
	})
	if err != nil || i != len(frames) || last != 100+uint64(i)-1 {
		t.Fatal(i, last, err)
	}
	for n := range w.buf { // cut anywhere: refused
		if _, err := decodeFooter(w.buf[:n], 100, off, func(*footFrame) error { return nil }); err == nil {
			t.Fatalf("footer cut to %d bytes", n)
		}
	}
}

// A file with any change opens or is refused; it never panics, and what opens can be used.
func FuzzOpenFile(f *testing.F) {
	for _, sealed := range []bool{false, true} {
		mem := vfs.NewCrashableMem()
		l := open(f, mem)
		check(f, l.Create([]Creation{voter(5), voter(6)}))
		check(f, add(l, 5, HardState{2, 0, 1}, run(5, 2, 3, 2, 30)))
		check(f, add(l, 6, HardState{2, 0, 1}, run(6, 2, 3, 2, 30)))
		l.Trim(5, 3)
		check(f, appendWait(l, &Append{Replica: 6, HardState: HardState{3, 0, 50}, Install: &Install{Index: 50, Term: 3}}))
		if sealed {
			check(f, l.Close())
		}
		b := readFile(f, mem, logPath(1))
		f.Add(b, uint16(0), uint64(0), uint16(len(b)))
		f.Add(b, uint16(dataOffset+200), uint64(1), uint16(len(b)))
		f.Add(b, uint16(sealOffset+10), uint64(1<<40), uint16(len(b)))
		f.Add(b, uint16(0), uint64(0), uint16(len(b)-90))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint16, flip uint64, length uint16) {
		defer alloctest.Bound(t, len(b))()
		b = slices.Clone(b[:min(len(b), int(length))])
		if int(at)+8 <= len(b) {
			be.PutUint64(b[at:], be.Uint64(b[at:])^flip)
		}
		fs := disk(t, map[string][]byte{logPath(1): b})
		dumpErr := Dump(fs, logPath(1), io.Discard)
		l, err := Open(testOptions(fs))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
				t.Fatal(err)
			}
			return
		}
		if dumpErr != nil && !errors.Is(dumpErr, ErrCorrupt) {
			t.Fatal(dumpErr)
		}
		for _, c := range l.Creations() {
			v := l.Replica(c.Replica)
			if v == nil { // its creation is damaged
				check(t, l.Remove(c.Replica))
				continue
			}
			if _, err := entries(v, 100); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			err := add(l, c.Replica, HardState{v.HardState().Term, 0, v.HardState().Commit}, run(c.Replica, v.LastIndex()+1, 1, 9, 10))
			if err != nil && !errors.Is(err, ErrQuarantined) {
				t.Fatal(err)
			}
		}
		check(t, l.Close())
	})
}
