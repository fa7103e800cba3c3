package main

import (
	"context"

	"github.com/spf13/cobra"
)

func newUnshareCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unshare COMMAND…",
		Short: "Run a host command in the namespaces that builds run in",
		Long: `Run a command of this host as root of the user and mount namespaces that builds
run in: files of the store that belong to other user IDs can be looked at there.`,
		Example: `  mstage unshare ls -l ~/.local/share/mstage
  mstage unshare bash`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.unshare(cmd.Context(), args)
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (c *cli) unshare(ctx context.Context, args []string) error {
	eng, err := c.engine()
	if err != nil {
		return err
	}
	code, err := eng.Unshare(ctx, args)
	if err != nil {
		return err
	}
	return status(code)
}
