package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"chronik/internal/ident"
)

// kind is what a value is written as; it decides how TOML must write it.
type kind int

const (
	kindText kind = iota
	kindInt
	kindBool
	kindSize
	kindDuration
	kindAddr
	kindPeers
)

// want describes the kind in an error and in the reference.
func (k kind) want() string {
	switch k {
	case kindInt:
		return "an integer"
	case kindBool:
		return "true or false"
	case kindSize:
		return "a size such as 64MiB, or a number of bytes"
	case kindDuration:
		return "a duration such as 100ms, 10s or 1h"
	case kindAddr:
		return "host:port"
	case kindPeers:
		return "nodes such as 1@host:9192,2@host:9192"
	case kindText:
	}
	return "a string"
}

func (s setting) withFlag(flag string) setting   { s.flag = flag; return s }
func (s setting) withAlias(alias string) setting { s.alias = alias; return s }

// check adds a test of the text before it is stored.
func (s setting) check(ok func(text string) error) setting {
	parse := s.parse
	s.parse = func(c *Config, text string) error {
		if err := ok(text); err != nil {
			return err
		}
		return parse(c, text)
	}
	return s
}

// orAuto accepts "auto", which mark stores for derive to replace.
func (s setting) orAuto(mark func(*Config)) setting {
	parse := s.parse
	s.parse = func(c *Config, text string) error {
		if text == "auto" {
			mark(c)
			return nil
		}
		return parse(c, text)
	}
	return s
}

// intPtr is a pointer to an integer field of any type.
type intPtr struct {
	set func(int64)
	get func() int64
}

func ref[T int | int64 | uint64 | ident.NodeID](p *T) intPtr {
	return intPtr{func(v int64) { *p = T(v) }, func() int64 { return int64(*p) }}
}

func textSetting(name, def, doc string, at func(*Config) *string) setting {
	return setting{
		name: name, kind: kindText, def: def, doc: doc,
		parse: func(c *Config, text string) error { *at(c) = text; return nil },
		text:  func(c *Config) string { return *at(c) },
	}
}

func addrSetting(name, def, doc string, at func(*Config) *string) setting {
	s := textSetting(name, def, doc, at)
	s.kind = kindAddr
	return s
}

func enumSetting(name, def, doc string, at func(*Config) *string, values ...string) setting {
	return textSetting(name, def, doc+" One of `"+strings.Join(values, "`, `")+"`.", at).check(func(text string) error {
		if !slices.Contains(values, text) {
			return fmt.Errorf("%q is none of %s", text, strings.Join(values, ", "))
		}
		return nil
	})
}

func boolSetting(name, def, doc string, at func(*Config) *bool) setting {
	return setting{
		name: name, kind: kindBool, def: def, doc: doc,
		parse: func(c *Config, text string) error {
			switch text {
			case "true":
				*at(c) = true
			case "false":
				*at(c) = false
			default:
				return fmt.Errorf("want true or false, got %q", text)
			}
			return nil
		},
		text: func(c *Config) string { return strconv.FormatBool(*at(c)) },
	}
}

func intSetting(name, def string, lo, hi int64, doc string, at func(*Config) intPtr) setting {
	return setting{
		name: name, kind: kindInt, def: def, doc: doc,
		parse: func(c *Config, text string) error {
			n, err := strconv.ParseInt(strings.ReplaceAll(text, "_", ""), 10, 64)
			if err != nil {
				return fmt.Errorf("want an integer, got %q", text)
			}
			if n < lo || n > hi {
				return fmt.Errorf("%d is outside %d to %d", n, lo, hi)
			}
			at(c).set(n)
			return nil
		},
		text: func(c *Config) string { return strconv.FormatInt(at(c).get(), 10) },
	}
}

func sizeSetting(name, def string, lo, hi Size, doc string, at func(*Config) *Size) setting {
	return setting{
		name: name, kind: kindSize, def: def, doc: doc,
		parse: func(c *Config, text string) error {
			n, err := ParseSize(text)
			if err != nil {
				return err
			}
			if n < lo || n > hi {
				return fmt.Errorf("%s is outside %s to %s", n, lo, hi)
			}
			*at(c) = n
			return nil
		},
		text: func(c *Config) string { return at(c).String() },
	}
}

func durationSetting(name, def string, lo, hi time.Duration, doc string, at func(*Config) *time.Duration) setting {
	return setting{
		name: name, kind: kindDuration, def: def, doc: doc,
		parse: func(c *Config, text string) error {
			d, err := time.ParseDuration(text)
			if err != nil {
				return fmt.Errorf("want %s, got %q", kindDuration.want(), text)
			}
			if d < lo || d > hi {
				return fmt.Errorf("%s is outside %s to %s", durationText(d), durationText(lo), durationText(hi))
			}
			*at(c) = d
			return nil
		},
		text: func(c *Config) string { return durationText(*at(c)) },
	}
}

// durationText is Duration.String without zero minutes and seconds.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func peersSetting(name, doc string, at func(*Config) *[]Peer) setting {
	return setting{
		name: name, kind: kindPeers, doc: doc,
		parse: func(c *Config, text string) (err error) { *at(c), err = parsePeers(text); return err },
		text: func(c *Config) string {
			var parts []string
			for _, p := range *at(c) {
				parts = append(parts, p.ID.String()+"@"+p.Addr)
			}
			return strings.Join(parts, ",")
		},
	}
}

func parsePeers(text string) ([]Peer, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var out []Peer
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		id, addr, ok := strings.Cut(part, "@")
		if !ok {
			return nil, fmt.Errorf("peer %q: want id@host:port", part)
		}
		n, err := strconv.ParseInt(id, 10, 32)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("peer %q: the id must be 1 to %d", part, math.MaxInt32)
		}
		if err := checkAddr(addr); err != nil {
			return nil, fmt.Errorf("peer %q: %w", part, err)
		}
		if host, _, _ := net.SplitHostPort(addr); isWildcard(host) {
			return nil, fmt.Errorf("peer %q: other nodes cannot connect to %q", part, host)
		}
		for _, p := range out {
			switch {
			case p.ID == ident.NodeID(n):
				return nil, fmt.Errorf("peer %q: node %d is named twice", part, n)
			case p.Addr == addr:
				return nil, fmt.Errorf("peer %q: the address is node %d's", part, p.ID)
			}
		}
		out = append(out, Peer{ident.NodeID(n), addr})
	}
	return out, nil
}

func notEmpty(text string) error {
	if strings.TrimSpace(text) == "" {
		return fmt.Errorf("must not be empty")
	}
	return nil
}

// listenAddr checks an address that must be set.
func listenAddr(text string) error { return checkAddr(text) }

// checkAddr checks host:port; the host may be empty.
func checkAddr(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return fmt.Errorf("want host:port, got %q", text)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q: the port must be 1 to 65535", text)
	}
	if strings.ContainsAny(host, " \t/@") {
		return fmt.Errorf("%q: %q is no host name", text, host)
	}
	return nil
}

// storeURL refuses what names no object store. Its errors do not quote it: people put
// credentials into URLs.
func storeURL(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("it is no URL")
	case u.Scheme == "file" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return nil
	case u.Scheme == "s3" && u.Host != "":
		return nil
	case u.Scheme == "file":
		return errors.New("want file:///absolute/directory")
	case u.Scheme == "s3":
		return errors.New("want s3://bucket/prefix")
	}
	return errors.New("want file:// or s3://")
}

// Size is a number of bytes.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes Size
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"KB", 1e3},
	{"B", 1},
}

// ParseSize reads a size: a whole number and a unit (B, KiB, MiB, GiB, TiB, or
// KB, MB, GB, TB of powers of 1000), in any case; no unit means bytes.
func ParseSize(text string) (Size, error) {
	bad := fmt.Errorf("want %s, got %q", kindSize.want(), text)
	digits, unit := text, Size(1)
	for _, u := range sizeUnits {
		if n := len(text) - len(u.name); n > 0 && strings.EqualFold(text[n:], u.name) {
			digits, unit = strings.TrimSpace(text[:n]), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(digits, "_", ""), 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/int64(unit) {
		return 0, bad
	}
	return Size(n) * unit, nil
}

// String writes the size with the largest binary unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
