package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/storage"
)

const dfTable = `table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}`

var dfHeaders = map[string]string{
	"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE",
}

// dfRow is one line of `df`, with docker's field names.
type dfRow struct {
	Type, TotalCount, Active, Size, Reclaimable string
}

func newDfCommand(c *cli) *cobra.Command {
	var verbose bool
	var format string
	cmd := &cobra.Command{
		Use:   "df [flags]",
		Short: "Show what the store takes on the disk",
		Long: `Show what the store takes on the disk, as du counts it: in blocks, directories
included, and each file once however many layers have it. The lines add up to the
whole store.

ACTIVE is what a running build uses. RECLAIMABLE is what "mstage prune -a" would
remove now: all the rest.`,
		Example: `  mstage df
  mstage df -v
  mstage df --format '{{.Type}}: {{.Size}}'`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.df(cmd.Context(), verbose, format)
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "list every image, layer, blob and cache directory; with --format json in bytes")
	cmd.Flags().StringVar(&format, "format", "table", `"json", a Go template, or "table" and a Go template`)
	return cmd
}

// df prints the usage of the store.
func (c *cli) df(ctx context.Context, verbose bool, format string) error {
	f, err := parseFormatOr(format, dfTable)
	if err != nil {
		return err
	}
	eng, err := c.engine()
	if err != nil {
		return err
	}
	images, err := eng.Images().AllImages(ctx)
	if err != nil {
		return err
	}
	u, err := eng.Usage(ctx)
	if err != nil {
		return err
	}
	if !verbose {
		return writeRows(c.stdout, f, dfHeaders, dfRows(images, u))
	}
	details := newDfDetails(images, u)
	switch {
	case f.json:
		return json.NewEncoder(c.stdout).Encode(details)
	case f.table:
		return c.printDetails(details, time.Now())
	}
	return writeLine(c.stdout, f.tmpl, details)
}

// share adds up one kind of thing.
type share struct {
	count, active    int
	bytes, freeBytes int64
}

func (s *share) add(bytes int64, held bool) {
	s.count++
	s.bytes += bytes
	if held {
		s.active++
	} else {
		s.freeBytes += bytes
	}
}

func (s *share) row(kind string) dfRow {
	free := humanSize(s.freeBytes)
	if s.bytes > 0 {
		free += fmt.Sprintf(" (%d%%)", s.freeBytes*100/s.bytes)
	}
	return dfRow{
		Type: kind, TotalCount: strconv.Itoa(s.count), Active: strconv.Itoa(s.active),
		Size: humanSize(s.bytes), Reclaimable: free,
	}
}

// dfRows are the kinds of things in a store. They add up to all of it.
func dfRows(images []storage.TaggedImage, u storage.Usage) []dfRow {
	var ofImages, cache, blobs, dirs share
	held := map[storage.LayerID]bool{}
	for _, l := range u.Layers {
		held[l.ID] = l.Held
		if l.Image {
			ofImages.add(l.DiskBytes, l.Held)
		} else {
			cache.add(l.DiskBytes, l.Held)
		}
	}
	ofImages.count, ofImages.active = len(images), 0
	for _, img := range images {
		for _, l := range img.Layers {
			if held[l.ID] {
				ofImages.active++
				break
			}
		}
	}
	for _, b := range u.Blobs {
		blobs.add(b.DiskBytes, b.Held)
	}
	for _, d := range u.Caches {
		dirs.add(d.DiskBytes, d.Held)
	}
	return []dfRow{
		ofImages.row("Images"), cache.row("Build Cache"), blobs.row("Blobs"), dirs.row("Cache Mounts"),
		{Type: "Other", TotalCount: "", Active: "", Size: humanSize(u.OtherBytes), Reclaimable: "0B"},
	}
}

// dfDetails is what `df -v` shows. All sizes are bytes on the disk.
type dfDetails struct {
	Images      []dfImage
	BuildCache  []storage.LayerUsage
	Blobs       []storage.BlobUsage
	CacheMounts []storage.CacheUsage
	Other       int64
	Total       int64
}

// dfImage is one image. UniqueSize is in no other image.
type dfImage struct {
	ID                           storage.Digest
	Names                        []string
	Created                      time.Time
	Size, SharedSize, UniqueSize int64
}

func newDfDetails(images []storage.TaggedImage, u storage.Usage) dfDetails {
	d := dfDetails{
		Images: []dfImage{}, BuildCache: []storage.LayerUsage{}, Blobs: u.Blobs, CacheMounts: u.Caches,
		Other: u.OtherBytes, Total: u.OtherBytes,
	}
	disk, users := map[storage.LayerID]int64{}, map[storage.LayerID]int{}
	for _, l := range u.Layers {
		disk[l.ID] = l.DiskBytes
		d.Total += l.DiskBytes
		if !l.Image {
			d.BuildCache = append(d.BuildCache, l)
		}
	}
	for _, b := range u.Blobs {
		d.Total += b.DiskBytes
	}
	for _, dir := range u.Caches {
		d.Total += dir.DiskBytes
	}
	for _, img := range images {
		for id := range layersOf(img) {
			users[id]++
		}
	}
	for _, img := range images {
		i := dfImage{ID: img.ID, Names: img.Names, Created: img.Created}
		for id := range layersOf(img) {
			i.Size += disk[id]
			if users[id] > 1 {
				i.SharedSize += disk[id]
			}
		}
		i.UniqueSize = i.Size - i.SharedSize
		d.Images = append(d.Images, i)
	}
	return d
}

// layersOf is the set of an image's layers.
func layersOf(img storage.TaggedImage) map[storage.LayerID]bool {
	set := map[storage.LayerID]bool{}
	for _, l := range img.Layers {
		set[l.ID] = true
	}
	return set
}

// dfItem is one line of a list of `df -v`.
type dfItem struct {
	Name, ID, Created, LastUsed, Size, Shared, Unique, InUse string
}

// dfHeads are the titles of the columns of dfItem.
var dfHeads = map[string]string{
	"Name": "NAME", "ID": "ID", "Created": "CREATED", "LastUsed": "LAST USED", "Size": "SIZE",
	"Shared": "SHARED SIZE", "Unique": "UNIQUE SIZE", "InUse": "IN USE",
}

// dfList is one list of `df -v`.
type dfList struct {
	title, columns string
	items          []dfItem
}

// printDetails prints a table of each kind.
func (c *cli) printDetails(d dfDetails, now time.Time) error {
	images := dfList{"Images", `table {{.Name}}\t{{.ID}}\t{{.Created}}\t{{.Size}}\t{{.Shared}}\t{{.Unique}}`, nil}
	for _, i := range d.Images {
		words := []string{}
		for _, name := range i.Names {
			words = append(words, reference.Familiar(name))
		}
		name := cmp.Or(strings.Join(words, " "), none)
		images.items = append(images.items, dfItem{
			Name: name, ID: i.ID.Short(), Created: humanAge(now, i.Created),
			Size: humanSize(i.Size), Shared: humanSize(i.SharedSize), Unique: humanSize(i.UniqueSize),
		})
	}
	cache := dfList{"Build cache", `table {{.ID}}\t{{.Created}}\t{{.LastUsed}}\t{{.Size}}\t{{.InUse}}`, nil}
	for _, l := range d.BuildCache {
		cache.items = append(cache.items, dfItem{
			ID: string(l.ID[:12]), Created: humanAge(now, l.Created), LastUsed: humanAge(now, l.LastUse),
			Size: humanSize(l.DiskBytes), InUse: strconv.FormatBool(l.Held),
		})
	}
	blobs := dfList{"Blobs", `table {{.ID}}\t{{.Size}}\t{{.InUse}}`, nil}
	for _, b := range d.Blobs {
		blobs.items = append(blobs.items, dfItem{ID: b.Digest.Short(), Size: humanSize(b.DiskBytes), InUse: strconv.FormatBool(b.Held)})
	}
	dirs := dfList{"Cache mounts", blobs.columns, nil}
	for _, m := range d.CacheMounts {
		dirs.items = append(dirs.items, dfItem{ID: m.Name[:min(12, len(m.Name))], Size: humanSize(m.DiskBytes), InUse: strconv.FormatBool(m.Held)})
	}
	for _, list := range []dfList{images, cache, blobs, dirs} {
		if err := c.printList(list); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(c.stdout, "Other: %s\nTotal: %s\n", humanSize(d.Other), humanSize(d.Total))
	return err
}

// printList prints one table with its title.
func (c *cli) printList(l dfList) error {
	f, err := parseFormat(l.columns)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c.stdout, "%s:\n\n", l.title); err != nil {
		return err
	}
	if err := writeRows(c.stdout, f, dfHeads, l.items); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.stdout)
	return err
}
