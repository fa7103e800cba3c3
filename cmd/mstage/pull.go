package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/storage"
)

// pullFlags are the flags of `mstage pull`.
type pullFlags struct {
	registryFlags

	platform string
	policy   string
	progress string
	quiet    bool
}

func newPullCommand(c *cli) *cobra.Command {
	var f pullFlags
	cmd := &cobra.Command{
		Use:   "pull [flags] IMAGE…",
		Short: "Bring images from a registry into the store",
		Long: `Bring images from a registry into the local store, under the names that they
have there. Layers that the store has are not downloaded again, and the
original blobs are kept: the image can be pushed or saved with the same digest.
The image IDs are printed.`,
		Example: `  mstage pull debian:12
  mstage pull registry.example.com/team/app@sha256:…`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.pull(cmd.Context(), &f, args)
		},
	}
	f.registerPull(cmd)
	f.registerCA(cmd)
	cmd.Flags().StringVar(&f.platform, "platform", "", "`OS/ARCH[/VARIANT]` (default this host's)")
	cmd.Flags().StringVar(&f.policy, "policy", "always", "always, missing or never")
	cmd.Flags().StringVar(&f.progress, "progress", "", progressFlag)
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print the image IDs only")
	return cmd
}

func (c *cli) pull(ctx context.Context, f *pullFlags, words []string) error {
	if f.platform != "" {
		p, err := parsePlatform(f.platform, "linux/arm64")
		if err != nil {
			return err
		}
		f.platform = p.String()
	}
	for _, word := range words {
		if _, err := reference.Parse(word); err != nil {
			return &usageError{message: err.Error()}
		}
	}
	out, err := c.newProgress(progressOptions{mode: f.progress, quiet: f.quiet, title: "Pulling"})
	if err != nil {
		return err
	}
	var pulled []storage.Digest
	err = showing(out, func() error {
		eng, err := c.registryEngine(&f.registryFlags, f.policy)
		if err != nil {
			return err
		}
		for _, word := range words {
			img, err := eng.Pull(ctx, word, f.platform, out)
			if err != nil {
				return err
			}
			pulled = append(pulled, img.ID)
		}
		return nil
	})
	// Not before: a line of another stream would tear the picture.
	for _, id := range pulled {
		if _, err := fmt.Fprintln(c.stdout, id); err != nil {
			return err
		}
	}
	return err
}

// pullMissing returns the image that a word stands for, from a registry when the
// store has none.
func pullMissing(ctx context.Context, eng *engine.Engine, word string, sink progress.Sink) (storage.Image, error) {
	img, err := findImage(ctx, eng.Images(), word)
	if err == nil {
		return img, nil
	}
	if _, unknown := errors.AsType[noSuchImageError](err); !unknown {
		return img, err
	}
	return eng.Pull(ctx, word, "", sink)
}
