package config

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// LoadOptions say where settings come from besides the defaults.
type LoadOptions struct {
	File  string            // a TOML file; empty: none
	Env   []string          // as os.Environ; only CHRONIK_* matters
	Flags map[string]string // by setting name
}

const envPrefix = "CHRONIK_"

// otherEnv are variables that are no settings: the client commands' and the
// test harness's, which the nodes it starts inherit. So is CHRONIK_TEST_*.
var otherEnv = []string{"CHRONIK_BOOTSTRAP", "CHRONIK_FULL", "CHRONIK_ROUNDS", "CHRONIK_SEED"}

// serviceEnv matches what Kubernetes puts into every container when a service
// is called chronik, or chronik-something.
var serviceEnv = regexp.MustCompile(`^CHRONIK_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// Load merges the defaults, the file, the environment and the flags, checks the
// result and fills in what follows from other settings. Errors are *Error.
func Load(opt LoadOptions) (*Config, error) {
	l := &loader{c: &Config{origins: map[string]string{}}}
	for i := range settings {
		if err := settings[i].parse(l.c, settings[i].def); err != nil {
			return nil, &Error{Msg: fmt.Sprintf("default of %s: %v", settings[i].name, err)}
		}
	}
	if opt.File != "" {
		data, err := os.ReadFile(opt.File)
		if err != nil {
			return nil, &Error{Msg: fmt.Sprintf("cannot read the configuration: %v", err), Hint: "--config names a TOML file"}
		}
		if err := l.file(opt.File, data); err != nil {
			return nil, err
		}
	}
	if err := l.env(opt.Env); err != nil {
		return nil, err
	}
	if err := l.flags(opt.Flags); err != nil {
		return nil, err
	}
	l.c.derive()
	if err := l.c.Validate(); err != nil {
		return nil, err
	}
	return l.c, nil
}

type loader struct{ c *Config }

// set stores text as the value of s. at says where it stands.
func (l *loader) set(s *setting, text, at string) error {
	if err := s.parse(l.c, text); err != nil {
		return &Error{Msg: fmt.Sprintf("%s: %s: %v", at, s.name, err), Hint: s.hint()}
	}
	l.c.origins[s.name] = at
	return nil
}

// hint says what a value of s looks like.
func (s *setting) hint() string {
	if s.def != "" {
		return fmt.Sprintf("%s is %s; the default is %s", s.name, s.kind.want(), s.def)
	}
	return fmt.Sprintf("%s is %s", s.name, s.kind.want())
}

func (l *loader) env(env []string) error {
	env = slices.Clone(env)
	slices.Sort(env) // the alias comes first: the full name wins
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) || strings.HasPrefix(name, envPrefix+"TEST_") || slices.Contains(otherEnv, name) {
			continue
		}
		s := findEnv(name)
		if s == nil {
			if serviceEnv.MatchString(name) {
				continue
			}
			var names []string
			for i := range settings {
				names = append(names, settings[i].envName())
				if settings[i].alias != "" {
					names = append(names, settings[i].alias)
				}
			}
			return &Error{
				Msg:  fmt.Sprintf("environment: %s is no setting%s", name, didYouMean(name, names)),
				Hint: "a variable is CHRONIK_ and a setting with underscores for dots; 'chronik config print' lists them",
			}
		}
		if err := l.set(s, value, "environment "+name); err != nil {
			return err
		}
	}
	return nil
}

func (s *setting) envName() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.name, ".", "_"))
}

func findEnv(name string) *setting {
	for i := range settings {
		if s := &settings[i]; s.envName() == name || s.alias == name {
			return s
		}
	}
	return nil
}

func (l *loader) flags(flags map[string]string) error {
	names := make([]string, 0, len(flags))
	for name := range flags {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		s := find(name)
		if s == nil {
			return &Error{
				Msg:  fmt.Sprintf("flag --set %s: no such setting%s", name, didYouMean(name, settingNames())),
				Hint: "'chronik config print' lists all settings", Flag: true,
			}
		}
		if err := s.parse(l.c, flags[name]); err != nil {
			return &Error{Msg: fmt.Sprintf("%s: %s: %v", s.flagName(), s.name, err), Hint: s.hint(), Flag: true}
		}
		l.c.origins[s.name] = s.flagName()
	}
	return nil
}

func (s *setting) flagName() string {
	if s.flag != "" {
		return "flag --" + s.flag
	}
	return "flag --set"
}

func settingNames() []string {
	out := make([]string, len(settings))
	for i := range settings {
		out[i] = settings[i].name
	}
	return out
}

// file reads a TOML document. The syntax tree is walked rather than decoded
// into a struct: it knows the line of each key.
func (l *loader) file(name string, data []byte) error {
	d := &document{l: l, name: name, lines: map[string]int{}}
	d.p.Reset(data)
	var section []string
	for d.p.NextExpression() {
		e := d.p.Expression()
		key, line := d.key(e)
		switch e.Kind {
		case unstable.Table:
			section = key
			if err := d.section(section, line); err != nil {
				return err
			}
		case unstable.ArrayTable:
			return d.errorf(line, "", "[[%s]]: no setting is a list of tables", strings.Join(key, "."))
		case unstable.KeyValue:
			if err := d.value(append(slices.Clone(section), key...), line, e.Value()); err != nil {
				return err
			}
		default: // a comment
		}
	}
	if err := d.p.Error(); err != nil {
		return d.syntax(data, err)
	}
	return nil
}

type document struct {
	l     *loader
	name  string
	p     unstable.Parser
	lines map[string]int // where a key or section was first seen
}

func (d *document) errorf(line int, hint, format string, args ...any) error {
	return &Error{Msg: fmt.Sprintf("%s:%d: ", d.name, line) + fmt.Sprintf(format, args...), Hint: hint}
}

func (d *document) syntax(data []byte, err error) error {
	line := 1 + strings.Count(string(data), "\n")
	var pe *unstable.ParserError
	if errors.As(err, &pe) && len(pe.Highlight) > 0 {
		line = d.p.Shape(d.p.Range(pe.Highlight)).Start.Line
	}
	return d.errorf(line, "the file must be TOML, for example:  [node]  id = 1", "not TOML: %v", err)
}

// key returns the parts of an expression's key and its line.
func (d *document) key(e *unstable.Node) (parts []string, line int) {
	for it := e.Key(); it.Next(); {
		n := it.Node()
		if line == 0 {
			line = d.p.Shape(n.Raw).Start.Line
		}
		parts = append(parts, string(n.Data))
	}
	return parts, line
}

func (d *document) section(path []string, line int) error {
	name := strings.Join(path, ".")
	if first, ok := d.lines["["+name+"]"]; ok {
		return d.errorf(line, "", "section [%s] stands in line %d already", name, first)
	}
	d.lines["["+name+"]"] = line
	var names []string
	for i := range settings {
		s, _, _ := strings.Cut(settings[i].name, ".")
		if s == name {
			return nil
		}
		if !slices.Contains(names, s) {
			names = append(names, s)
		}
	}
	return d.errorf(line, "the sections are "+strings.Join(names, ", "), "no such section [%s]%s", name, didYouMean(name, names))
}

func (d *document) value(path []string, line int, v *unstable.Node) error {
	name := strings.Join(path, ".")
	if v.Kind == unstable.InlineTable {
		for it := v.Children(); it.Next(); {
			kv := it.Node()
			key, at := d.key(kv)
			if err := d.value(append(slices.Clone(path), key...), at, kv.Value()); err != nil {
				return err
			}
		}
		return nil
	}
	s := find(name)
	if s == nil {
		return d.errorf(line, "'chronik config print' lists all settings", "no such setting %s%s", name, didYouMean(name, settingNames()))
	}
	if first, ok := d.lines[name]; ok {
		return d.errorf(line, "", "%s is set in line %d already", name, first)
	}
	d.lines[name] = line
	text, ok := valueText(s, v)
	if !ok {
		return d.errorf(line, s.hint(), "%s: want %s, got %s", name, s.kind.want(), describe(v))
	}
	return d.l.set(s, text, fmt.Sprintf("%s:%d", d.name, line))
}

// valueText returns a TOML value as the text parse reads, if it has the type
// that s wants.
func valueText(s *setting, v *unstable.Node) (string, bool) {
	switch v.Kind {
	case unstable.String:
		text := string(v.Data)
		return text, s.kind != kindInt && s.kind != kindBool || s.kind == kindInt && text == "auto" && s.def == "auto"
	case unstable.Integer:
		return string(v.Data), s.kind == kindInt || s.kind == kindSize
	case unstable.Bool:
		return string(v.Data), s.kind == kindBool
	case unstable.Array:
		if s.kind != kindPeers {
			return "", false
		}
		var parts []string
		for it := v.Children(); it.Next(); {
			if it.Node().Kind != unstable.String {
				return "", false
			}
			parts = append(parts, string(it.Node().Data))
		}
		return strings.Join(parts, ","), true
	default:
		return "", false
	}
}

// describe names a TOML value in an error.
func describe(v *unstable.Node) string {
	switch v.Kind {
	case unstable.String:
		return "the string " + strconv.Quote(string(v.Data))
	case unstable.Integer:
		return "the integer " + string(v.Data)
	case unstable.Float:
		return "the float " + string(v.Data)
	case unstable.Bool:
		return string(v.Data)
	case unstable.Array:
		return "an array"
	default:
		return "a date"
	}
}

// didYouMean proposes the name nearest to what was written, if any is near.
func didYouMean(name string, names []string) string {
	best, at := len(name)/2+1, ""
	for _, n := range names {
		if d := distance(name, n); d < best {
			best, at = d, n
		}
	}
	if at == "" {
		return ""
	}
	return "; did you mean " + at + "?"
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours that make b of a.
func distance(a, b string) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}
