package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/sandbox/rootless"
)

func newDoctorCommand(c *cli) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host offers to builds and what is missing",
		Long: `Say what this host offers to builds and what is missing, with the command that
mends it. The exit code is 5 when builds with RUN can't work here.`,
		Example: `  mstage doctor
  mstage doctor --format json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.doctor(cmd.Context(), format)
		},
	}
	cmd.Flags().StringVar(&format, "format", "text", "text or json")
	return cmd
}

func (c *cli) doctor(ctx context.Context, format string) error {
	report := rootless.Check(ctx)
	switch format {
	case "json":
		enc := json.NewEncoder(c.stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(report); err != nil {
			return err
		}
	case "text":
		writeReport(c.stdout, report)
	default:
		return usagef("--format %s: text or json", format)
	}
	if !report.OK() {
		return status(engine.ExitHost)
	}
	return nil
}

// writeReport writes a row for each condition, the mend below it.
func writeReport(w io.Writer, report rootless.Report) {
	for _, row := range report.Rows {
		fmt.Fprintf(w, "%-5s %-22s %s\n", row.Status, row.Name, row.Message)
		if row.Hint != "" {
			fmt.Fprintf(w, "%28s mend: %s\n", "", row.Hint)
		}
	}
}
