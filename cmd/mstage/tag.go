package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/pkg/reference"
)

// reservedName means an empty base after FROM, so an image of that name could
// never be used.
const reservedName = "docker.io/library/scratch"

func newTagCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "tag IMAGE NAME[:TAG]",
		Short: "Give an image one more name",
		Long: `Give an image one more name. The tag is "latest" when none is written. A name
that another image has is moved; that image stays, by its ID.`,
		Example: `  mstage tag hello hello:1.0
  mstage tag 0123456789ab localhost:5000/hello`,
		Args: arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return tagImage(cmd.Context(), c, args[0], args[1])
		},
	}
}

func tagImage(ctx context.Context, c *cli, word, newName string) error {
	name, err := imageName(newName)
	if err != nil {
		return err
	}
	images, err := c.openIndex()
	if err != nil {
		return err
	}
	img, err := findImage(ctx, images, word)
	if err != nil {
		return err
	}
	if err := images.PutImage(ctx, img, name); err != nil {
		return err
	}
	return images.Sync(ctx)
}

// imageName returns the full name of an image to be; the error is a usage error.
func imageName(word string) (string, error) {
	name, err := reference.Normalize(word)
	if err != nil {
		return "", &usageError{message: err.Error(), hint: `a name is like "hello", "hello:1.0" or "localhost:5000/hello"`}
	}
	if r, err := reference.Parse(name); err == nil && r.Name() == reservedName {
		return "", &usageError{message: `invalid name "` + word + `": scratch is reserved`, hint: "FROM scratch means an empty base"}
	}
	return name, nil
}
