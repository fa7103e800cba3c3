package main

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/storage"
)

// none stands where an image has no name, as docker shows it.
const none = "<none>"

const (
	imagesTable  = `table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}`
	digestsTable = `table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}`
)

var imagesHeaders = map[string]string{
	"Repository":   "REPOSITORY",
	"Tag":          "TAG",
	"Digest":       "DIGEST",
	"ID":           "IMAGE ID",
	"CreatedSince": "CREATED",
	"CreatedAt":    "CREATED AT",
	"Size":         "SIZE",
}

// imageRow is one line of `images`: one name of an image.
type imageRow struct {
	Repository, Tag string
	// Digest is that of the manifest in a registry or an archive; "<none>" for an
	// image that was made here.
	Digest                  string
	ID                      string
	CreatedSince, CreatedAt string
	Size                    string
}

type imagesOptions struct {
	quiet, noTrunc, digests bool
	format                  string
	filters                 []string
	// pattern is a name, with or without tag; "" for every image.
	pattern string
}

func newImagesCommand(c *cli) *cobra.Command {
	var o imagesOptions
	cmd := &cobra.Command{
		Use:     "images [flags] [NAME[:TAG]]",
		Aliases: []string{"ls"},
		Short:   "List the images of the local store",
		Example: `  mstage images
  mstage images -q busybox
  mstage images --filter dangling=true --filter label=a=b
  mstage images --format '{{.Repository}}:{{.Tag}} {{.Size}}'
  mstage images --format json`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.pattern = args[0]
			}
			return listImages(cmd.Context(), c, o)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "show image IDs only")
	flags.BoolP("all", "a", false, "show all images; always so, as there are no intermediate ones")
	flags.BoolVar(&o.noTrunc, "no-trunc", false, "show image IDs in full")
	flags.BoolVar(&o.digests, "digests", false, "show the digests of manifests")
	flags.StringArrayVarP(&o.filters, "filter", "f", nil, "`KEY=VALUE` with KEY one of before, dangling, label, reference, since (again for more)")
	flags.StringVar(&o.format, "format", "table", `"json", a Go template, or "table" and a Go template`)
	return cmd
}

func listImages(ctx context.Context, c *cli, o imagesOptions) error {
	table := imagesTable
	if o.digests {
		table = digestsTable
	}
	format, err := parseFormatOr(o.format, table)
	if err != nil {
		return err
	}
	matches, err := nameMatcher(o.pattern)
	if err != nil {
		return err
	}
	images, err := c.openIndex()
	if err != nil {
		return err
	}
	filter, err := parseImageFilters(ctx, images, o.filters)
	if err != nil {
		return err
	}
	all, err := images.AllImages(ctx)
	if err != nil {
		return err
	}
	rows := imageRows(all, func(img storage.TaggedImage, name string) bool {
		return matches(name) && filter.keeps(img, name)
	}, time.Now(), o.noTrunc)
	if o.quiet {
		return printIDs(c, rows)
	}
	return writeRows(c.stdout, format, imagesHeaders, rows)
}

// printIDs prints each ID once, in order.
func printIDs(c *cli, rows []imageRow) error {
	seen := map[string]bool{}
	for _, r := range rows {
		if seen[r.ID] {
			continue
		}
		seen[r.ID] = true
		if _, err := fmt.Fprintln(c.stdout, r.ID); err != nil {
			return err
		}
	}
	return nil
}

// imageRows returns a row for each name that matches, and one for an image
// without a name.
func imageRows(all []storage.TaggedImage, matches func(img storage.TaggedImage, name string) bool, now time.Time, noTrunc bool) []imageRow {
	var rows []imageRow
	for _, img := range all {
		names := shownNames(img.Names)
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			if matches(img, name) {
				rows = append(rows, newImageRow(img.Image, name, now, noTrunc))
			}
		}
	}
	return rows
}

// shownNames leaves out a name with a digest where the repository has a tag, as
// docker does.
func shownNames(names []string) []string {
	tagged := map[string]bool{}
	for _, name := range names {
		if r, err := reference.Parse(name); err == nil && r.Digest == "" {
			tagged[r.Name()] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		r, err := reference.Parse(name)
		return err == nil && r.Digest != "" && tagged[r.Name()]
	})
}

func newImageRow(img storage.Image, name string, now time.Time, noTrunc bool) imageRow {
	row := imageRow{
		Repository:   none,
		Tag:          none,
		Digest:       none,
		ID:           imageID(img.ID, noTrunc),
		CreatedSince: humanAge(now, img.Created),
		CreatedAt:    timestamp(img.Created),
		Size:         humanSize(img.SizeBytes()),
	}
	r, err := reference.Parse(name)
	if err != nil {
		return row
	}
	row.Repository, row.Tag = r.FamiliarName(), cmp.Or(r.Tag, none)
	row.Digest = cmp.Or(digestOf(img, r), none)
	return row
}

func imageID(id storage.Digest, noTrunc bool) string {
	if noTrunc {
		return string(id)
	}
	return id.Short()
}

// nameMatcher returns a function that says whether a full name is the pattern,
// or has the pattern's name when that has no tag. A pattern with *, ? or [ is
// matched as docker does. "" matches everything.
func nameMatcher(pattern string) (func(name string) bool, error) {
	if pattern == "" {
		return func(string) bool { return true }, nil
	}
	if strings.ContainsAny(pattern, "*?[") {
		return globMatcher(pattern)
	}
	want, err := reference.Parse(pattern)
	if err != nil {
		return nil, &usageError{message: err.Error()}
	}
	return func(name string) bool {
		r, err := reference.Parse(name)
		return err == nil && r.Name() == want.Name() && slices.Contains([]string{"", r.Tag}, want.Tag) &&
			slices.Contains([]string{"", r.Digest}, want.Digest)
	}, nil
}

// globMatcher matches the short form of a name, with and without its tag.
// Source: distribution/reference, FamiliarMatch.
func globMatcher(pattern string) (func(name string) bool, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, &usageError{message: fmt.Sprintf("pattern %q: %v", pattern, err)}
	}
	return func(name string) bool {
		r, err := reference.Parse(name)
		if err != nil {
			return false
		}
		for _, form := range []string{reference.Familiar(name), r.FamiliarName()} {
			if ok, err := path.Match(pattern, form); err == nil && ok {
				return true
			}
		}
		return false
	}, nil
}
