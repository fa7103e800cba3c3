package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newManCommand returns the command that writes the manual pages. It is for
// packagers and hidden.
func newManCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write manual pages",
		Long:    `Write a manual page in roff for every command to DIR. SOURCE_DATE_EPOCH is their date; without it they have none.`,
		Example: `  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) mstage man bin/man`,
		Hidden:  true,
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			date, err := sourceDate(c.getenv("SOURCE_DATE_EPOCH"))
			if err != nil {
				return err
			}
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writeManPages(args[0], cmd.Root(), date)
		},
	}
}

// sourceDate reads SOURCE_DATE_EPOCH. Source: reproducible-builds.org,
// "SOURCE_DATE_EPOCH specification" 1.1.
func sourceDate(value string) (string, error) {
	if value == "" {
		return "", nil
	}
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return "", usagef("SOURCE_DATE_EPOCH=%s: not a number of seconds", value)
	}
	return time.Unix(seconds, 0).UTC().Format(time.DateOnly), nil
}

// writeManPages writes the page of a command and of those below it.
func writeManPages(dir string, cmd *cobra.Command, date string) error {
	err := os.WriteFile(filepath.Join(dir, manName(cmd)+".1"), []byte(manPage(cmd, date)), 0o644)
	for _, sub := range documented(cmd) {
		err = errors.Join(err, writeManPages(dir, sub, date))
	}
	return err
}

// documented lists the commands below one that users are told about.
func documented(cmd *cobra.Command) []*cobra.Command {
	var subs []*cobra.Command
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			subs = append(subs, sub)
		}
	}
	return subs
}

// manName is "mstage-build".
func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// roff collects a page. Source: man(7), groff_man(7).
type roff struct{ strings.Builder }

// quoted are the characters that have a meaning for roff.
var quoted = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "`", "\\`", "'", `\(aq`)

// text writes lines of text; an empty one begins a paragraph.
func (r *roff) text(s string) {
	for line := range strings.Lines(strings.TrimSpace(s)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			r.WriteString(".PP\n")
		case strings.HasPrefix(line, "."):
			r.WriteString(`\&` + quoted.Replace(line) + "\n")
		default:
			r.WriteString(quoted.Replace(line) + "\n")
		}
	}
}

// section begins a section.
func (r *roff) section(title string) { fmt.Fprintf(r, ".SH %s\n", title) }

// literal writes lines as they are.
func (r *roff) literal(s string) {
	r.WriteString(".nf\n.RS\n")
	for line := range strings.Lines(strings.TrimRight(s, "\n")) {
		r.WriteString(`\&` + quoted.Replace(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "  ")) + "\n")
	}
	r.WriteString(".RE\n.fi\n")
}

// flags writes a list of flags.
func (r *roff) flags(title string, fs *pflag.FlagSet) {
	if !fs.HasAvailableFlags() {
		return
	}
	r.section(title)
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		r.WriteString(".TP\n")
		if f.Shorthand != "" {
			fmt.Fprintf(r, `\fB\-%s\fP, `, f.Shorthand)
		}
		fmt.Fprintf(r, `\fB\-\-%s\fP`, quoted.Replace(f.Name))
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			fmt.Fprintf(r, ` \fI%s\fP`, quoted.Replace(value))
		}
		r.WriteString("\n")
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" && !strings.Contains(usage, "(default") {
			usage += " (default " + f.DefValue + ")"
		}
		r.text(usage)
	})
}

// manPage returns the page of a command.
func manPage(cmd *cobra.Command, date string) string {
	r := &roff{}
	fmt.Fprintf(r, ".TH \"%s\" \"1\" \"%s\" \"mstage\" \"mstage manual\"\n.nh\n.ad l\n", strings.ToUpper(quoted.Replace(manName(cmd))), date)
	r.section("NAME")
	fmt.Fprintf(r, "%s \\- %s\n", quoted.Replace(manName(cmd)), quoted.Replace(cmd.Short))
	r.section("SYNOPSIS")
	fmt.Fprintf(r, "\\fB%s\\fP", quoted.Replace(cmd.CommandPath()))
	if cmd.HasAvailableSubCommands() {
		r.WriteString(" \\fICOMMAND\\fP")
	}
	fmt.Fprintf(r, "%s\n", quoted.Replace(strings.TrimPrefix(cmd.UseLine(), cmd.CommandPath())))
	r.section("DESCRIPTION")
	if cmd.Long != "" {
		r.text(cmd.Long)
	} else {
		r.text(cmd.Short + ".")
	}
	if subs := documented(cmd); len(subs) > 0 {
		r.section("COMMANDS")
		for _, sub := range subs {
			fmt.Fprintf(r, ".TP\n\\fB%s\\fP\n", quoted.Replace(sub.Name()))
			r.text(sub.Short)
		}
	}
	cmd.InitDefaultHelpFlag()
	r.flags("OPTIONS", cmd.NonInheritedFlags())
	r.flags("GLOBAL OPTIONS", cmd.InheritedFlags())
	if cmd.Example != "" {
		r.section("EXAMPLES")
		r.literal(cmd.Example)
	}
	r.seeAlso(cmd)
	return r.String()
}

// seeAlso lists the pages around a command's.
func (r *roff) seeAlso(cmd *cobra.Command) {
	var pages []string
	if cmd.HasParent() {
		pages = append(pages, manName(cmd.Parent()))
	}
	for _, sub := range documented(cmd) {
		pages = append(pages, manName(sub))
	}
	if len(pages) == 0 {
		return
	}
	r.section("SEE ALSO")
	for i, p := range pages {
		pages[i] = `\fB` + quoted.Replace(p) + `\fP(1)`
	}
	r.WriteString(strings.Join(pages, ",\n") + "\n")
}
