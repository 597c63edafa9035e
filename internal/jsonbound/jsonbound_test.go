package jsonbound

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	const mib = 1 << 20
	fill := func(element string) string { return "[" + strings.Repeat(element+",", mib/(len(element)+1)) + "0]" }
	for name, c := range map[string]struct {
		doc  string
		fits bool
	}{
		"objects":                       {fill("{}"), false},
		"nulls":                         {fill("null"), false},
		"arrays":                        {fill("[]"), false},
		"small objects":                 {fill(`{"a":0}`), false},
		"objects with sense":            {fill(`{"node":1,"store":"0123456789abcdef","replica":7}`), true},
		"the least a topic is named by": {fill(`{"name":"abc"}`), true},
		"assignments of one":            {fill("[1]"), true},
		"numbers":                       {fill("1"), true},
		"braces in strings":             {fill(`"{{{{{{[[[[[[nnnn\"{{{{"`), true},
		"few":                           {"[" + strings.Repeat("{},", 1000) + "{}]", true},
		"nothing":                       {"", true},
	} {
		err := Check([]byte(c.doc))
		if (err == nil) != c.fits || err != nil && !errors.Is(err, ErrCrowded) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzCheck: what is checked is as crowded as the check says, by another count.
func FuzzCheck(f *testing.F) {
	f.Add([]byte(`{"a":[{},null,"{\"[",[]]}`))
	f.Add([]byte(strings.Repeat("[{", 600)))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := Check(b)
		var v any
		if json.Unmarshal(b, &v) != nil {
			return
		}
		if crowded := objects(v) > free+len(b)/bytesEach; crowded && err == nil {
			t.Fatalf("%d objects in %d bytes pass", objects(v), len(b))
		}
	})
}

// objects counts the objects and nulls in a decoded document.
func objects(v any) int {
	n := 0
	switch v := v.(type) {
	case nil:
		n++
	case map[string]any:
		n++
		for _, e := range v {
			n += objects(e)
		}
	case []any:
		for _, e := range v {
			n += objects(e)
		}
	}
	return n
}
