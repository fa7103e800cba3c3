package main

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/engine/export"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/storage"
)

// saveFormats are the values of save's --format and the outputs they stand for.
var saveFormats = map[string]export.Output{
	"docker-archive": {Type: export.TypeDocker},
	"oci-archive":    {Type: export.TypeOCI},
	"oci-dir":        {Type: export.TypeOCI, Attrs: map[string]string{"tar": "false"}},
}

func newSaveCommand(c *cli) *cobra.Command {
	var output, format string
	cmd := &cobra.Command{
		Use:   "save [flags] IMAGE…",
		Short: "Save images to a docker or OCI archive",
		Long: `Save one or more images to an archive that docker, podman, skopeo and
mstage load. Images that were asked for by name have that name in it. The default
is a docker archive, which is an OCI archive, too.`,
		Example: `  mstage save -o hello.tar hello
  mstage save hello:1 hello:2 | docker load
  mstage save --format oci-dir -o layout hello`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.save(cmd.Context(), output, format, args)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&output, "output", "o", "", "write to `FILE`, or a directory for oci-dir (default standard output)")
	fs.StringVar(&format, "format", "docker-archive", "docker-archive, oci-archive or oci-dir")
	return cmd
}

// save writes images to one archive.
func (c *cli) save(ctx context.Context, output, format string, words []string) error {
	o, err := c.saveOutput(output, format)
	if err != nil {
		return err
	}
	images, err := c.openIndex()
	if err != nil {
		return err
	}
	var saved []worker.Saved
	for _, word := range words {
		img, err := findImage(ctx, images, word)
		if err != nil {
			return err
		}
		saved = addSaved(saved, img.ID, savedName(ctx, images, word, img.ID))
	}
	eng, err := c.engine()
	if err != nil {
		return err
	}
	return eng.Save(ctx, saved, o)
}

// saveOutput says where to write what.
func (c *cli) saveOutput(output, format string) (export.Output, error) {
	o, ok := saveFormats[format]
	if !ok {
		return o, &usageError{message: "--format " + format + ": unknown", hint: "docker-archive, oci-archive or oci-dir", command: "mstage save"}
	}
	o.Dest = export.Stdout
	if output == "" || output == export.Stdout {
		switch {
		case format == "oci-dir":
			return o, &usageError{message: "--format oci-dir needs a directory", hint: "name it with -o", command: "mstage save"}
		case isTerminal(c.stdout):
			return o, &usageError{message: "save: standard output is a terminal", hint: "redirect it, or name a file with -o"}
		}
		return o, nil
	}
	var err error
	if o.Dest, err = filepath.Abs(output); err != nil {
		return o, err
	}
	return o, checkWritable(o.Dest)
}

// savedName returns the name by which a word asks for an image, "" for an ID or a
// digest.
func savedName(ctx context.Context, images storage.Images, word string, id storage.Digest) string {
	name, err := reference.Normalize(word)
	if err != nil {
		return ""
	}
	if img, err := images.ByName(ctx, name); err != nil || img.ID != id {
		return ""
	}
	return name
}

// addSaved adds an image, or a name to one that is there.
func addSaved(saved []worker.Saved, id storage.Digest, name string) []worker.Saved {
	i := slices.IndexFunc(saved, func(s worker.Saved) bool { return s.Image == id })
	if i < 0 {
		i = len(saved)
		saved = append(saved, worker.Saved{Image: id})
	}
	if name != "" {
		saved[i].Names = append(saved[i].Names, name)
	}
	return saved
}
