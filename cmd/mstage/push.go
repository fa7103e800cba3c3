package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/storage"
)

// pushFlags are the flags of `mstage push`.
type pushFlags struct {
	registryFlags

	digestFile string
	progress   string
	quiet      bool
}

func newPushCommand(c *cli) *cobra.Command {
	var f pushFlags
	cmd := &cobra.Command{
		Use:   "push [flags] IMAGE [NAME[:TAG]]",
		Short: "Send an image to a registry",
		Long: `Send an image of the local store to the registry that its name says, or to NAME.
Blobs that the registry has are not sent. The digest is printed.`,
		Example: `  mstage push registry.example.com/team/app:1.0
  mstage push hello localhost:5000/hello`,
		Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.push(cmd.Context(), &f, args[0], args[len(args)-1])
		},
	}
	f.registerPull(cmd)
	f.registerCA(cmd)
	cmd.Flags().StringVar(&f.digestFile, "digestfile", "", "write the digest to `FILE`")
	cmd.Flags().StringVar(&f.progress, "progress", "", progressFlag)
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print the digest only")
	return cmd
}

func (c *cli) push(ctx context.Context, f *pushFlags, word, to string) error {
	name, err := reference.Normalize(to)
	if err != nil {
		return &usageError{message: err.Error(), hint: "mstage push IMAGE NAME[:TAG] says where to push"}
	}
	if err := checkFile("--digestfile", f.digestFile); err != nil {
		return err
	}
	out, err := c.newProgress(progressOptions{mode: f.progress, quiet: f.quiet, title: "Pushing"})
	if err != nil {
		return err
	}
	var digest storage.Digest
	err = showing(out, func() error {
		eng, err := c.registryEngine(&f.registryFlags, "never")
		if err != nil {
			return err
		}
		img, err := findImage(ctx, eng.Images(), word)
		if err != nil {
			return err
		}
		digest, err = eng.Push(ctx, img, []string{name}, out)
		return err
	})
	if err != nil {
		return err
	}
	if f.digestFile != "" {
		if err := writeFile(f.digestFile, []byte(digest)); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(c.stdout, digest)
	return err
}
