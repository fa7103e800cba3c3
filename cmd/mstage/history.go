package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/storage"
)

const historyTable = `table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}`

var historyHeaders = map[string]string{
	"ID":           "IMAGE",
	"CreatedSince": "CREATED",
	"CreatedAt":    "CREATED AT",
	"CreatedBy":    "CREATED BY",
	"Size":         "SIZE",
	"Comment":      "COMMENT",
}

// missing stands for the ID of all but an image's last instruction, as docker
// shows it: these are no images.
const missing = "<missing>"

// maxCreatedBy is docker's width of CREATED BY, in characters.
const maxCreatedBy = 45

// historyRow is one line of `history`: one instruction.
type historyRow struct {
	ID                      string
	CreatedSince, CreatedAt string
	CreatedBy               string
	Size                    string
	Comment                 string
}

// historyEntry is one instruction of an image with what it added.
type historyEntry struct {
	imageconfig.History
	SizeBytes int64
}

type historyOptions struct {
	quiet, noTrunc, human bool
	format                string
}

func newHistoryCommand(c *cli) *cobra.Command {
	var o historyOptions
	cmd := &cobra.Command{
		Use:   "history [flags] IMAGE",
		Short: "Show how an image was made, and the size of each layer",
		Long: `Show how an image was made, the last instruction first. The size is that of
the files that the instruction added or changed; what a later one deletes still
counts where it was added.`,
		Example: `  mstage history hello
  mstage history --no-trunc --format '{{.Size}} {{.CreatedBy}}' hello`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return showHistory(cmd.Context(), c, o, args[0])
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "show image IDs only")
	flags.BoolVar(&o.noTrunc, "no-trunc", false, "show IDs and instructions in full")
	flags.BoolVarP(&o.human, "human", "H", true, "sizes and times for people; false: bytes and dates")
	flags.StringVar(&o.format, "format", "table", `"json", a Go template, or "table" and a Go template`)
	return cmd
}

func showHistory(ctx context.Context, c *cli, o historyOptions, word string) error {
	format, err := parseFormatOr(o.format, historyTable)
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
	entries, err := historyEntries(img)
	if err != nil {
		return err
	}
	rows := historyRows(img.ID, entries, time.Now(), o)
	if !o.quiet {
		return writeRows(c.stdout, format, historyHeaders, rows)
	}
	for _, r := range rows {
		if _, err := fmt.Fprintln(c.stdout, r.ID); err != nil {
			return err
		}
	}
	return nil
}

// historyEntries returns an image's instructions, the first one first, each
// with the size of its layer. Layers that no instruction accounts for (an image
// from elsewhere may have no history) come first, so that no byte is left out.
func historyEntries(img storage.Image) ([]historyEntry, error) {
	config, err := imageconfig.Parse(img.Config)
	if err != nil {
		return nil, fmt.Errorf("read the config of image %s: %w", img.ID.Short(), err)
	}
	withLayer := 0
	for _, h := range config.History {
		if !h.EmptyLayer {
			withLayer++
		}
	}
	unaccounted := max(0, len(img.Layers)-withLayer)
	entries := make([]historyEntry, 0, unaccounted+len(config.History))
	for _, l := range img.Layers[:unaccounted] {
		entries = append(entries, historyEntry{SizeBytes: l.SizeBytes})
	}
	layers := img.Layers[unaccounted:]
	for _, h := range config.History {
		e := historyEntry{History: h}
		if !h.EmptyLayer && len(layers) > 0 {
			e.SizeBytes = layers[0].SizeBytes
			layers = layers[1:]
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// historyRows returns the last instruction first.
func historyRows(id storage.Digest, entries []historyEntry, now time.Time, o historyOptions) []historyRow {
	rows := make([]historyRow, 0, len(entries))
	for _, e := range slices.Backward(entries) {
		row := newHistoryRow(e, now, o)
		if len(rows) == 0 {
			row.ID = imageID(id, o.noTrunc)
		}
		rows = append(rows, row)
	}
	return rows
}

func newHistoryRow(e historyEntry, now time.Time, o historyOptions) historyRow {
	var created time.Time
	if e.Created != nil {
		created = *e.Created
	}
	row := historyRow{
		ID:           missing,
		CreatedSince: humanAge(now, created),
		CreatedAt:    "N/A",
		CreatedBy:    e.CreatedBy,
		Size:         humanSize(e.SizeBytes),
		Comment:      e.Comment,
	}
	if !created.IsZero() {
		row.CreatedAt = created.Format(time.RFC3339)
	}
	if !o.human {
		row.CreatedSince, row.Size = row.CreatedAt, strconv.FormatInt(e.SizeBytes, 10)
	}
	if !o.noTrunc {
		row.CreatedBy = ellipsis(row.CreatedBy, maxCreatedBy)
	}
	return row
}
