package config

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Print writes the configuration as TOML, with the origin of each value. What
// it writes, Load reads.
func (c *Config) Print(w io.Writer) error {
	var b strings.Builder
	section := ""
	for i := range settings {
		s := &settings[i]
		sec, key, _ := strings.Cut(s.name, ".")
		if sec != section {
			if section != "" {
				b.WriteByte('\n')
			}
			fmt.Fprintf(&b, "[%s]\n", sec)
			section = sec
		}
		fmt.Fprintf(&b, "%-48s # %s\n", key+" = "+s.toml(c), c.origin(s.name))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Setting is one setting's value, and where it comes from.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Origin string `json:"origin"`
	Env    string `json:"environment"` // the variable that sets it
}

// List returns every setting in the order of the reference.
func (c *Config) List() []Setting {
	out := make([]Setting, len(settings))
	for i := range settings {
		s := &settings[i]
		out[i] = Setting{Name: s.name, Value: s.text(c), Origin: c.origin(s.name), Env: s.envName()}
	}
	return out
}

func (c *Config) origin(name string) string {
	if o := c.origins[name]; o != "" {
		return o
	}
	return "default"
}

// toml writes the value as TOML.
func (s *setting) toml(c *Config) string {
	text := s.text(c)
	if s.kind == kindInt || s.kind == kindBool {
		return text
	}
	return tomlString(text)
}

// tomlString quotes text as a basic TOML string.
func tomlString(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Reference is the text of docs/configuration.md.
func Reference() string {
	var b strings.Builder
	b.WriteString(`# Configuration

<!-- Generated from internal/config. Change the table there and run make docs. -->

A setting's value comes from the last of these that sets it: its default, the TOML file (` + "`--config FILE`" + `), the environment, the
flags of ` + "`chronik start`" + ` (any setting with ` + "`--set name=value`" + `). Nothing needs to be set: a node then is a standalone broker on
127.0.0.1:9092 with its data in ` + "`./data`" + `.

An unknown setting or a value of the wrong type is refused, with the place and the nearest name. ` + "`chronik config check`" + ` checks without
starting; ` + "`chronik config print`" + ` shows every value and where it comes from.

Sizes are whole numbers with B, KiB, MiB, GiB or TiB (KB, MB, GB, TB count in thousands); without a unit, bytes. Durations are
written as 100ms, 10s, 5m or 1h. The environment's name of a setting is its own in capitals, with underscores for dots, after
` + "`CHRONIK_`" + `: ` + "`snapshot.threshold_entries`" + ` is ` + "`CHRONIK_SNAPSHOT_THRESHOLD_ENTRIES`" + `.
`)
	section := ""
	for i := range settings {
		s := &settings[i]
		if sec, _, _ := strings.Cut(s.name, "."); sec != section {
			section = sec
			fmt.Fprintf(&b, "\n## %s\n\n| setting | default | meaning |\n|---|---|---|\n", sec)
		}
		def := "empty"
		if s.def != "" {
			def = "`" + s.def + "`"
		}
		doc := strings.ReplaceAll(s.doc, "|", "\\|")
		if s.flag != "" {
			doc += " Flag `--" + s.flag + "`."
		}
		if s.alias != "" {
			doc += " Also `" + s.alias + "` in the environment."
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.name, def, doc)
	}
	b.WriteString(`
## A file

` + "```toml" + `
[node]
id = 1
data_dir = "/var/lib/chronik"

[kafka]
listen = "0.0.0.0:9092"
advertised = "broker-1.example.com:9092"

[cluster]
peers = ["1@broker-1.example.com:9192", "2@broker-2.example.com:9192", "3@broker-3.example.com:9192"]

[snapshot]
threshold_entries = ` + strconv.Itoa(10000) + `
max_bytes_per_second = "100MiB"
` + "```" + `
`)
	return b.String()
}
