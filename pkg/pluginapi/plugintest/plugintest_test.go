package plugintest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/pkg/pluginapi/plugintest"
)

// textSource answers "text:WORD" with a root file system of one file that
// holds the word.
type textSource struct{}

func (textSource) Describe(context.Context) (pluginapi.Description, error) {
	return pluginapi.Description{
		Name: "text", Protocol: pluginapi.Protocol, Summary: "the words themselves",
		Schemes: []string{"text"}, Examples: []string{"text:hello"},
	}, nil
}

func (textSource) Resolve(ctx context.Context, q pluginapi.Request) (pluginapi.Resolved, error) {
	if ctx.Err() != nil {
		return pluginapi.Resolved{}, context.Cause(ctx)
	}
	word, ok := strings.CutPrefix(q.Reference, "text:")
	if !ok {
		return pluginapi.Resolved{}, fmt.Errorf("%q: %w", q.Reference, pluginapi.ErrNotFound)
	}
	if word == "" {
		return pluginapi.Resolved{}, &pluginapi.Error{Message: "no text", Hint: "write text:hello"}
	}
	digest := digestOf(word)
	if q.LockedDigest != "" && q.LockedDigest != digest {
		return pluginapi.Resolved{}, &pluginapi.Error{Message: "the text has changed"}
	}
	return pluginapi.Resolved{Reference: q.Reference, Content: &pluginapi.Content{Digest: digest, SizeHint: int64(len(word))}}, nil
}

func (textSource) Fetch(ctx context.Context, r pluginapi.Resolved, _ pluginapi.Selection, to pluginapi.Receiver) error {
	word, ok := strings.CutPrefix(r.Reference, "text:")
	if !ok || r.Content == nil {
		return fmt.Errorf("fetch %q: %w", r.Reference, pluginapi.ErrNoContent)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "text", Mode: 0o644, Size: int64(len(word))}); err != nil {
		return err
	}
	if _, err := w.Write([]byte(word)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return to.RootFS(ctx, &b)
}

func digestOf(word string) string {
	sum := sha256.Sum256([]byte(word))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func TestASourceWithContentHoldsTheContract(t *testing.T) {
	plugintest.Run(t, func(*testing.T) plugintest.Fixture {
		return plugintest.Fixture{
			Source:  textSource{},
			Known:   []pluginapi.Request{{Reference: "text:hello"}},
			Unknown: []pluginapi.Request{{Reference: "hello"}},
			Refused: []pluginapi.Request{{Reference: "text:"}},
		}
	})
}

func TestCheckRefusesAnswersThatBreakTheContract(t *testing.T) {
	zero, content := 0, &pluginapi.Content{Digest: digestOf("x")}
	q := pluginapi.Request{Reference: "x", Stages: []pluginapi.Stage{{Index: 1}}}
	cases := map[string]struct {
		answer pluginapi.Resolved
		want   string
	}{
		"nothing":                    {pluginapi.Resolved{Reference: "x"}, "0 of stage"},
		"two kinds":                  {pluginapi.Resolved{Reference: "x", Image: digestOf("x"), Content: content}, "2 of stage"},
		"no reference":               {pluginapi.Resolved{Content: content}, "no reference"},
		"a stage that can't be used": {pluginapi.Resolved{Reference: "x", Stage: &zero}, "can't be named"},
		"a malformed image ID":       {pluginapi.Resolved{Reference: "x", Image: "sha256:12"}, "not sha256"},
		"a malformed digest":         {pluginapi.Resolved{Reference: "x", Content: &pluginapi.Content{Digest: "x"}}, "not sha256"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if err := c.answer.Check(q); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
	q.LockedDigest = digestOf("y")
	if err := (pluginapi.Resolved{Reference: "x", Content: content}).Check(q); err == nil || !strings.Contains(err.Error(), "locked") {
		t.Errorf("got %v, want an error about the locked digest", err)
	}
}
