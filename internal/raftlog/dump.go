package raftlog

import (
	"errors"
	"fmt"
	"io"

	"chronik/internal/vfs"
)

// Dump prints the frames of one log file, a line each, for people. It says where
// the file is torn or corrupt, as far as the file alone can tell: a bad frame
// that a later one calls durable is corrupt. It returns a CorruptError in that
// case, after printing what there is.
func Dump(fs vfs.FS, path string, w io.Writer) error {
	file, err := fs.Open(path)
	if err != nil {
		return fmt.Errorf("raftlog: dump: %w", err)
	}
	f := newLogFile(path, file, fileHeader{size: maxFileBytes})
	return errors.Join(f.dump(w), f.release())
}

func (f *logFile) dump(w io.Writer) error {
	data, err := f.readAll()
	if err != nil {
		return err
	}
	p := printer{w: w}
	if f.fileHeader, err = decodeFileHeader(data); err != nil {
		p.f("0 CORRUPT %v\n", err)
		return errors.Join(f.corrupt(0, err.Error()), p.err)
	}
	data = data[:min(int64(len(data)), f.size)]
	p.f("file %d store %s epoch %016x size %d first-lsn %d previous-lsn %d\n",
		f.number, f.store, f.epoch, f.size, f.firstLSN, f.prevLast)
	res := scan(data, &f.fileHeader)
	durable := max(res.durable, f.prevLast)
	s, sealed := seal{}, false
	if len(data) > sealOffset {
		s, sealed = decodeSeal(data[sealOffset:], &f.fileHeader)
	}
	if sealed {
		durable = max(durable, s.lastLSN)
		p.f("sealed last-lsn %d footer %d bytes at %d\n", s.lastLSN, s.footerLen, s.footerOff)
	}
	err = p.frames(f, &res, durable)
	if sealed {
		err = errors.Join(err, p.footer(f, data, &s))
	}
	return errors.Join(err, p.err)
}

// printer keeps the first write error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) f(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// frames prints frames and bad spots in order.
func (p *printer) frames(f *logFile, res *scanResult, durable uint64) error {
	var corrupt error
	torn := false
	bad := res.bad
	spot := func(b *badSpot, end bool) {
		switch {
		case b.lsn <= durable:
			p.f("%d CORRUPT lsn %d: %s\n", b.off, b.lsn, b.what)
			corrupt = errors.Join(corrupt, f.corrupt(b.off, b.what))
		case torn:
		case end && !b.started:
			p.f("%d end of frames\n", b.off)
		default:
			torn = true
			p.f("%d TORN lsn %d: %s; what follows is dropped\n", b.off, b.lsn, b.what)
		}
	}
	for i := range res.frames {
		fr := &res.frames[i]
		for ; len(bad) > 0 && bad[0].lsn < fr.lsn; bad = bad[1:] {
			spot(&bad[0], false)
		}
		p.frame(fr, torn)
	}
	for i := range bad {
		spot(&bad[i], i == len(bad)-1)
	}
	return corrupt
}

var kindNames = map[uint8]string{
	kindAppend: "append", kindCreate: "create", kindRemove: "remove",
	kindTrim: "trim", kindRelocate: "relocate", kindNode: "node",
}

func (p *printer) frame(fr *frame, dropped bool) {
	p.f("%d %s lsn %d durable %d size %d", fr.off, kindNames[fr.kind], fr.lsn, fr.durable, fr.size)
	if fr.replica != 0 {
		p.f(" group %d replica %d", fr.group, fr.replica)
	}
	if fr.flags&hasHardState != 0 {
		p.f(" term %d vote %d commit %d", fr.hs.Term, fr.hs.Vote, fr.hs.Commit)
	}
	if in := fr.install; in != nil {
		p.f(" install (%d,%d) generation %d confstate %d bytes", in.Index, in.Term, in.Generation, len(in.ConfState))
	}
	if c := fr.creation; c != nil {
		p.f(" created-at %d first (%d,%d) info %d bytes", c.CreatedAt, c.First, c.FirstTerm, len(c.Info))
	}
	if fr.flags&hasBase != 0 {
		p.f(" trimmed-to (%d,%d)", fr.base, fr.baseTerm)
	}
	if fr.flags&hasBlob != 0 {
		p.f(" blob %d bytes", len(fr.blob))
	}
	if fr.flags&hasDamage != 0 {
		p.f(" damage %q", fr.damage)
	}
	if fr.n > 0 {
		p.f(" entries %d-%d terms", fr.first, uint64(fr.first)+uint64(fr.n)-1)
		for _, s := range fr.spans {
			p.f(" %dx%d", s.n, s.term)
		}
	}
	if dropped {
		p.f(" DROPPED")
	}
	p.f("\n")
}

func (p *printer) footer(f *logFile, data []byte, s *seal) error {
	if s.footerOff+s.footerLen > int64(len(data)) {
		p.f("%d CORRUPT footer cut short\n", s.footerOff)
		return f.corrupt(s.footerOff, "footer cut short")
	}
	b := data[s.footerOff : s.footerOff+s.footerLen]
	n := 0
	_, err := decodeFooter(b, f.firstLSN, s.footerOff, func(*footFrame) error { n++; return nil })
	if err == nil && checksum(b) != s.footerCRC {
		err = fmt.Errorf("%w: footer checksum", errFormat)
	}
	if err != nil {
		p.f("%d CORRUPT %v\n", s.footerOff, err)
		return f.corrupt(s.footerOff, err.Error())
	}
	p.f("%d footer of %d frames\n", s.footerOff, n)
	return nil
}
