package overlay

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	cstorage "go.podman.io/storage"

	"github.com/mstage/mstage/storage"
)

// Problem is one thing that Check found.
type Problem struct {
	// Layer is "" for what concerns no layer of the catalogue.
	Layer storage.LayerID
	Text  string
}

// Check looks at the whole store and changes nothing: containers/storage's own
// check of its catalogue, every page of the index, and that every layer of an
// image or step is there. A sound store has no problem. A second for a few
// hundred layers.
func (s *Store) Check(ctx context.Context) ([]Problem, error) {
	problems, err := s.checkCatalog()
	if err != nil {
		return nil, fmt.Errorf("check store: %w", err)
	}
	if err := s.index.Check(ctx); err != nil {
		return append(problems, Problem{Text: err.Error()}), nil //nolint:nilerr // what is wrong is the answer
	}
	uses, err := s.index.Uses(ctx)
	if err != nil {
		return nil, fmt.Errorf("check store: %w", err)
	}
	all, err := s.All(ctx)
	if err != nil {
		return nil, fmt.Errorf("check store: %w", err)
	}
	for _, u := range uses {
		if !slices.Contains(all, u.ID) {
			problems = append(problems, Problem{Layer: u.ID, Text: "the index has it, the catalogue does not"})
		}
	}
	return problems, nil
}

// checkCatalog asks containers/storage. Our layers belong to no image there,
// at any age.
func (s *Store) checkCatalog() ([]Problem, error) {
	o := cstorage.CheckMost()
	forever := time.Duration(math.MaxInt64)
	o.LayerUnreferencedMaximumAge = &forever
	report, err := s.catalog.Check(o)
	if err != nil {
		return nil, err
	}
	var problems []Problem
	for _, id := range slices.Sorted(maps.Keys(report.Layers)) {
		for _, err := range report.Layers[id] {
			problems = append(problems, Problem{Layer: storage.LayerID(id), Text: err.Error()})
		}
	}
	for _, errs := range []map[string][]error{report.ROLayers, report.Images, report.ROImages, report.Containers} {
		for _, id := range slices.Sorted(maps.Keys(errs)) {
			for _, err := range errs[id] {
				problems = append(problems, Problem{Text: err.Error()})
			}
		}
	}
	return problems, nil
}
