package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/storage"
)

// inspection is an image as docker's `image inspect` shows it, with one field
// of our own.
type inspection struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Comment      string
	Created      string // RFC 3339, "" when the image doesn't say
	Author       string
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	OsVersion    string `json:",omitempty"`
	Size         int64  // bytes, over all layers
	Config       imageconfig.Container
	RootFS       inspectedRootFS
	Mstage       inspectedStore
}

// inspectedRootFS lists the diff IDs. Layers is null until the image is
// exported the first time: only then is a layer's digest computed.
type inspectedRootFS struct {
	Type   string
	Layers []string
}

// inspectedStore is what the store knows and docker has no field for.
type inspectedStore struct {
	// ConfigDigest is the image's ID in docker and in registries; "" until the
	// image is exported the first time.
	ConfigDigest storage.Digest
	Layers       []inspectedLayer
}

type inspectedLayer struct {
	ID       storage.LayerID
	Identity storage.Digest // stands for the content in cache keys
	Size     int64          // bytes
	Created  time.Time
}

func newInspectCommand(c *cli) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "inspect [flags] IMAGE...",
		Short: "Show all about images, as JSON",
		Example: `  mstage inspect hello
  mstage inspect --format '{{.Config.Env}}' hello
  mstage inspect --format '{{json .Mstage.Layers}}' hello`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspectImages(cmd.Context(), c, format, args)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", `"json" or a Go template`)
	return cmd
}

// inspectImages prints what it finds and reports every word that is no image.
func inspectImages(ctx context.Context, c *cli, format string, words []string) error {
	images, err := c.openIndex()
	if err != nil {
		return err
	}
	all, err := images.AllImages(ctx)
	if err != nil {
		return err
	}
	found := []inspection{}
	var errs []error
	for _, word := range words {
		i, err := inspectImage(ctx, images, all, word)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, i)
	}
	return errors.Join(append([]error{printInspections(c, format, found)}, errs...)...)
}

func inspectImage(ctx context.Context, images storage.Images, all []storage.TaggedImage, word string) (inspection, error) {
	img, err := findImage(ctx, images, word)
	if err != nil {
		return inspection{}, err
	}
	var names []string
	for _, t := range all {
		if t.ID == img.ID {
			names = t.Names
		}
	}
	return newInspection(storage.TaggedImage{Image: img, Names: names})
}

func newInspection(img storage.TaggedImage) (inspection, error) {
	raw := img.Config
	if img.Sealed != nil {
		raw = img.Sealed.Config
	}
	config, err := imageconfig.Parse(raw)
	if err != nil {
		return inspection{}, fmt.Errorf("read the config of image %s: %w", img.ID.Short(), err)
	}
	i := inspection{
		ID:           string(img.ID),
		RepoTags:     []string{},
		RepoDigests:  []string{},
		Author:       config.Author,
		Architecture: config.Architecture,
		Variant:      config.Variant,
		Os:           config.OS,
		OsVersion:    config.OSVersion,
		Size:         img.SizeBytes(),
		Config:       config.Config,
		RootFS:       inspectedRootFS{Type: "layers"},
		Mstage:       inspectedStore{Layers: []inspectedLayer{}},
	}
	i.RepoTags, i.RepoDigests = repoNames(img)
	if n := len(config.History); n > 0 {
		i.Comment = config.History[n-1].Comment
	}
	if !img.Created.IsZero() {
		i.Created = img.Created.Format(time.RFC3339Nano)
	}
	if img.Sealed != nil {
		i.Mstage.ConfigDigest = img.Sealed.ConfigDigest
		i.RootFS.Layers = config.RootFS.DiffIDs
	}
	for _, l := range img.Layers {
		i.Mstage.Layers = append(i.Mstage.Layers, inspectedLayer{ID: l.ID, Identity: l.Identity, Size: l.SizeBytes, Created: l.Created})
	}
	return i, nil
}

// repoNames returns an image's names with a tag, and its repositories with the
// digest of its manifest. What was made here has no such digest: only a registry
// or an archive gives one.
func repoNames(img storage.TaggedImage) (tags, digests []string) {
	tags, digests = []string{}, []string{}
	for _, name := range img.Names {
		r, err := reference.Parse(name)
		if err != nil {
			continue
		}
		if r.Digest == "" {
			tags = append(tags, reference.Familiar(name))
		}
		if d := digestOf(img.Image, r); d != "" {
			digests = append(digests, r.FamiliarName()+"@"+d)
		}
	}
	return tags, slices.Compact(slices.Sorted(slices.Values(digests)))
}

// digestOf returns the digest by which a registry knows an image of that name, ""
// for none.
func digestOf(img storage.Image, name reference.Reference) string {
	switch {
	case name.Digest != "":
		return name.Digest
	case img.Sealed != nil && img.Sealed.Manifest != nil:
		return string(img.Sealed.Manifest.Digest())
	}
	return ""
}

func printInspections(c *cli, format string, found []inspection) error {
	if format == "" {
		enc := json.NewEncoder(c.stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "    ")
		return enc.Encode(found)
	}
	f, err := parseFormat(format)
	if err != nil {
		return err
	}
	for _, i := range found {
		if f.json {
			err = json.NewEncoder(c.stdout).Encode(i)
		} else {
			err = writeInspection(c, f, i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeInspection executes a template over the struct, and when that has no such
// field over its JSON form, as docker does: {{.ID}} and {{.Id}} are the same.
func writeInspection(c *cli, f outputFormat, i inspection) error {
	var line strings.Builder
	if err := writeLine(&line, f.tmpl, i); err == nil {
		_, err := io.WriteString(c.stdout, line.String())
		return err
	}
	b, err := json.Marshal(i)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber() // sizes stay as they are written
	var fields map[string]any
	if err := dec.Decode(&fields); err != nil {
		return err
	}
	return writeLine(c.stdout, f.tmpl, fields)
}
