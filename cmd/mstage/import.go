package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"
)

func newImportCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE|- NAME[:TAG]",
		Short: "Make an image of a root file system tar",
		Long: `Make an image of one layer out of the tar of a root file system, compressed or
not. "-" reads standard input. The image ID is printed.`,
		Example: `  mstage import rootfs.tar debian:12
  mmdebstrap bookworm - | mstage import - debian:12`,
		Args: arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.importImage(cmd.Context(), args[0], args[1])
		},
	}
}

func (c *cli) importImage(ctx context.Context, file, word string) error {
	name, err := imageName(word)
	if err != nil {
		return err
	}
	path := ""
	if file != "-" {
		if path, err = readable(file); err != nil {
			return err
		}
		if path, err = filepath.Abs(path); err != nil {
			return err
		}
	}
	eng, err := c.engine()
	if err != nil {
		return err
	}
	img, err := eng.Import(ctx, path, name)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.stdout, img.ID)
	return err
}
