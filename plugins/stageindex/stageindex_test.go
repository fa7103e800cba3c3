package stageindex_test

import (
	"errors"
	"testing"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/pkg/pluginapi/plugintest"
	"github.com/mstage/mstage/plugins/stageindex"
)

func ask(use pluginapi.Use, words ...string) []pluginapi.Request {
	var qs []pluginapi.Request
	for _, w := range words {
		qs = append(qs, pluginapi.Request{Reference: w, Use: use, Stages: []pluginapi.Stage{{Name: "a", Index: 0}, {Index: 1}}})
	}
	return qs
}

var notIndexes = []string{"2", "-1", "+1", "1.0", "0x1", "", "a", "1 ", "4294967296", "18446744073709551616", "१"}

func TestTheSourceForCopyHoldsTheContract(t *testing.T) {
	plugintest.Run(t, func(*testing.T) plugintest.Fixture {
		return plugintest.Fixture{
			Source:  stageindex.ForCopy(),
			Known:   append(ask(pluginapi.UseCopy, "0", "1"), ask(pluginapi.UseMount, "1")...),
			Unknown: ask(pluginapi.UseCopy, notIndexes...),
		}
	})
}

func TestTheSourceForFromHoldsTheContract(t *testing.T) {
	plugintest.Run(t, func(*testing.T) plugintest.Fixture {
		return plugintest.Fixture{
			Source:  stageindex.ForFrom(),
			Known:   ask(pluginapi.UseFrom, "0", "1"),
			Unknown: ask(pluginapi.UseFrom, notIndexes...),
		}
	})
}

func TestEachSourceAnswersItsOwnUseOnly(t *testing.T) {
	if got, err := stageindex.ForCopy().Resolve(t.Context(), ask(pluginapi.UseFrom, "0")[0]); !errors.Is(err, pluginapi.ErrNotFound) {
		t.Errorf("FROM 0 to the source for COPY: got %+v, %v, want ErrNotFound", got, err)
	}
	if got, err := stageindex.ForFrom().Resolve(t.Context(), ask(pluginapi.UseCopy, "0")[0]); !errors.Is(err, pluginapi.ErrNotFound) {
		t.Errorf("COPY --from=0 to the source for FROM: got %+v, %v, want ErrNotFound", got, err)
	}
}
