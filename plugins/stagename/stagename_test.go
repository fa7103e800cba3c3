package stagename_test

import (
	"testing"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/pkg/pluginapi/plugintest"
	"github.com/mstage/mstage/plugins/stagename"
)

var stages = []pluginapi.Stage{{Name: "base", Index: 0}, {Name: "", Index: 1}, {Name: "Build", Index: 2}, {Name: "base", Index: 3}}

func ask(words ...string) []pluginapi.Request {
	var qs []pluginapi.Request
	for _, w := range words {
		qs = append(qs, pluginapi.Request{Reference: w, Use: pluginapi.UseCopy, Stages: stages})
	}
	return qs
}

func TestTheSourceHoldsTheContract(t *testing.T) {
	plugintest.Run(t, func(*testing.T) plugintest.Fixture {
		return plugintest.Fixture{
			Source:  stagename.New(),
			Known:   ask("base", "build", "BUILD"),
			Unknown: append(ask("", "bas", "0", "later"), pluginapi.Request{Reference: "base"}),
		}
	})
}

func TestTheLastStageOfThatNameInAnyCaseAnswers(t *testing.T) {
	for word, want := range map[string]int{"base": 3, "BASE": 3, "build": 2} {
		got, err := stagename.New().Resolve(t.Context(), ask(word)[0])
		if err != nil || got.Stage == nil || *got.Stage != want {
			t.Errorf("%s: got %+v, %v, want stage %d", word, got, err, want)
		}
	}
}
