package plugins_test

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/plugins"
	"github.com/mstage/mstage/storage/index"
)

// named is a source that has a name and knows nothing.
type named struct {
	pluginapi.NoContent
	name string
}

func (n named) Describe(context.Context) (pluginapi.Description, error) {
	return pluginapi.Description{Name: n.name}, nil
}

func (n named) Resolve(context.Context, pluginapi.Request) (pluginapi.Resolved, error) {
	return pluginapi.Resolved{}, pluginapi.ErrNotFound
}

func TestSourcesStandInTheDocumentedOrder(t *testing.T) {
	ix, err := index.Open(filepath.Join(t.TempDir(), "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range plugins.Order(ix, plugins.Others{
		Contexts: []pluginapi.Source{named{name: "context"}},
		Declared: []pluginapi.Source{named{name: "declared"}},
		Remote:   []pluginapi.Source{named{name: "remote"}},
	}) {
		d, err := s.Describe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, d.Name)
	}
	want := []string{"context", "stagename", "stageindex", "declared", "imageid", "localtag", "stageindex-from", "imageid-prefix", "remote"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
