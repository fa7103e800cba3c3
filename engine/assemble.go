package engine

import (
	"slices"
	"time"

	"github.com/mstage/mstage/engine/executor"
	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/storage"
)

// assemble makes the target's image: its config with the history and times of
// its layers.
func assemble(p *plan.Plan, results []executor.Result) (storage.Image, error) {
	cfg := p.Stages[p.Target].Config.Clone()
	layers := results[p.Target].Layers
	cfg.History, cfg.Created = history(p, p.Target, layers)
	return image.New(cfg, layers)
}

// history returns the entries of a stage, those of the stages it is FROM
// included, and the time of the last. An entry without a layer has the time of
// the one before it, so that the same steps from the cache make the same image
// whenever that is.
func history(p *plan.Plan, index int, layers []storage.Layer) ([]imageconfig.History, *time.Time) {
	st := &p.Stages[index]
	own := len(layers) - len(st.Steps)
	entries, last := st.Config.History, st.Config.Created
	if st.Base.Stage != nil {
		entries, last = history(p, *st.Base.Stage, layers[:own])
	} else {
		entries = completed(entries, layers[:own])
	}
	for _, h := range st.History {
		if h.Step >= 0 {
			last = &layers[own+h.Step].Created
		}
		entries = append(entries, imageconfig.History{
			Created: last, CreatedBy: h.CreatedBy, Comment: h.Comment, Author: h.Author, EmptyLayer: h.Step < 0,
		})
	}
	return entries, last
}

// completed adds the lines that the history of a base image lacks: some tools
// write images with fewer lines than layers, or with none.
func completed(entries []imageconfig.History, layers []storage.Layer) []imageconfig.History {
	entries = slices.Clip(entries)
	told := 0
	for _, h := range entries {
		if !h.EmptyLayer {
			told++
		}
	}
	for i := told; i < len(layers); i++ {
		entries = append(entries, imageconfig.History{Created: &layers[i].Created})
	}
	return entries
}
