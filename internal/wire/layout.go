package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// kmsg trusts a body in two ways that a stranger can use: an array's length
// allocates one Go struct for every byte that is left, at every level, and a
// count of tags is a loop that goes on to 2^32 when the bytes have run out. So
// a body is walked by its layout first: lengths must hold, what decoding will
// allocate is added up, and tags are cut out. (No tag of a client's request
// has a meaning here: those that exist are for replicas.)
//
// The layout of a request is learned from kmsg itself, once for each version:
// a field is set, and what changes in the encoding tells how it is written.

// errBody is what is wrong with a body that does not follow its layout.
var errBody = errors.New("a length leaves the request")

type opKind uint8

const (
	opFixed  opKind = iota // size bytes
	opString               // a length and text, which decoding copies
	opBytes                // a length and bytes, which decoding aliases
	opArray                // a count and elements
	opOption               // a presence byte and one element
	opStruct               // one element
)

// op is one step of a walk.
type op struct {
	kind opKind
	size int     // opFixed: bytes on the wire; opArray, opOption: of one element in memory
	elem *layout // opArray, opOption, opStruct
}

// layout is how a struct is written in one version.
type layout struct {
	ops      []op
	flexible bool
	tagged   bool // tags stand at its end
}

type layoutKey struct{ key, version int16 }

var layouts sync.Map // layoutKey → *layout

// layoutOf returns the layout of a request. Callers ask for served versions
// only, so the cache is bounded.
func layoutOf(key, version int16) *layout {
	k := layoutKey{key, version}
	if l, ok := layouts.Load(k); ok {
		return l.(*layout)
	}
	req := kmsg.RequestForKey(key)
	req.SetVersion(version)
	l := &learner{req: req, flexible: req.IsFlexible()}
	got, _ := layouts.LoadOrStore(k, l.structure(reflect.ValueOf(req).Elem()))
	return got.(*layout)
}

// learner finds out how kmsg writes a request.
type learner struct {
	req      kmsg.Request
	flexible bool
}

func (l *learner) encode() []byte { return l.req.AppendTo(nil) }

// structure learns v, which is a struct inside l.req.
func (l *learner) structure(v reflect.Value) *layout {
	out := &layout{flexible: l.flexible, tagged: l.flexible}
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if name == "UnknownTags" || name == "Version" && v.Addr().Interface() == any(l.req) {
			continue
		}
		o, ok := l.field(v.Field(i))
		if !ok {
			continue
		}
		if n := len(out.ops); o.kind == opFixed && n > 0 && out.ops[n-1].kind == opFixed {
			out.ops[n-1].size += o.size
			continue
		}
		out.ops = append(out.ops, o)
	}
	return out
}

// field learns one field and leaves it as it was; false: this version does not
// have it, or has it as a tag.
func (l *learner) field(f reflect.Value) (op, bool) {
	saved := reflect.New(f.Type()).Elem()
	saved.Set(f)
	defer f.Set(saved)
	switch f.Kind() {
	case reflect.Slice, reflect.String:
		return l.sequence(f)
	case reflect.Pointer:
		if f.Type().Elem().Kind() == reflect.Struct {
			return l.option(f)
		}
		return l.sequence(f)
	case reflect.Struct:
		// Written in place, or one tag: then each of its fields looks like one.
		elem := l.structure(f)
		return op{kind: opStruct, elem: elem}, len(elem.ops) > 0
	default: // fixed-size, below
	}
	before := l.encode()
	change(f)
	after := l.encode()
	if bytes.Equal(before, after) || len(before) != len(after) {
		return op{}, false
	}
	return op{kind: opFixed, size: wireSize(f.Type())}, true
}

// sequence learns a string, bytes or an array. What is written in place grows
// by the same with the first element and with the second; a tag does not.
func (l *learner) sequence(f reflect.Value) (op, bool) {
	f.SetZero()
	none := l.encode()
	l.fill(f, 1)
	one := l.encode()
	l.fill(f, 2)
	two := l.encode()
	if bytes.Equal(none, one) || len(two)-len(one) != len(one)-len(none) {
		return op{}, false
	}
	if f.Kind() != reflect.Slice {
		return op{kind: opString}, true
	}
	elem := f.Type().Elem()
	if elem.Kind() == reflect.Uint8 {
		return op{kind: opBytes}, true
	}
	o := op{kind: opArray, size: int(elem.Size())}
	if elem.Kind() == reflect.Struct {
		o.elem = l.structure(f.Index(0))
		return o, true
	}
	inner, ok := l.field(f.Index(0))
	if !ok {
		panic(fmt.Sprintf("wire: %T: cannot learn the elements of %s", l.req, f.Type()))
	}
	o.elem = &layout{ops: []op{inner}, flexible: l.flexible}
	return o, true
}

func (l *learner) option(f reflect.Value) (op, bool) {
	f.SetZero()
	none := l.encode()
	f.Set(reflect.New(f.Type().Elem()))
	setDefault(f)
	if bytes.Equal(none, l.encode()) {
		return op{}, false
	}
	return op{kind: opOption, size: int(f.Type().Elem().Size()), elem: l.structure(f.Elem())}, true
}

// fill gives f n elements.
func (l *learner) fill(f reflect.Value, n int) {
	switch f.Kind() {
	case reflect.String:
		f.SetString("xx"[:n])
	case reflect.Pointer:
		s := reflect.New(f.Type().Elem())
		s.Elem().SetString("xx"[:n])
		f.Set(s)
	default:
		f.Set(reflect.MakeSlice(f.Type(), n, n))
		for i := range n {
			if f.Index(i).Kind() == reflect.Struct {
				setDefault(f.Index(i).Addr())
			}
		}
	}
}

func setDefault(ptr reflect.Value) {
	if d, ok := ptr.Interface().(interface{ Default() }); ok {
		d.Default()
	}
}

// change makes a fixed-size value another one.
func change(f reflect.Value) {
	switch {
	case f.Kind() == reflect.Bool:
		f.SetBool(!f.Bool())
	case f.CanInt():
		f.SetInt(f.Int() ^ 1)
	case f.CanUint():
		f.SetUint(f.Uint() ^ 1)
	case f.CanFloat():
		f.SetFloat(f.Float() + 1)
	default: // a UUID
		change(f.Index(0))
	}
}

// wireSize is how many bytes a fixed-size value takes: as many as in memory.
func wireSize(t reflect.Type) int { return int(t.Size()) }

// checkBody walks a request body. It returns the body to decode (b itself,
// unless tags had to be cut out) and what decoding it allocates.
func checkBody(key, version int16, b []byte) (body []byte, cost int, err error) {
	w := walker{b: b}
	if !w.layout(layoutOf(key, version)) {
		return nil, 0, fmt.Errorf("%w, at byte %d of %d", errBody, w.at, len(b))
	}
	if w.cut {
		w.clean = append(w.clean, b[w.copied:]...)
		return w.clean, w.cost + len(w.clean), nil
	}
	return b, w.cost, nil
}

// walker steps through an encoded request.
type walker struct {
	b      []byte
	at     int // the next byte; <= len(b)
	cost   int // bytes of memory that decoding allocates
	clean  []byte
	copied int // b[:copied] is in clean, without tags. Only when cut
	cut    bool
}

func (w *walker) layout(l *layout) bool {
	for i := range l.ops {
		if !w.op(&l.ops[i], l.flexible) {
			return false
		}
	}
	return !l.tagged || w.tags()
}

func (w *walker) op(o *op, flexible bool) bool {
	switch o.kind {
	case opFixed:
		return w.skip(o.size)
	case opString:
		n, ok := w.length(2, flexible)
		w.cost += n + 16
		return ok && w.skip(n)
	case opBytes:
		n, ok := w.length(4, flexible)
		return ok && w.skip(n)
	case opArray:
		n, ok := w.length(4, flexible)
		if !ok || n > len(w.b)-w.at {
			return false // every element takes a byte
		}
		w.cost += n * o.size
		for range n {
			if !w.layout(o.elem) {
				return false
			}
		}
		return true
	case opOption:
		if w.at == len(w.b) {
			return false
		}
		null := w.b[w.at] == 0xff
		w.at++
		if null {
			return true
		}
		w.cost += o.size
		return w.layout(o.elem)
	case opStruct:
		return w.layout(o.elem)
	}
	return false
}

func (w *walker) skip(n int) bool {
	if n > len(w.b)-w.at {
		return false
	}
	w.at += n
	return true
}

// length reads a length or count; null is 0.
func (w *walker) length(size int, flexible bool) (int, bool) {
	if flexible {
		n, ok := w.uvarint()
		return max(0, n-1), ok
	}
	if len(w.b)-w.at < size {
		return 0, false
	}
	var n int
	if size == 2 {
		n = int(int16(binary.BigEndian.Uint16(w.b[w.at:])))
	} else {
		n = int(int32(binary.BigEndian.Uint32(w.b[w.at:])))
	}
	w.at += size
	return max(0, n), true
}

func (w *walker) uvarint() (int, bool) {
	v, n := binary.Uvarint(w.b[w.at:])
	if n <= 0 || n > binary.MaxVarintLen32 || v > math.MaxInt32 {
		return 0, false
	}
	w.at += n
	return int(v), true
}

// tags steps over a section of tags; one that is not empty is left out of clean.
func (w *walker) tags() bool {
	start := w.at
	n, ok := w.uvarint()
	if !ok {
		return false
	}
	for range n { // ends with the bytes: each tag takes two
		if _, ok = w.uvarint(); !ok {
			return false
		}
		size, ok := w.uvarint()
		if !ok || !w.skip(size) {
			return false
		}
	}
	if n > 0 {
		w.clean = append(append(w.clean, w.b[w.copied:start]...), 0)
		w.copied, w.cut = w.at, true
	}
	return true
}
