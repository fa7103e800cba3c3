package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/storage"
)

func newRmiCommand(c *cli) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rmi [-f] IMAGE…",
		Short:   "Remove images or their names",
		Long:    `Remove names of images. An image goes with its last name, and its layers with it unless the build cache or another image needs them.`,
		Example: `  mstage rmi hello`,
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.removeImages(cmd.Context(), args, force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove an image with all its names; one that does not exist is no error")
	return cmd
}

func (c *cli) removeImages(ctx context.Context, words []string, force bool) error {
	eng, err := c.engine()
	if err != nil {
		return err
	}
	var targets []worker.RemoveTarget
	for _, word := range words {
		t, err := removeTarget(ctx, eng.Images(), word)
		if force && errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		targets = append(targets, t)
	}
	if len(targets) == 0 {
		return nil
	}
	lines, err := eng.Remove(ctx, targets, force)
	for _, line := range lines {
		fmt.Fprintln(c.stdout, shortName(line))
	}
	return err
}

// shortName writes the name in a line as docker does.
func shortName(line string) string {
	const untagged = "Untagged: "
	name, ok := strings.CutPrefix(line, untagged)
	if !ok {
		return line
	}
	return untagged + reference.Familiar(name)
}

// removeTarget says what a word stands for: a name, or an image by its ID.
func removeTarget(ctx context.Context, images storage.Images, word string) (worker.RemoveTarget, error) {
	img, err := findImage(ctx, images, word)
	if err != nil {
		return worker.RemoveTarget{}, err
	}
	t := worker.RemoveTarget{Image: img.ID}
	if ref, err := reference.Parse(word); err == nil {
		name := ref.StoreName()
		if named, err := images.ByName(ctx, name); err == nil && named.ID == img.ID {
			t.Name = name
		}
	}
	return t, nil
}

func newPruneCommand(c *cli) *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use:   "prune [-a] [-f]",
		Short: "Remove what no image needs",
		Long: `Remove layers and blobs that no image and no build needs. With -a the build
cache, the cache directories of RUN --mount=type=cache and all images go too;
after that a plain rm -rf removes the store.`,
		Example: `  mstage prune
  mstage prune -a -f`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.prune(cmd.Context(), all, force)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "remove the build cache and all images, too")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "don't ask")
	return cmd
}

func (c *cli) prune(ctx context.Context, all, force bool) error {
	if !force && !c.confirm(all) {
		return nil
	}
	eng, err := c.engine()
	if err != nil {
		return err
	}
	freed, err := eng.Prune(ctx, all)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "Total reclaimed space: %s\n", units.HumanSize(float64(freed)))
	return err
}

// confirm asks; without an answer nothing is removed.
func (c *cli) confirm(all bool) bool {
	what := "all layers and blobs that no image needs"
	if all {
		what = "all images, the whole build cache and the cache directories"
	}
	fmt.Fprintf(c.stderr, "This removes %s. Continue? [y/N] ", what)
	answer, err := bufio.NewReader(c.stdin).ReadString('\n')
	if err != nil && answer == "" {
		fmt.Fprintln(c.stderr, "\nNothing removed: no answer (-f doesn't ask).")
		return false
	}
	return slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer)))
}
