package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newReference prints docs/cli.md.
func newReference() *cobra.Command {
	return &cobra.Command{
		Use: "reference", Short: "print this reference of all commands, as Markdown", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			writeReference(c.OutOrStdout(), c.Root())
			return nil
		},
	}
}

const referenceIntro = `# Commands

<!-- Generated from cmd/chronik. Change the commands there and run make docs. -->

A command ends with 0, with 1 after an error, and with 2 after wrong usage. What is wrong is told on stderr, as ` + "`chronik: error: …`" + `
and mostly ` + "`chronik: hint: …`" + `. Every listing has ` + "`--json`" + ` (or ` + "`-o json`" + `) and ` + "`-o wide`" + `. Every client command takes ` + "`--bootstrap`" + `. The
environment variables of ` + "`chronik start`" + ` are in [configuration.md](configuration.md).

| command | what it does |
|---|---|
`

// writeReference writes a table of all commands, and a section for each that does something.
func writeReference(w io.Writer, root *cobra.Command) {
	fmt.Fprint(w, referenceIntro)
	var all []*cobra.Command
	visit(root, func(c *cobra.Command) { all = append(all, c) })
	for _, c := range all {
		anchor := strings.ReplaceAll(c.CommandPath(), " ", "-")
		fmt.Fprintf(w, "| [`%s`](#%s) | %s |\n", cell(c.CommandPath()), anchor, cell(c.Short))
	}
	for _, c := range all {
		fmt.Fprintf(w, "\n## %s\n\n```\n%s\n```\n\n", c.CommandPath(), strings.TrimSuffix(c.UseLine(), " [flags]"))
		about := c.Long
		if about == "" {
			about = strings.ToUpper(c.Short[:1]) + c.Short[1:] + "."
		}
		fmt.Fprintln(w, about)
		writeFlags(w, c)
	}
}

// visit calls f with every command that a user sees and that is not only a holder of others.
func visit(c *cobra.Command, f func(*cobra.Command)) {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return
	}
	if !c.HasSubCommands() || c.Name() == "dev" {
		f(c)
	}
	for _, sub := range c.Commands() {
		visit(sub, f)
	}
}

func writeFlags(w io.Writer, c *cobra.Command) {
	head := "\n| flag | default | meaning |\n|---|---|---|\n"
	flags := func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		fmt.Fprint(w, head)
		head = ""
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		def := ""
		if f.DefValue != "" && f.DefValue != "[]" {
			def = "`" + cell(f.DefValue) + "`"
		}
		fmt.Fprintf(w, "| `%s` | %s | %s |\n", name, def, cell(f.Usage))
	}
	c.InitDefaultHelpFlag()
	c.NonInheritedFlags().VisitAll(flags)
	c.InheritedFlags().VisitAll(flags)
}

// cell makes text fit into a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", "\\|") }
