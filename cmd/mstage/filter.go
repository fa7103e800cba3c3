package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/storage"
)

// imageFilter is what `images --filter` asks for. The zero value keeps all.
type imageFilter struct {
	// dangling is nil when it was not asked for.
	dangling *bool
	// references are matched by one at least, labels are all there.
	references []func(name string) bool
	labels     []string
	// before and since are creation times; nil for none.
	before, since *time.Time
}

const filterHint = "before=IMAGE, dangling=true|false, label=KEY[=VALUE], reference=PATTERN or since=IMAGE"

// parseImageFilters reads --filter values. Source: docker image ls reference,
// "Filtering".
func parseImageFilters(ctx context.Context, images storage.Images, values []string) (imageFilter, error) {
	var f imageFilter
	for _, v := range values {
		key, value, ok := strings.Cut(v, "=")
		if !ok {
			return f, &usageError{message: "--filter " + v + ": not of the form KEY=VALUE", hint: filterHint}
		}
		if err := f.add(ctx, images, key, value); err != nil {
			return f, err
		}
	}
	return f, nil
}

// add adds one filter.
func (f *imageFilter) add(ctx context.Context, images storage.Images, key, value string) error {
	switch key {
	case "dangling":
		b, err := strconv.ParseBool(value)
		if err != nil {
			return &usageError{message: "--filter dangling=" + value + ": neither true nor false"}
		}
		f.dangling = &b
	case "reference":
		match, err := globMatcher(value)
		if err != nil {
			return err
		}
		f.references = append(f.references, match)
	case "label":
		f.labels = append(f.labels, value)
	case "before", "since":
		img, err := findImage(ctx, images, value)
		if err != nil {
			return err
		}
		if key == "before" {
			f.before = &img.Created
		} else {
			f.since = &img.Created
		}
	default:
		return &usageError{message: "--filter " + key + ": unknown", hint: filterHint}
	}
	return nil
}

// keeps reports whether a name of an image, "" for none, is to be shown.
func (f *imageFilter) keeps(img storage.TaggedImage, name string) bool {
	if f.dangling != nil && *f.dangling != dangling(img) {
		return false
	}
	if f.before != nil && !img.Created.Before(*f.before) || f.since != nil && !img.Created.After(*f.since) {
		return false
	}
	return f.namedAs(name) && f.labelled(img)
}

// dangling reports whether no tag leads to an image.
func dangling(img storage.TaggedImage) bool {
	for _, name := range img.Names {
		if !strings.Contains(name, "@") {
			return false
		}
	}
	return true
}

// namedAs reports whether a name matches one of the patterns.
func (f *imageFilter) namedAs(name string) bool {
	for _, match := range f.references {
		if match(name) {
			return true
		}
	}
	return len(f.references) == 0
}

// labelled reports whether an image has all the labels.
func (f *imageFilter) labelled(img storage.TaggedImage) bool {
	if len(f.labels) == 0 {
		return true
	}
	cfg, err := imageconfig.Parse(img.Config)
	if err != nil {
		return false
	}
	for _, want := range f.labels {
		key, value, hasValue := strings.Cut(want, "=")
		got, ok := cfg.Config.Labels[key]
		if !ok || hasValue && got != value {
			return false
		}
	}
	return true
}
