package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/engine/plan"
)

func newPlanCommand(c *cli) *cobra.Command {
	var f buildFlags
	var format string
	cmd := &cobra.Command{
		Use:   "plan [flags] CONTEXT|-",
		Short: "Show what a build would do",
		Long: `Show the stages, sources and steps of a build: which stages the target needs and
what each FROM and --from word stands for. Nothing is run, no network is asked
and no plugin started. Exit code 0 means that the Dockerfile is accepted.`,
		Example: `  mstage plan .
  mstage plan --format dot . | dot -Tsvg > plan.svg`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.plan(cmd.Context(), &f, format, args[0])
		},
	}
	f.registerPlan(cmd)
	cmd.Flags().StringVar(&format, "format", "text", "text, json or dot")
	return cmd
}

func (c *cli) plan(ctx context.Context, f *buildFlags, format, contextArg string) error {
	write, ok := map[string]func(io.Writer, *plan.Plan) error{
		"text": writePlanText, "json": writePlanJSON, "dot": writePlanDot,
	}[format]
	if !ok {
		return usagef("--format %s: text, json or dot", format)
	}
	req, cleanup, err := c.request(ctx, f, contextArg)
	if err != nil {
		return err
	}
	defer func() { _ = cleanup() }()
	eng, err := c.engine()
	if err != nil {
		return err
	}
	p, err := eng.Plan(ctx, req, false)
	if err != nil {
		return err
	}
	return write(c.stdout, p)
}

func writePlanJSON(w io.Writer, p *plan.Plan) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(p)
}

// notAsked is shown for a source that only a network could tell about.
const notAsked = "registry (not asked)"

// writePlanText writes one paragraph for each stage.
func writePlanText(w io.Writer, p *plan.Plan) error {
	var b strings.Builder
	fmt.Fprintf(&b, "platform %s\n", p.Platform)
	for i, st := range p.Stages {
		target := ""
		if i == p.Target {
			target = "  (target)"
		}
		fmt.Fprintf(&b, "\nstage %d %s%s\n", st.Index, printable(stageName(&st)), target)
		fmt.Fprintf(&b, "  FROM %s\n", printable(sourceText(p, st.Base)))
		for _, s := range st.Steps {
			fmt.Fprintf(&b, "  %s\n", printable(s.Title))
			for _, line := range stepSources(p, &s) {
				fmt.Fprintf(&b, "      %s\n", printable(line))
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func stageName(st *plan.Stage) string {
	if st.Name != "" {
		return st.Name
	}
	return "(unnamed)"
}

// sourceText says what a source is and who answered for it.
func sourceText(p *plan.Plan, s plan.Source) string {
	switch {
	case s.Stage != nil:
		st := &p.Stages[*s.Stage]
		return fmt.Sprintf("stage %d %s", st.Index, stageName(st))
	case s.Image != nil:
		img := &p.Images[*s.Image]
		if img.ID == "" {
			return img.Reference + ": " + notAsked
		}
		return fmt.Sprintf("%s: image %s (%s)", img.Reference, img.ID.Short(), img.Source)
	case s.Scratch:
		return "scratch"
	default:
		return "build context"
	}
}

// stepSources lists what a step reads besides its own stage.
func stepSources(p *plan.Plan, s *plan.Step) []string {
	var lines []string
	if s.Copy != nil && !s.Copy.Context {
		lines = append(lines, "from "+sourceText(p, s.Copy.From))
	}
	if s.Run != nil {
		for _, m := range s.Run.Mounts {
			if m.From.Stage != nil || m.From.Image != nil {
				lines = append(lines, fmt.Sprintf("mount %s from %s", m.Target, sourceText(p, m.From)))
			}
		}
	}
	return lines
}

// writePlanDot writes the stages and images as a graph for graphviz.
func writePlanDot(w io.Writer, p *plan.Plan) error {
	var b strings.Builder
	b.WriteString("digraph plan {\n  rankdir=LR;\n  node [shape=box, fontname=monospace];\n")
	for i, img := range p.Images {
		label := img.Reference
		if img.ID == "" {
			label += "\n" + notAsked
		}
		fmt.Fprintf(&b, "  image%d [label=%q, style=dashed];\n", i, label)
	}
	for i, st := range p.Stages {
		lines := []string{fmt.Sprintf("%d: %s", st.Index, stageName(&st))}
		for _, s := range st.Steps {
			lines = append(lines, s.Title)
		}
		style := ""
		if i == p.Target {
			style = ", penwidth=2"
		}
		fmt.Fprintf(&b, "  stage%d [label=%q%s];\n", i, strings.Join(lines, "\n"), style)
		writeEdge(&b, st.Base, i, "FROM")
		writeStepEdges(&b, &st, i)
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// writeStepEdges draws each source that steps read once.
func writeStepEdges(b *strings.Builder, st *plan.Stage, to int) {
	var sources []plan.Source
	for _, s := range st.Steps {
		if s.Copy != nil {
			sources = append(sources, s.Copy.From)
		}
		if s.Run != nil {
			for _, m := range s.Run.Mounts {
				sources = append(sources, m.From)
			}
		}
	}
	var drawn []string
	for _, s := range sources {
		if node := nodeName(s); node != "" && !slices.Contains(drawn, node) {
			drawn = append(drawn, node)
			writeEdge(b, s, to, "--from")
		}
	}
}

func writeEdge(b *strings.Builder, from plan.Source, to int, label string) {
	if node := nodeName(from); node != "" {
		fmt.Fprintf(b, "  %s -> stage%d [label=%q];\n", node, to, label)
	}
}

// nodeName is a source's node, "" for what is no node.
func nodeName(s plan.Source) string {
	switch {
	case s.Stage != nil:
		return fmt.Sprintf("stage%d", *s.Stage)
	case s.Image != nil:
		return fmt.Sprintf("image%d", *s.Image)
	default:
		return ""
	}
}
